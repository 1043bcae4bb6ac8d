"""As whom this process touches files: as itself, or for a moment, if it is root, as somebody else.

The effective user is the whole process's, so while one thread is somebody else no other one may touch
a file or start a program. Both are done under one lock, and held for no longer than that.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """As root, look into a user's folder as that user: whatever is made there is theirs."""
    with _lock:
        before = os.geteuid()
        if before == uid:
            yield
            return
        os.seteuid(uid)
        try:
            yield
        finally:
            os.seteuid(before)


@contextmanager
def as_ourselves() -> Iterator[None]:
    """Nobody in this process is somebody else meanwhile."""
    with _lock:
        yield

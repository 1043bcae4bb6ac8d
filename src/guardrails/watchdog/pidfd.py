"""A process that is signalled as itself, and not as whoever has its number later."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial


@contextmanager
def open_process(pid: int) -> Iterator[Callable[[int], None]]:
    """Hold on to the process that has this number now; what is given sends it a signal, or 0 for none.

    What is found out about it within is true of whom the signal meets. Where the system has no such
    handles, the number has to do. Raises ProcessLookupError, PermissionError or OSError with a
    sentence, also when sending.
    """
    descriptor = _open(pid)
    try:
        yield partial(_send, descriptor, pid)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):  # an old kernel, or a container that forbids it
            return None
        raise OSError(f"process {pid}: {error.strerror}") from None


def _send(descriptor: int | None, pid: int, number: int) -> None:
    try:
        if descriptor is None:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    except PermissionError:
        raise PermissionError(f"process {pid} is of another user, and may not be signalled") from None

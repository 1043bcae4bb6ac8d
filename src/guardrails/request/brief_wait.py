"""Which requests wait a few milliseconds for a slot that their client's last request still holds.

A server closes a response after it has sent the last byte. So a client that asks strictly one request
after another may be back before its slot is free. In every process one request of a key may wait for
that moment, also in the only thread.

A client that holds its slots on purpose would make each refusal hold a thread. So after a wait in vain
the process lets nobody wait for nine times as long: such waits take at most a tenth of its time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable

PAUSES = (1_000, 2_000, 4_000, 8_000, 15_000, 20_000)
"""Microseconds between two questions whether the slot is free."""

LONGEST = sum(PAUSES)

monotonic = time.monotonic

_MOST_WAITING = 64
_REST = 9
"""How many times as long as a wait in vain this process lets nobody wait."""


class BriefWaits:
    """The brief waits of this process."""

    def __init__(self) -> None:
        self.start_process()

    def start_process(self) -> None:
        """Forget the waits of the process that this one was forked from."""
        self._lock = threading.Lock()
        self._began: dict[Hashable, float] = {}
        self._rests_until = 0.0

    def begin(self, key: Hashable) -> bool:
        """Return whether a request of this key may wait now."""
        now = monotonic()
        with self._lock:
            if now < self._rests_until or key in self._began or len(self._began) >= _MOST_WAITING:
                return False
            self._began[key] = now
            return True

    def end(self, key: Hashable, *, in_vain: bool) -> None:
        """Note that the wait of a key is over.

        Args:
            key: the key.
            in_vain: whether the request was refused after all.
        """
        now = monotonic()
        with self._lock:
            began = self._began.pop(key, now)
            if in_vain:
                self._rests_until = max(self._rests_until, now + _REST * (now - began))

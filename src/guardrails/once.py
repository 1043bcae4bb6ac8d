"""Say something once: ever, once in a period, or once for each key."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable

from cachetools import TTLCache

DEFAULT_MOST_KEYS = 256


class Once:
    """Answers True the first time that it is asked about a key, and then False for a period.

    Args:
        seconds: the period, in seconds; without end by default.
        most: how many keys are remembered at a time (256). A further key answers False: clients can
            bring keys about, and they must not fill the memory or the log.
        timer: returns the present in seconds, where a call does not give it.
    """

    def __init__(
        self,
        seconds: float = math.inf,
        *,
        most: int = DEFAULT_MOST_KEYS,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now: float | None = None
        self._timer = timer
        self._most = most
        self._said: TTLCache[Hashable, None] = TTLCache(most, seconds, timer=self._present)

    def __call__(self, key: Hashable = None, *, now: float | None = None) -> bool:
        """Return whether this is the first time for the key; from now on the key is remembered.

        Args:
            key: identifies what is said, or what it is about.
            now: the present, in the seconds of the timer.
        """
        self._now = now
        try:
            if key in self._said or len(self._said) >= self._most:
                return False
            self._said[key] = None
        except (KeyError, RuntimeError):
            # Two threads at once: at worst the same thing is said twice.
            return True
        return True

    def forget(self, key: Hashable = None) -> None:
        """Let a key be said again the next time, also within its period."""
        self._said.pop(key, None)

    def _present(self) -> float:
        return self._timer() if self._now is None else self._now

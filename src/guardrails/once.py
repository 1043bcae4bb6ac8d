"""Say something once: ever, once in a period, or once for each key."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable

DEFAULT_MOST_KEYS = 256


class Once:
    """Answers True the first time that it is asked about a key, and then False for a period.

    Any thread may ask, and no lock is held: a fork could leave one held for good. Two threads that ask
    at the same moment may both be answered True.

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
        self._seconds = seconds
        self._most = most
        self._timer = timer
        self._said: dict[Hashable, float] = {}

    def __call__(self, key: Hashable = None, *, now: float | None = None) -> bool:
        """Return whether this is the first time for the key; from now on the key is remembered.

        Args:
            key: identifies what is said, or what it is about.
            now: the present, in the seconds of the timer.
        """
        now = self._timer() if now is None else now
        said_at = self._said.get(key)
        if said_at is not None and now - said_at < self._seconds:
            return False
        # list() copies in one step. A loop over the dict would fail when another thread adds a key.
        remembered = {other: at for other, at in list(self._said.items()) if now - at < self._seconds}
        if len(remembered) >= self._most:
            return False
        remembered[key] = now
        self._said = remembered
        return True

    def forget(self, key: Hashable = None) -> None:
        """Let a key be said again the next time, also within its period."""
        self._said.pop(key, None)

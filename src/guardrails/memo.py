"""A bounded cache, off the hot path. A value may be made again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from cachetools import FIFOCache

Value = TypeVar("Value")


class Memo(Generic[Value]):
    """Remembers the last values that were made; any thread may ask.

    Args:
        most: how many values are remembered. A further one displaces the oldest.
    """

    def __init__(self, most: int) -> None:
        self._values: FIFOCache[Hashable, Value] = FIFOCache(most)
        self._writing = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of a key; `make` is called if none is remembered.

        Raises:
            TypeError: the key is not hashable.
        """
        try:
            return self._values[key]
        except KeyError:  # not remembered, so it is made below
            pass
        value = make()
        # cachetools is not safe for threads that write. A thread that would have to wait does not
        # remember its value: after a fork, another thread's lock is never released in the child.
        if self._writing.acquire(blocking=False):
            try:
                self._values[key] = value
            finally:
                self._writing.release()
        return value

    def __len__(self) -> int:
        return len(self._values)

"""Who may hold a request back: at most a quarter of a worker's threads, and never its only one.

How many threads there are is learnt by seeing them: no server says it, and the flags of the WSGI
environ are known to be wrong on some.
"""

import threading

THREADS_PER_WAITING_ONE = 4
"""How many threads of a process there must be for each one that waits."""

_MOST_COUNTED = 4096


class DelayQueue:
    """Counts the threads that serve requests, and those that wait."""

    def __init__(self) -> None:
        self._begin(0)

    def _begin(self, pid: int) -> None:
        self._pid = pid
        self._lock = threading.Lock()
        self._threads: set[int] = set()
        self._waiting = 0

    def may_wait(self, pid: int) -> bool:
        """Whether one more may wait in this process; notes the thread that asks."""
        if pid != self._pid:
            self._begin(pid)
        if len(self._threads) < _MOST_COUNTED:
            self._threads.add(threading.get_ident())
        return self._waiting < len(self._threads) // THREADS_PER_WAITING_ONE

    def enter(self) -> bool:
        """Take a place, if there is one."""
        with self._lock:
            if self._waiting >= len(self._threads) // THREADS_PER_WAITING_ONE:
                return False
            self._waiting += 1
            return True

    def leave(self) -> None:
        """Give the place back."""
        with self._lock:
            self._waiting -= 1

"""Which requests may be held back: at most a quarter of a worker's threads, and never its only one.

Not every server tells its number of threads, and some set the flags of the WSGI environ wrongly. So the
threads that serve requests are counted here.
"""

import threading

THREADS_PER_WAITING_ONE = 4
"""How many threads of a process there must be for each one that waits."""

_MOST_COUNTED = 4096


class DelayQueue:
    """Counts the threads of this process that serve requests, and those that wait."""

    def __init__(self) -> None:
        self.start_process()

    def start_process(self) -> None:
        """Forget the threads of the process that this one was forked from."""
        self._lock = threading.Lock()
        self._threads: set[int] = set()
        self._waiting = 0

    def may_wait(self) -> bool:
        """Return whether one more request may wait; this notes the thread that asks."""
        if len(self._threads) < _MOST_COUNTED:
            self._threads.add(threading.get_ident())
        return self._waiting < len(self._threads) // THREADS_PER_WAITING_ONE

    def enter(self) -> bool:
        """Take a place, and return whether there was one."""
        with self._lock:
            if self._waiting >= len(self._threads) // THREADS_PER_WAITING_ONE:
                return False
            self._waiting += 1
            return True

    def leave(self) -> None:
        """Give the place back."""
        with self._lock:
            self._waiting -= 1

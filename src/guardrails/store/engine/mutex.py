"""The one lock of a shared store, as two callables that make a C call each.

A robust process-shared pthread mutex, reached through `ctypes.PyDLL`, which keeps the GIL: a
worker never queues for its own GIL while it holds everybody's lock. It is of the error-checking
kind, so that unlocking what one does not hold is refused and harms nobody: `unlock` can stand
alone in a `finally`. The kernel tells the next holder when one died (EOWNERDEAD).

Where such a mutex does not prove itself, flock(2) on a descriptor per thread stands in. It drops
the GIL, so it is slower beside busy threads, and it tells nothing of a dead holder.
"""

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from functools import partial

from guardrails.store.layout import MUTEX_BYTES

BUSY = (errno.EBUSY, -1)
"""What a try returns when somebody else holds the lock: the mutex's word, and flock's."""

OWNER_DEAD = errno.EOWNERDEAD

_PROCESS_SHARED = 1
_ROBUST = 1
_ERROR_CHECK = 2
_LOCK_EX, _LOCK_NB, _LOCK_UN = 2, 4, 8

Attempt = Callable[[], int]


class RobustMutex:
    """A robust pthread mutex in shared memory, whose first byte is given."""

    def __init__(self, first_byte: ctypes.c_char) -> None:
        self._libc = ctypes.PyDLL(None)
        self._anchor = first_byte
        self._pointer = ctypes.c_void_p(ctypes.addressof(first_byte))
        self.try_lock: Attempt = partial(self._libc.pthread_mutex_trylock, self._pointer)
        self.unlock: Attempt = partial(self._libc.pthread_mutex_unlock, self._pointer)
        self.make_consistent: Attempt = partial(self._libc.pthread_mutex_consistent, self._pointer)

    def initialize(self) -> bool:
        """Make the mutex, and say whether it proved itself."""
        attributes = ctypes.create_string_buffer(MUTEX_BYTES)
        try:
            self._libc.pthread_mutexattr_init(attributes)
            codes = (
                self._libc.pthread_mutexattr_setpshared(attributes, _PROCESS_SHARED),
                self._libc.pthread_mutexattr_setrobust(attributes, _ROBUST),
                self._libc.pthread_mutexattr_settype(attributes, _ERROR_CHECK),
                self._libc.pthread_mutex_init(self._pointer, attributes),
            )
        except AttributeError:
            return False
        return not any(codes) and self._proves_itself()

    def _proves_itself(self) -> bool:
        """Lock twice, unlock twice, and let a thread die that holds it: C's own, so no Python runs."""
        first, second = self.try_lock(), self.try_lock()
        if first or second not in (errno.EBUSY, errno.EDEADLK):
            return False
        if (self.unlock(), self.unlock()) != (0, errno.EPERM):
            return False
        waiting = ctypes.CDLL(None)
        thread = ctypes.c_ulong()
        start = ctypes.cast(self._libc.pthread_mutex_trylock, ctypes.c_void_p)
        if waiting.pthread_create(ctypes.byref(thread), None, start, self._pointer):
            return False
        waiting.pthread_join(thread, None)
        return (self.try_lock(), self.make_consistent(), self.unlock(), self.try_lock()) == (
            OWNER_DEAD,
            0,
            0,
            0,
        ) and self.unlock() == 0


class FileLock:
    """flock on a file, with a descriptor of its own for each thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._flock = ctypes.PyDLL(None).flock
        self._local = threading.local()

    def try_lock(self) -> int:
        """0 when the lock is taken, -1 when somebody has it."""
        return int(self._flock(self._descriptor(), _LOCK_EX | _LOCK_NB))

    def unlock(self) -> int:
        """Give the lock back; nothing happens where this thread does not hold it."""
        return int(self._flock(self._descriptor(), _LOCK_UN))

    def make_consistent(self) -> int:
        """Nothing to do: flock says nothing of a dead holder."""
        return 0

    def _descriptor(self) -> int:
        opened = getattr(self._local, "opened", None)
        if opened is None:
            opened = self._local.opened = _Descriptor(self._path)
        return opened.number


class _Descriptor:
    """Closes itself when its thread ends."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_CREAT, 0o600)

    def __del__(self) -> None:
        os.close(self.number)

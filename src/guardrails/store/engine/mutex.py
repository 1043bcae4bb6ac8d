"""The lock of a shared store: `try_lock` and `unlock`, each of which makes one C call.

It is a robust process-shared pthread mutex. It is called through `ctypes.PyDLL`, which keeps the GIL,
so a thread that holds the mutex does not wait for the GIL. The mutex is of the error-checking kind:
unlocking it without holding it fails and does nothing, so `unlock` can be called in any `finally`. If
a holder dies, the next one gets EOWNERDEAD.

If such a mutex fails a self-test, flock(2) is used, on one descriptor for each thread. It releases the
GIL, so it is slower beside busy threads. It does not tell that a holder has died.
"""

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from functools import partial

from guardrails.store.layout import MUTEX_BYTES

BUSY = (errno.EBUSY, -1)
"""What `try_lock` returns if another thread or process holds the lock: of the mutex, and of flock."""

OWNER_DEAD = errno.EOWNERDEAD

_PROCESS_SHARED = 1
_ROBUST = 1
_ERROR_CHECK = 2
_LOCK_EX, _LOCK_NB, _LOCK_UN = 2, 4, 8

Attempt = Callable[[], int]


class RobustMutex:
    """A robust pthread mutex in shared memory, at a given first byte."""

    def __init__(self, first_byte: ctypes.c_char) -> None:
        self._libc = ctypes.PyDLL(None)
        self._anchor = first_byte
        self._pointer = ctypes.c_void_p(ctypes.addressof(first_byte))
        self.try_lock: Attempt = partial(self._libc.pthread_mutex_trylock, self._pointer)
        self.unlock: Attempt = partial(self._libc.pthread_mutex_unlock, self._pointer)
        self.make_consistent: Attempt = partial(self._libc.pthread_mutex_consistent, self._pointer)

    def initialize(self) -> bool:
        """Make the mutex, and return whether it passes the self-test."""
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
        """Lock it twice, unlock it twice, and let a thread die that holds it.

        That thread is made by pthread_create, so it runs no Python.
        """
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
    """flock(2) on a file, with one descriptor for each thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._flock = ctypes.PyDLL(None).flock
        self._local = threading.local()

    def try_lock(self) -> int:
        """Return 0 if this thread has the lock now, -1 if it is held already."""
        return int(self._flock(self._descriptor(), _LOCK_EX | _LOCK_NB))

    def unlock(self) -> int:
        """Release the lock. Nothing happens if this thread does not hold it."""
        return int(self._flock(self._descriptor(), _LOCK_UN))

    def make_consistent(self) -> int:
        """Do nothing: flock does not tell that a holder has died."""
        return 0

    def _descriptor(self) -> int:
        opened = getattr(self._local, "opened", None)
        if opened is None:
            opened = self._local.opened = _Descriptor(self._path)
        return opened.number


class _Descriptor:
    """A descriptor that is closed when its thread ends."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_CREAT, 0o600)

    def __del__(self) -> None:
        os.close(self.number)

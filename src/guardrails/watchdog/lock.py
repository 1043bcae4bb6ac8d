"""The lock of a watchdog: one runs for each name, and other processes can see which.

The lock is a flock on a small file, which also says which process holds the lock. The kernel drops
the flock when that process ends, so a killed watchdog blocks no other one. A watchdog that ends
removes its file while it still holds the lock. So a process that locks a file must look whether the
path still names that file; if not, it opens the path again.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from guardrails.errors import StoreError
from guardrails.store import directory
from guardrails.store.processes import Owner, is_dead, pid_namespace, this_process

_NOTE_SECONDS = 0.5
"""How long a process may hold the lock before the file says which process that is."""

_TAKE_SECONDS = 1.0
_RETRY_SECONDS = 0.01
_SERVER = "server"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

UNKNOWN = Owner(0, 0, 0)
"""A process that holds a lock and of which nothing else is known."""


class Lock:
    """The lock of one watchdog, held until it is released or its process ends.

    Args:
        name: what is watched: a store, or the workers of a server.

    Raises:
        StoreError: this user has no folder for the file.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = directory.own_folder() / f"watch-{_UNSAFE.sub('_', name)}.lock"
        self._descriptor = -1

    def take(self) -> bool:
        """Take the lock; return whether this process holds it now. May be called again and again.

        Raises:
            OSError: the file cannot be opened.
            StoreError: another user could have written the file.
        """
        deadline = time.monotonic() + _TAKE_SECONDS
        while self._descriptor < 0:
            descriptor = os.open(self.path, _OPEN | os.O_CREAT, 0o600)
            try:
                directory.verify_file(descriptor, self.path)
                locked = _flock(descriptor, fcntl.LOCK_EX)
                if locked and _is_at(self.path, descriptor):
                    self._descriptor, descriptor = descriptor, -1
                    break
                # A process that only looks holds the lock for an instant.
                if time.monotonic() > deadline or (not locked and self.owner() is not None):
                    return False
                time.sleep(_RETRY_SECONDS)
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        with suppress(OSError):  # on a full disk the watchdog runs, and its owner is unknown
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(this_process()).encode(), 0)
        return True

    def release(self) -> None:
        """Give the lock back and remove its file. Does nothing where this process has no lock."""
        if self._descriptor >= 0:
            with suppress(OSError):
                if _is_at(self.path, self._descriptor):
                    self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1

    def owner(self) -> Owner | None:
        """Return the process that holds the lock; UNKNOWN if that is unknown, None if it is free."""
        deadline = time.monotonic() + _NOTE_SECONDS
        while True:
            try:
                descriptor = os.open(self.path, _OPEN)
            except OSError:
                return None
            try:
                directory.verify_file(descriptor, self.path)
                owner = None
                if not _flock(descriptor, fcntl.LOCK_SH):
                    owner = _noted(os.pread(descriptor, 4096, 0))
                elif _is_at(self.path, descriptor):
                    return None
                # Otherwise its owner has just removed this file, and there may be another one.
            finally:
                os.close(descriptor)
            if owner is not None and owner.namespace != pid_namespace():
                return UNKNOWN
            if owner is not None and not is_dead(owner, owner.namespace):
                return owner
            if time.monotonic() > deadline:
                return UNKNOWN
            time.sleep(_RETRY_SECONDS)  # it holds the lock, and is about to write which process it is

    def owner_text(self) -> str:
        """Return the end of a sentence about the process that holds the lock."""
        return owner_text(self.owner() or UNKNOWN)


def owner_text(owner: Owner) -> str:
    """Return the end of a sentence about a process that holds a lock."""
    return f", pid {owner.pid}" if owner.pid else ", in another container or of an unknown pid"


def remove_abandoned() -> None:
    """Remove the lock files that killed watchdogs of this user have left. Never raises."""
    with suppress(OSError, StoreError):
        for path in directory.own_folder().glob("watch-*.lock"):
            with suppress(OSError, StoreError):
                _remove_abandoned(path)


def _remove_abandoned(path: Path) -> None:
    descriptor = os.open(path, _OPEN)
    try:
        directory.verify_file(descriptor, path)
        if _flock(descriptor, fcntl.LOCK_EX) and _is_at(path, descriptor):
            path.unlink()
    finally:
        os.close(descriptor)


def server_name(namespace: int, parent: int) -> str:
    """Return the name of the watchdog of a server.

    Args:
        namespace: the pid namespace in which the server runs.
        parent: the pid of the server's first process.
    """
    return f"{_SERVER} {namespace} {parent}"


def has_own_watchdog(namespace: int, parent: int) -> bool:
    """Return whether the workers of a server have a watchdog of their own; see `server_name`."""
    return bool(parent) and Lock(server_name(namespace, parent)).owner() is not None


def servers_with_a_watchdog() -> Iterator[tuple[int, Owner]]:
    """Give the servers of this user with a watchdog of their own: pid of the server, and watchdog."""
    for path in directory.own_folder().glob(f"watch-{_SERVER}_*_*.lock"):
        _, *numbers = path.stem.split("_")
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
            namespace, parent = map(int, numbers)
            owner = Lock(server_name(namespace, parent)).owner()
            if owner is not None and owner.pid:
                yield parent, owner


def _noted(note: bytes) -> Owner | None:
    try:
        return Owner(*json.loads(note))
    except (ValueError, TypeError):
        return None


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False

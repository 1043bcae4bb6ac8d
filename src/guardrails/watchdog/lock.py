"""The lock of a watchdog: one runs for each name, and other processes can see which.

The lock is a flock on a small file. The kernel drops the flock when the process that holds it ends,
so a killed watchdog blocks no other one. A watchdog that ends removes its file while it still holds
the lock. So a process that locks a file must look whether the path still names that file; if not, it
opens the path again.

The file has three lines of JSON: which process holds the lock, with which arguments it was started,
and what it watches (`Watched`). The last line is written anew at each look.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from guardrails.errors import StoreError
from guardrails.store import directory
from guardrails.store.processes import Owner, is_dead, pid_namespace, this_process
from guardrails.watchdog.watched import Watched

KEPT_SECONDS = 3600.0
"""How long the file of a killed watchdog is kept."""

_NOTE_SECONDS = 0.5
"""How long a process may hold the lock before the file says which process that is."""

_TAKE_SECONDS = 1.0
_RETRY_SECONDS = 0.01
_MOST_BYTES = 1 << 16
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

UNKNOWN = Owner(0, 0, 0)
"""A process that holds a lock and of which nothing else is known."""


class Note(NamedTuple):
    """What the file of a lock says.

    Attributes:
        owner: the process that holds the lock, or held it last.
        arguments: the arguments of `guardrails watch` with which it was started.
        watched: what it watches; None where it has not written that yet.
    """

    owner: Owner
    arguments: tuple[str, ...] = ()
    watched: Watched | None = None


class Running(NamedTuple):
    """A watchdog that runs: the name of its lock, as in the file's name, and what the file says."""

    name: str
    note: Note


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
        self._written = 0

    def take(self, arguments: Sequence[str] = ()) -> bool:
        """Take the lock; return whether this process holds it now. May be called again and again.

        Args:
            arguments: the arguments of `guardrails watch` with which this process was started.

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
            head = f"{json.dumps(this_process())}\n{json.dumps(list(arguments))}\n".encode()
            self._written = os.pwrite(self._descriptor, head, 0)
        return True

    def publish(self, watched: Watched) -> None:
        """Write what this process watches, for `guardrails watch status`. Never raises."""
        if self._descriptor >= 0 and self._written:
            with suppress(OSError):
                os.pwrite(self._descriptor, f"{json.dumps(watched)}\n".encode(), self._written)

    def note(self) -> Note | None:
        """Return what the file says, whether or not the lock is held; None where there is none."""
        try:
            descriptor = os.open(self.path, _OPEN)
        except OSError:
            return None
        try:
            directory.verify_file(descriptor, self.path)
            return _noted(os.pread(descriptor, _MOST_BYTES, 0))
        finally:
            os.close(descriptor)

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
                    note = _noted(os.pread(descriptor, _MOST_BYTES, 0))
                    owner = None if note is None else note.owner
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


def remove_abandoned(least_age: float = KEPT_SECONDS) -> None:
    """Remove the lock files that killed watchdogs of this user have left. Never raises.

    Args:
        least_age: how long ago a file was last written, in seconds. Newer files are kept, since
            `restart` finds there the options of a watchdog that was killed.
    """
    with suppress(OSError, StoreError):
        for path in directory.own_folder().glob("watch-*.lock"):
            with suppress(OSError, StoreError):
                if time.time() - path.stat().st_mtime >= least_age:
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
    return f"server {namespace} {parent}"


def has_own_watchdog(namespace: int, parent: int) -> bool:
    """Return whether the workers of a server have a watchdog of their own; see `server_name`."""
    return bool(parent) and Lock(server_name(namespace, parent)).owner() is not None


def running_watchdogs() -> Iterator[Running]:
    """Give each watchdog of this user that runs. One may hold two locks; it comes once."""
    found: dict[Owner | str, Running] = {}
    for path in sorted(directory.own_folder().glob("watch-*.lock")):
        lock = Lock(path.stem.removeprefix("watch-"))
        owner, note = lock.owner(), lock.note()
        if note is not None and note.watched is None:
            time.sleep(_RETRY_SECONDS)  # the line may have been half written
            note = lock.note()
        if owner is not None and note is not None:
            key = owner if owner.pid else lock.name
            before = found.get(key)
            if before is None or before.note.watched is None:
                found[key] = Running(lock.name, note._replace(owner=owner))
    yield from found.values()


def _noted(text: bytes) -> Note | None:
    """Read the lines of a lock's file. The last one may be half written, or left of a longer one."""
    owner, arguments, watched, *_ = (*map(_parsed, text.split(b"\n")), None, None, None)
    try:
        return Note(Owner(*owner), tuple(arguments or ()), Watched(*watched) if watched else None)
    except TypeError:
        return None


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
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

"""The lock of a watchdog: one of each kind runs, and everybody can see which."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress

from guardrails.store import directory
from guardrails.store.processes import Owner, is_dead, pid_namespace, this_process

_NOTE_SECONDS = 0.5
_SERVER = "server"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


class Lock:
    """The lock of a watchdog's name. Who has it is the one that runs.

    It is held for as long as the process lives, so what a dead one left blocks nothing.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = directory.own_folder() / f"watch-{_UNSAFE.sub('_', name)}.lock"
        self._descriptor = -1

    def take(self) -> bool:
        """Take it, if nobody has it; any number of times."""
        if self._descriptor >= 0:
            return True
        descriptor = os.open(
            self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600
        )
        try:
            directory.verify_file(descriptor, self.path)
            deadline = time.monotonic() + 1.0
            while not _flock(descriptor, fcntl.LOCK_EX):
                # Whoever only looks whether one runs has it for an instant.
                if self.owner() is not None or time.monotonic() > deadline:
                    return False
                time.sleep(0.01)
            with suppress(OSError):  # on a full disk it runs without a note of who it is
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(this_process()).encode(), 0)
            self._descriptor, descriptor = descriptor, -1
            return True
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def release(self, *, for_good: bool = False) -> None:
        """Give it back.   for_good: nobody will take it again, so its file goes too."""
        if self._descriptor >= 0:
            if for_good:
                self.path.unlink(missing_ok=True)
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1

    def owner(self) -> Owner | None:
        """Who has it: pid 0 where that is not known, None where nobody has it."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            directory.verify_file(descriptor, self.path)
            deadline = time.monotonic() + _NOTE_SECONDS
            while not _flock(descriptor, fcntl.LOCK_SH):
                owner = _noted(os.pread(descriptor, 4096, 0))
                if owner is not None and owner.namespace != pid_namespace():
                    return UNKNOWN
                if owner is not None and not is_dead(owner, owner.namespace):
                    return owner
                if time.monotonic() > deadline:
                    return UNKNOWN
                time.sleep(0.01)  # it has the lock, and is about to say who it is
            return None
        finally:
            os.close(descriptor)

    def of_whom(self) -> str:
        """In words."""
        return owner_text(self.owner() or UNKNOWN)


UNKNOWN = Owner(0, 0, 0)
"""Somebody of whom nothing can be said."""


def _noted(note: bytes) -> Owner | None:
    try:
        return Owner(*json.loads(note))
    except (ValueError, TypeError):
        return None


def owner_text(owner: Owner) -> str:
    """Who runs, in words."""
    return f", pid {owner.pid}" if owner.pid else ", in another container or of an unknown pid"


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def server_name(namespace: int, parent: int) -> str:
    """The name of a watchdog that belongs to a server, by its first process and where that runs."""
    return f"{_SERVER} {namespace} {parent}"


def has_its_own(namespace: int, parent: int) -> bool:
    """Whether the workers of a server have a watchdog of their own."""
    return bool(parent) and Lock(server_name(namespace, parent)).owner() is not None


def servers_with_their_own() -> Iterator[tuple[int, Owner]]:
    """The servers of this user, by their first processes, that have a watchdog, and who that is."""
    for path in directory.own_folder().glob(f"watch-{_SERVER}_*_*.lock"):
        _, *numbers = path.stem.split("_")
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
            namespace, parent = map(int, numbers)
            owner = Lock(server_name(namespace, parent)).owner()
            if owner is not None and owner.pid:
                yield parent, owner

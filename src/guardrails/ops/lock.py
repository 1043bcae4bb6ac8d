"""The lock of a watchdog: one of each kind runs, and everybody can see which."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from contextlib import suppress

from guardrails.store import place
from guardrails.store.processes import Owner, is_dead, pid_namespace, this_process

_NOTE_SECONDS = 0.5
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


class Lock:
    """The lock of a watchdog's name. Who has it is the one that runs.

    It is held for as long as the process lives, so what a dead one left blocks nothing.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = place.own_folder() / f"watch-{_UNSAFE.sub('_', name)}.lock"
        self._descriptor = -1

    def take(self) -> bool:
        """Take it, if nobody has it; any number of times."""
        if self._descriptor >= 0:
            return True
        descriptor = os.open(
            self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600
        )
        try:
            place.verify_file(descriptor, self.path)
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

    def release(self) -> None:
        """Give it back."""
        if self._descriptor >= 0:
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
            place.verify_file(descriptor, self.path)
            deadline = time.monotonic() + _NOTE_SECONDS
            while not _flock(descriptor, fcntl.LOCK_SH):
                note = os.pread(descriptor, 4096, 0)
                if note or time.monotonic() > deadline:
                    owner = Owner(*json.loads(note))
                    elsewhere = owner.namespace != pid_namespace()
                    return UNKNOWN if elsewhere or is_dead(owner, owner.namespace) else owner
                time.sleep(0.01)  # it has the lock, and is about to say who it is
            return None
        except (ValueError, TypeError):
            return UNKNOWN
        finally:
            os.close(descriptor)

    def of_whom(self) -> str:
        """In words."""
        return shown(self.owner() or UNKNOWN)


UNKNOWN = Owner(0, 0, 0)
"""Somebody of whom nothing can be said."""


def shown(owner: Owner) -> str:
    """Who runs, in words."""
    return f", pid {owner.pid}" if owner.pid else ", in another container or of an unknown pid"


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def server_name(parent: int) -> str:
    """The name of a watchdog that belongs to a server, by its first process."""
    return f"server {parent}"


def has_its_own(parent: int) -> bool:
    """Whether a server's workers have a watchdog of their own."""
    return bool(parent) and Lock(server_name(parent)).owner() is not None

"""The stores that a watchdog looks at."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from guardrails.errors import StoreError
from guardrails.once import Once
from guardrails.store import directory, lifecycle
from guardrails.store.processes import is_dead, pid_namespace
from guardrails.store.shared import SharedStore
from guardrails.watchdog.lock import Lock
from guardrails.watchdog.overdue import WatchedStore

log = logging.getLogger("guardrails.watch")

_SEARCH_SECONDS = 2.0
"""Time between two searches for stores with workers, which take long where there are many stores."""

_SILENT_SECONDS = 60.0

_REPEAT_SECONDS = 3600.0
"""After so long a log line is written again, if what it says still holds."""


class Stores:
    """The stores to look at: the named one, the only one, or all with workers of a server.

    All of them belong to this user. Another user decides what the files in that user's folder say.
    Only the stores that are watched are opened. Of the others, such as those of other sites of this
    user, only the table of workers is read.

    Args:
        name: the store to look at; None for all with workers of `parent`, or for the only one.
        parent: pid of the server whose workers are watched, if any.
        monotonic: returns the time in seconds.
    """

    def __init__(
        self,
        name: str | None,
        parent: int | None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._parent = parent
        self._monotonic = monotonic
        self._began = monotonic()
        self._search_at = -math.inf
        self._opened: dict[str, WatchedStore] = {}
        self._serving: set[str] = set()
        self._assigned: set[str] = set()
        self._only: Lock | None = None
        self._first_time = Once(_REPEAT_SECONDS)
        self.reason = ""

    def __call__(self) -> Iterable[WatchedStore]:
        self.reason = ""  # why there is no store to look at
        found = _found_stores()
        self._serving &= found.keys()
        for gone in self._opened.keys() - found.keys():
            del self._opened[gone]
            self._assigned.discard(gone)
        if self._name is not None:
            if self._name not in found:
                others = ", ".join(f"shm:{name}" for name in sorted(found))
                there_are = f"; the stores there are: {others}" if others else ""
                self._log_once(_waits(f"no store {self._name}") + there_are)
                return []
            return [self._open(self._name, found[self._name])]
        if not self._serving or self._monotonic() >= self._search_at:
            self._search_at = self._monotonic() + _SEARCH_SECONDS
            self._serving = {name for name, path in found.items() if self._serves(path)}
        names = self._the_only_one() if self._parent is None else self._of_the_server(found)
        return [self._open(name, found[name]) for name in names]

    def serving(self) -> list[str]:
        """Return the names of all stores with living workers, as in `--store`; none is kept open."""
        return sorted(f"shm:{name}" for name, path in _found_stores().items() if self._serves(path))

    def close(self) -> None:
        """Release the lock of the only store, if this watchdog has it."""
        if self._only is not None:
            self._only.release()

    def _open(self, name: str, path: Path) -> WatchedStore:
        if name not in self._opened:
            store = SharedStore(name, private=lifecycle.is_private(path), create=False)
            self._opened[name] = WatchedStore(store, f"shm:{name}")
        return self._opened[name]

    def _of_the_server(self, found: Mapping[str, Path]) -> Iterable[str]:
        # A store stays assigned once seen: all workers may be new and not have served yet.
        self._assigned |= self._serving & found.keys()
        if not self._assigned and self._monotonic() > self._began + _SILENT_SECONDS:
            self._log_once(
                "no worker of this server is on a scoreboard yet: each is after its first request "
                "through a throttle() with a shared store; memory: is not shared"
            )
        return sorted(self._assigned & found.keys())

    def _the_only_one(self) -> Iterable[str]:
        if len(self._serving) > 1:
            self._log_once(
                "there are several stores with workers, and none is watched: name one with --store: "
                + ", ".join(f"shm:{name}" for name in sorted(self._serving))
            )
            return []
        if not self._serving:
            self._log_once(_waits("no store with workers"))
            return []
        (name,) = self._serving
        if self._only is None or self._only.name != name:
            if self._only is not None:
                self._only.release()
            self._only = Lock(name)
        if not self._only.take():
            self._log_once(
                f"shm:{name} has a watchdog already{self._only.owner_text()}; this one waits for "
                "its end"
            )
            return []
        return [name]

    def _serves(self, path: Path) -> bool:
        """Whether living workers, of the server if there is one, are on the store's scoreboard."""
        namespace = pid_namespace()
        return any(
            self._parent is None or (owner.namespace, parent) == (namespace, self._parent)
            for owner, parent in lifecycle.registered_in(path)
            if not is_dead(owner, namespace)
        )

    def _log_once(self, what: str) -> None:
        self.reason = what
        if self._first_time(what, now=self._monotonic()):
            log.warning("watchdog: %s", what)


def _waits(what: str) -> str:
    return (
        f"there is {what} of uid {os.geteuid()} yet; the watchdog waits for one (--user watches the "
        "workers of another user)"
    )


def _found_stores() -> dict[str, Path]:
    """The files of this user's stores, by name."""
    found: dict[str, Path] = {}
    for folder in directory.folders():
        if folder.exists():
            with suppress(OSError, StoreError):
                directory.prepare_folder(folder)
                found = lifecycle.stores_in(folder) | found
    return found

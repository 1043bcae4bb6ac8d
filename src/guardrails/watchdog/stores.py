"""Which stores a watchdog looks at."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from guardrails.errors import StoreError
from guardrails.once import Once
from guardrails.store import directory, lifecycle
from guardrails.store.processes import pid_namespace
from guardrails.store.shared import SharedStore
from guardrails.watchdog.lock import Lock
from guardrails.watchdog.overdue import Watched

log = logging.getLogger("guardrails.watch")

_AROUND_SECONDS = 2.0
"""Between two looks at all the stores there are, which is dear where they are many."""

_SILENT_SECONDS = 60.0

_REPEAT_SECONDS = 3600.0
"""After so long a log line is written again, if what it says still holds."""


class Stores:
    """The stores to look at: the one that was named, the only one, or all with a server's workers.

    All of them are this user's own: what lies in another user's folder says what that user likes.
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
        self._around_at = -math.inf
        self._opened: dict[str, Watched] = {}
        self._serving: set[str] = set()
        self._ours: set[str] = set()
        self._only: Lock | None = None
        self._first_time = Once(_REPEAT_SECONDS)

    def __call__(self) -> Iterable[Watched]:
        found = _found_stores()
        for gone in self._opened.keys() - found.keys():
            del self._opened[gone]
            self._ours.discard(gone)
        for name in found.keys() - self._opened.keys():
            store = SharedStore(name, private=found[name], create=False)
            self._opened[name] = Watched(store, f"shm:{name}")
        if self._name is not None:
            if self._name not in found:
                self._say(_waits(f"no store {self._name}"))
            return [each for name, each in self._opened.items() if name == self._name]
        if not self._serving or self._monotonic() >= self._around_at:
            self._around_at = self._monotonic() + _AROUND_SECONDS
            self._serving = {name for name, each in self._opened.items() if self._serves(each)}
        return self._the_only_one() if self._parent is None else self._of_the_server()

    def _of_the_server(self) -> Iterable[Watched]:
        # Once its, always its: all its workers may be new ones that have not served yet.
        self._ours |= self._serving & self._opened.keys()
        if not self._ours and self._monotonic() > self._began + _SILENT_SECONDS:
            self._say(
                "none of this server's workers is seen yet: they are once they have served a request "
                "through a throttle() whose store is shared, which memory: is not"
            )
        return [each for name, each in self._opened.items() if name in self._ours]

    def _the_only_one(self) -> Iterable[Watched]:
        serving = {name: each for name, each in self._opened.items() if name in self._serving}
        if len(serving) > 1:
            self._say(
                "there are several stores, and none is watched: name one with --store: "
                + ", ".join(sorted(each.name for each in serving.values()))
            )
            return []
        if not serving:
            self._say(_waits("no store with workers"))
            return []
        ((name, only),) = serving.items()
        if self._only is None or self._only.name != name:
            if self._only is not None:
                self._only.release()
            self._only = Lock(name)
        if not self._only.take():
            self._say(f"{only.name} has a watchdog already{self._only.of_whom()}, and this one waits")
            return []
        return [only]

    def _serves(self, watched: Watched) -> bool:
        """Whether workers that live, of our server if we have one, are on its scoreboard."""
        ours = (pid_namespace(), self._parent)
        try:
            return any(
                self._parent is None or (each.namespace, each.parent) == ours
                for each in watched.store.workers()
            )
        except (StoreError, OSError):
            return False

    def _say(self, what: str) -> None:
        if self._first_time(what, now=self._monotonic()):
            log.warning("watchdog: %s", what)


def _waits(what: str) -> str:
    return (
        f"there is {what} of uid {os.geteuid()} yet, and it waits for one; those of another user are "
        "watched with --user"
    )


def _found_stores() -> dict[str, bool]:
    """This user's stores: by name, whether they are private."""
    found: dict[str, bool] = {}
    for folder in directory.folders():
        if folder.exists():
            with suppress(OSError, StoreError):
                directory.prepare_folder(folder)
                found = lifecycle.stores_in(folder) | found
    return found

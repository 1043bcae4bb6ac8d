"""Which stores a watchdog looks at."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import suppress

from guardrails.errors import StoreError
from guardrails.ops.lock import Lock
from guardrails.store import opening, place
from guardrails.store.shared import SharedStore
from guardrails.worker.case import Watched

log = logging.getLogger("guardrails.watch")


class Stores:
    """The stores to look at: the one that was named, the only one, or all with a server's workers.

    All of them are this user's own: what lies in another user's folder says what that user likes.
    """

    def __init__(self, name: str | None, parent: int | None) -> None:
        self._name = name
        self._parent = parent
        self._opened: dict[str, Watched] = {}
        self._ours: set[str] = set()
        self._only: Lock | None = None
        self._said = ""

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
        if self._parent is not None:
            # Once its, always its: all its workers may be new ones that have not served yet.
            self._ours |= {name for name, each in self._opened.items() if self._has_our_workers(each)}
            return [each for name, each in self._opened.items() if name in self._ours]
        return self._the_only_one()

    def _the_only_one(self) -> Iterable[Watched]:
        if len(self._opened) > 1:
            self._say(
                "there are several stores, and none is watched: name one with --store: "
                + ", ".join(sorted(each.name for each in self._opened.values()))
            )
            return []
        if not self._opened:
            self._say(_waits("no store"))
            return []
        ((name, only),) = self._opened.items()
        if self._only is None:
            self._only = Lock(name)
        if not self._only.take():
            self._say(f"{only.name} has a watchdog already{self._only.of_whom()}, and this one waits")
            return []
        return [only]

    def _has_our_workers(self, watched: Watched) -> bool:
        try:
            return any(each.parent == self._parent for each in watched.store.workers())
        except (StoreError, OSError):
            return False

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            log.warning("watchdog: %s", what)


def _waits(what: str) -> str:
    return (
        f"there is {what} of uid {os.geteuid()} yet, and it waits for one; those of another user are "
        "watched with --user"
    )


def _found_stores() -> dict[str, bool]:
    """This user's stores: by name, whether they are private."""
    found: dict[str, bool] = {}
    for folder in place.folders():
        if folder.exists():
            with suppress(OSError, StoreError):
                place.prepare_folder(folder)
                found = opening.stores_in(folder) | found
    return found

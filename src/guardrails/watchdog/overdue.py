"""The stores that are watched, the overdue requests, and what the scoreboards showed last."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from guardrails.once import Once
from guardrails.paths import plain_text
from guardrails.store.contract import Store
from guardrails.store.processes import Owner
from guardrails.store.records import InFlight, Worker
from guardrails.worker.extra_worker import ExtraWorker

Key = tuple[str, Owner, int]


class WatchedStore(NamedTuple):
    """A store whose scoreboard is looked at.

    Args:
        store: the store.
        name: what log lines and events call it.
    """

    store: Store
    name: str


def overdue_key(watched: WatchedStore, request: InFlight) -> Key:
    """Return what identifies a request: its store, its worker and its generation there."""
    return watched.name, request.owner, request.generation


class OverdueRequest:
    """A request that takes too long, and the steps that are taken against it and its worker.

    Args:
        watched: the store on whose scoreboard it is.
        request: the request, as the last look found it.
        worker: its worker; None where the scoreboard does not have it.
        limit: age in seconds at which it became overdue.
    """

    def __init__(
        self, watched: WatchedStore, request: InFlight, worker: Worker | None, limit: float
    ) -> None:
        self.watched = watched
        self.request = request
        self.worker = worker
        self.limit = limit
        # The escalation: what is still to be done, and when.
        self.steps: list[str | int] = []
        self.next_at = 0.0
        self.last_step = ""
        self.is_interrupted = self.is_signalled = self.is_given_up = False
        self.failed_at = -math.inf
        # The worker that its server was asked for, so that another one accepts connections meanwhile.
        self.extra: ExtraWorker | None = None
        # The other requests of its worker: looks in a row that found none, and when that counts.
        self.looks_alone = 0
        self.hurry_at = 0.0
        # Its client.
        self.is_penalized = False
        self.penalize_failures = 0
        # The reports about it.
        self.stack_is_shown = False
        self.report_at = 0.0
        self.cpu_before = self.age_before = self.cpu_used = 0.0
        self.first_time = Once()

    @property
    def key(self) -> Key:
        """What identifies the request."""
        return overdue_key(self.watched, self.request)

    @property
    def is_under_way(self) -> bool:
        """Whether its worker was sent a signal, and more may follow."""
        return self.is_signalled and bool(self.steps)

    def __str__(self) -> str:
        request = self.request
        # A path with a space in it could imitate the rest of this line.
        path = plain_text(request.path).replace(" ", "%20")
        return (
            f"{request.method} {path} from {request.client or 'an unknown client'}, "
            f"{request.age_seconds:.0f} s old, in worker {request.pid}"
        )

    def facts(self) -> dict[str, object]:
        """The facts that each event about it has."""
        request = self.request
        return {
            "pid": request.pid,
            "method": request.method,
            "path": plain_text(request.path),
            "host": request.host,
            "client": request.client,
            "age": f"{request.age_seconds:.1f}",
            "thread": f"{request.thread:#x}",
            "store": self.watched.name,
        }


class ScoreboardView:
    """What the last look at the scoreboards of all watched stores found.

    Attributes:
        stores: the watched stores.
        failed: names of the stores that could not be read.
        workers: the workers of all stores.
        overdue: the overdue requests of all stores.
        ending: the workers that were sent a signal, and have not ended yet.
        is_partial: whether a store could not be read when requests were counted last.
    """

    def __init__(self) -> None:
        self.stores: list[WatchedStore] = []
        self.failed: set[str] = set()
        self.workers: dict[Owner, Worker] = {}
        self.overdue: dict[Key, OverdueRequest] = {}
        self.ending: set[Owner] = set()
        self.is_partial = False

    def begin(self, stores: Iterable[WatchedStore]) -> None:
        """Begin a new look, at these stores."""
        self.stores = list(stores)
        self.workers = {}

    def readable(self) -> set[str]:
        """The names of the stores that could be read."""
        return {watched.name for watched in self.stores} - self.failed

    def overdue_in_worker(self, overdue: OverdueRequest) -> list[OverdueRequest]:
        """All overdue requests in the same worker."""
        owner = overdue.request.owner
        return [each for each in self.overdue.values() if each.request.owner == owner]

    def others_in_worker(self, overdue: OverdueRequest) -> int:
        """How many requests in the same worker, in any store, are not overdue.

        One request that passes two stores is counted once, by its thread. A store that cannot be
        read makes the count partial.

        Raises:
            StoreError: the store of the request itself cannot be read.
        """
        overdue_threads = {each.request.thread for each in self.overdue_in_worker(overdue)}
        found = [overdue.watched.store.requests()]
        self.is_partial = False
        for watched in self.stores:
            if watched.name != overdue.watched.name:
                try:
                    found.append(watched.store.requests())
                except Exception:  # the look at this store logs it
                    self.is_partial = True
        threads = {
            other.thread
            for requests in found
            for other in requests
            if other.owner == overdue.request.owner
        }
        return len(threads - overdue_threads)

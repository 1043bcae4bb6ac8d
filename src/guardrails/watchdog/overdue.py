"""A request that takes too long, as a watchdog knows it."""

from __future__ import annotations

import math
from typing import NamedTuple

from guardrails.once import Once
from guardrails.paths import plain_text
from guardrails.store.contract import InFlight, Store, Worker
from guardrails.store.processes import Owner


class Watched(NamedTuple):
    """A store to look at. name: what it is called in events."""

    store: Store
    name: str


class OverdueRequest:
    """One request that is too old, and how far up the ladder its worker is."""

    def __init__(
        self, watched: Watched, request: InFlight, worker: Worker | None, limit: float
    ) -> None:
        self.watched = watched
        self.request = request
        self.worker = worker
        self.limit = limit
        self.steps: list[str | int] = []
        self.next_at = self.hurry_at = self.tell_at = 0.0
        self.last_step = ""
        self.looks_alone = self.penalize_failures = 0
        self.failed_at = -math.inf
        self.cpu_before = self.age_before = self.burnt = 0.0
        self.shown = self.blamed = self.interrupted = self.signalled = self.given_up = False
        self.first_time = Once()

    @property
    def key(self) -> tuple[str, Owner, int]:
        """What tells it from every other request."""
        return self.watched.name, self.request.owner, self.request.generation

    @property
    def is_begun(self) -> bool:
        """Whether its worker was sent a signal, and more may follow."""
        return self.signalled and bool(self.steps)

    def __str__(self) -> str:
        request = self.request
        return (
            # With a space in its path somebody could write the rest of this line himself.
            f"{request.method} {plain_text(request.path).replace(' ', '%20')} from "
            f"{request.client or 'an unknown client'}, {request.age_seconds:.0f} s old, in worker "
            f"{request.pid}"
        )

    def facts(self) -> dict[str, object]:
        """What a command is told in its environment."""
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

"""Looks at the size of a worker after its responses, and lets it retire."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from typing import TYPE_CHECKING

from guardrails.once import Once
from guardrails.store.contract import Store, StoreRequest
from guardrails.store.processes import process_facts
from guardrails.worker import memory, retire
from guardrails.worker.process import WorkerProcess, current_process
from guardrails.worker.server import Server

if TYPE_CHECKING:
    from guardrails.worker.size import SizeLimit

log = logging.getLogger("guardrails")


_DEAR_INTERVAL = 1.0
"""Seconds between two looks at the unshared size, and between two attempts to retire."""

_SAY_AGAIN = 600.0
_MB = 1 << 20
_RANDOM = random.SystemRandom()


class SizeGuard:
    """Looks at the size of the process it is in."""

    def __init__(self, limit: SizeLimit) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._process: WorkerProcess | None = None

    def begin(self, server: Server, _store: Store) -> None:
        """At the first request of a process."""
        limit, process = self._limit, current_process()
        # Whoever was forked from may have held it.
        self._lock = threading.Lock()
        self._server = server
        factor = _RANDOM.uniform(1 - limit.jitter, 1)
        self._unshared = None if limit.unshared is None else round(limit.unshared * factor)
        self._resident = None if limit.resident is None else round(limit.resident * factor)
        if limit.share is not None:
            self._unshared = self._of_the_cgroup(limit.share, factor)
        facts = process_facts(process.pid)
        self._born = time.monotonic() - (facts.age_seconds if facts else 0.0)
        self._requests = 0
        self._until_look = limit.every
        self._size = memory.resident_bytes(current_process().statm)
        self._most_growth, self._growth = 0, "it has not grown since its first request"
        self._dear_at = 0.0
        self._may_say_again = Once(_SAY_AGAIN)
        self._process = process  # the last: other threads look as soon as it is there

    def look(self, open_request: StoreRequest) -> None:
        """After a response."""
        if self._process is not current_process() or not self._lock.acquire(blocking=False):
            return
        try:
            self._requests += 1
            self._until_look -= 1
            if self._until_look <= 0:
                self._until_look = self._limit.every
                self._measure(open_request)
        finally:
            self._lock.release()

    def _measure(self, open_request: StoreRequest) -> None:
        size = memory.resident_bytes(current_process().statm)
        growth, self._size = size - self._size, size
        if growth > self._most_growth:
            self._most_growth = growth
            request = f"{open_request.method:.20} {open_request.path:.200}"
            # Another request may have grown it, in another thread or since the last look.
            self._growth = f"it grew most, by {growth / _MB:.1f} MB, when {request!a} ended"
        now = time.monotonic()
        limits = [each for each in (self._unshared, self._resident) if each is not None]
        if not limits or size <= min(limits) or now < self._dear_at:
            return
        self._dear_at = now + _DEAR_INTERVAL
        unshared = memory.unshared_bytes()
        over_unshared = self._unshared is not None and unshared > self._unshared
        over_resident = self._resident is not None and size > self._resident
        age = now - self._born
        if (over_unshared or over_resident) and age >= self._limit.min_lifetime:
            self._retire(size, unshared, age, now)

    def _retire(self, size: int, unshared: int, age: float, now: float) -> None:
        """Retire, unless it is about it, somebody else is, or nobody would start it again."""
        if retire.is_retiring():
            return
        possible = retire.may_retire()
        if not possible and not self._may_say_again(now=now):
            return

        def say(what: str = "it finishes its requests and retires") -> None:
            log.warning(
                "size: worker %d takes %.1f MB, %.1f MB of them unshared, after %d requests and %d s; "
                "%s: %s",
                os.getpid(),
                size / _MB,
                unshared / _MB,
                self._requests,
                age,
                self._growth,
                what,
            )

        if possible:
            retire.retire(say, one_at_a_time=True)
        else:
            say(f"it goes on, since {retire.why_not()}")

    def _of_the_cgroup(self, share: float, factor: float) -> int | None:
        room = memory.cgroup_limit()
        if room is None or not self._server.processes:
            log.warning(
                "size: %.0f%% of what the workers may have is no size, since %s: name a size, as in "
                'guardrails.size_limit("300M")',
                share * 100,
                "nothing limits the memory of this cgroup"
                if room is None
                else f"{self._server.name} does not say how many workers it has",
            )
            return None
        return round(room * share * factor) // self._server.processes

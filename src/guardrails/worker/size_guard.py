"""Checks the size of a worker after its responses, and lets a worker that is too large retire.

The resident size is one number of /proc, so it is read each time. The unshared size is expensive: the
kernel walks all memory of the process. It is read only when the resident size is above a limit.
"""

from __future__ import annotations

import logging
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

_UNSHARED_INTERVAL = 1.0
"""Seconds between two measurements of the unshared size, and so between two attempts to retire."""

_REPORT_INTERVAL = 600.0
"""Seconds between two reports of a worker that is too large and cannot retire."""

_MB = 1 << 20
_RANDOM = random.SystemRandom()


class SizeGuard:
    """Checks the size of the process that calls.

    Args:
        limit: how large the process may grow.
    """

    def __init__(self, limit: SizeLimit) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._process: WorkerProcess | None = None

    def start(self, server: Server, _store: Store) -> None:
        """Draw the limits of this process. A hook for its first request."""
        limit, process = self._limit, current_process()
        self._lock = threading.Lock()  # a thread of the parent may have held it at the fork
        self._server = server
        factor = _RANDOM.uniform(1 - limit.jitter, 1)
        self._unshared = None if limit.unshared is None else round(limit.unshared * factor)
        self._resident = None if limit.resident is None else round(limit.resident * factor)
        if limit.share is not None:
            self._unshared = self._share_of_cgroup(limit.share, factor)
        facts = process_facts(process.pid)
        self._born = time.monotonic() - (facts.age_seconds if facts else 0.0)
        self._requests = 0
        self._until_check = limit.every
        self._size = memory.resident_bytes(process.statm)
        self._most_growth, self._growth = 0, "it has not grown since its first request"
        self._next_unshared = 0.0
        self._may_report = Once(_REPORT_INTERVAL)
        self._process = process  # last: other threads check the size as soon as it is set

    def response_over(self, open_request: StoreRequest) -> None:
        """Count a response, and check the size when it is time. A hook after each response."""
        if self._process is not current_process() or not self._lock.acquire(blocking=False):
            return
        try:
            self._requests += 1
            self._until_check -= 1
            if self._until_check <= 0:
                self._until_check = self._limit.every
                self._check(open_request)
        finally:
            self._lock.release()

    def _check(self, open_request: StoreRequest) -> None:
        process = current_process()
        size = memory.resident_bytes(process.statm)
        growth, self._size = size - self._size, size
        if growth > self._most_growth:
            self._most_growth = growth
            request = f"{open_request.method:.20} {open_request.path:.200}"
            # Not "by": a request of another thread, or one since the last check, may be the cause.
            self._growth = f"it grew most, by {growth / _MB:.1f} MB, when {request!a} ended"
        now = time.monotonic()
        limits = [each for each in (self._unshared, self._resident) if each is not None]
        if not limits or size <= min(limits) or now < self._next_unshared:
            return
        self._next_unshared = now + _UNSHARED_INTERVAL
        unshared = memory.unshared_bytes()
        over_unshared = self._unshared is not None and unshared > self._unshared
        over_resident = self._resident is not None and size > self._resident
        age = now - self._born
        if (over_unshared or over_resident) and age >= self._limit.min_lifetime:
            facts = (
                f"size: worker {process.pid} takes {size / _MB:.1f} MB, {unshared / _MB:.1f} MB of "
                f"them unshared, after {self._requests} requests and {age:.0f} s; {self._growth}"
            )
            self._retire(facts, now)

    def _retire(self, facts: str, now: float) -> None:
        """Retire, unless that is not possible, or another worker of the store is retiring."""
        if retire.is_retiring():
            return
        if retire.may_retire():
            retire.retire(
                lambda: log.warning("%s: it finishes its requests and retires", facts),
                one_at_a_time=True,
            )
        elif self._may_report(now=now):
            log.warning("%s: it goes on, since %s", facts, retire.why_not())

    def _share_of_cgroup(self, share: float, factor: float) -> int | None:
        cgroup_bytes = memory.cgroup_limit()
        if cgroup_bytes is None or not self._server.processes:
            log.warning(
                "size: unshared memory has no limit: %.0f%% of the workers' memory is unknown, since "
                '%s: name a size, as in guardrails.size_limit("300M")',
                share * 100,
                "nothing limits the memory of this cgroup"
                if cgroup_bytes is None
                else f"{self._server.name} does not say how many workers it has",
            )
            return None
        return round(cgroup_bytes * share * factor) // self._server.processes

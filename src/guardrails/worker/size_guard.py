"""Checks the size of a worker after its responses, and lets a worker that is too large retire.

The resident size is one number of /proc, so it is read each time. The unshared size is expensive: the
kernel walks all memory of the process. It is read only when the resident size is above a limit. Open
files and threads are counted at most ten times a second.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from typing import TYPE_CHECKING

from guardrails.once import Once
from guardrails.store.contract import Store, StoreRequest
from guardrails.store.processes import limits_of, process_facts
from guardrails.worker import memory, retire, usage
from guardrails.worker.process import WorkerProcess, current_process
from guardrails.worker.server import Server

if TYPE_CHECKING:
    from guardrails.worker.size import SizeLimit

log = logging.getLogger("guardrails")

_UNSHARED_INTERVAL = 1.0
"""Seconds between two measurements of the unshared size, and so between two attempts to retire."""

_COUNT_INTERVAL = 0.1
"""Seconds between two counts of open files and threads: the system lists them all."""

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
        self._most_files = None if limit.files is None else self._files_limit(limit.files, factor)
        self._most_threads = None if limit.threads is None else round(limit.threads * factor)
        facts = process_facts(process.pid)
        self._born = time.monotonic() - (facts.age_seconds if facts else 0.0)
        self._requests = 0
        self._until_check = limit.every
        self._size = memory.resident_bytes(process.statm)
        self._most_growth, self._growth = 0, "it has not grown since its first request"
        self._next_unshared = self._next_count = 0.0
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
        if now >= self._next_count and (self._most_files is not None or self._most_threads is not None):
            self._next_count = now + _COUNT_INTERVAL
            self._check_counts(now)
        limits = [each for each in (self._unshared, self._resident) if each is not None]
        if not limits or size <= min(limits) or now < self._next_unshared:
            return
        self._next_unshared = now + _UNSHARED_INTERVAL
        unshared = memory.unshared_bytes()
        over_unshared = self._unshared is not None and unshared > self._unshared
        over_resident = self._resident is not None and size > self._resident
        if over_unshared or over_resident:
            what = f"takes {size / _MB:.1f} MB, {unshared / _MB:.1f} MB of them unshared"
            self._retire(what, f"; {self._growth}", now)

    def _check_counts(self, now: float) -> None:
        files, threads = usage.open_files(), usage.threads()
        if self._most_files is not None and files > self._most_files:
            soft = limits_of(os.getpid())["NOFILE"][0]
            self._retire(f"has {files} open files of {soft}", "", now)
        elif self._most_threads is not None and threads > self._most_threads:
            self._retire(f"has {threads} threads", "", now)

    def _retire(self, what: str, more: str, now: float) -> None:
        """Retire, unless the worker is too young, cannot, or another one of the store is retiring."""
        age = now - self._born
        if retire.is_retiring() or age < self._limit.min_lifetime:
            return
        facts = f"size: worker {current_process().pid} {what}"
        facts += f", after {self._requests} requests and {age:.0f} s{more}"
        if retire.may_retire():
            retire.retire(
                lambda: log.warning("%s: it finishes its requests and retires", facts),
                one_at_a_time=True,
            )
        elif self._may_report(now=now):
            log.warning("%s: it goes on, since %s", facts, retire.why_not())

    def _files_limit(self, files: float, factor: float) -> int | None:
        """The most open files: a number, or a part of the soft limit."""
        if isinstance(files, int):
            return round(files * factor)
        soft = limits_of(os.getpid()).get("NOFILE", (-1, -1))[0]
        if soft < 0:
            log.warning(
                "size: open files have no limit: %.0f%% of NOFILE is unknown, since that is unlimited: "
                "name a number, as in guardrails.size_limit(files=900)",
                files * 100,
            )
            return None
        return round(soft * files * factor)

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

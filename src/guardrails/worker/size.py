"""The size guard: a worker that has grown too large retires. Successor of Apache::SizeLimit.

It is a cure for slow leaks; what grows in one request is stopped by a limit of DATA. After a response
one number of /proc is read; only when the whole process is beyond the limit is it looked at how much
of that no other process shares, which is dear.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

from guardrails.errors import ConfigurationError
from guardrails.once import Once
from guardrails.store.contract import Store, StoreRequest
from guardrails.store.processes import process_facts
from guardrails.units import parse_count, parse_percent, parse_seconds, parse_size
from guardrails.worker import memory, retire
from guardrails.worker.process import WorkerProcess, current_process
from guardrails.worker.server import Server, gunicorn_server, running_server

log = logging.getLogger("guardrails")

DEFAULT_SHARE = "80%"
_DEAR_INTERVAL = 1.0
"""Seconds between two looks at the unshared size, and between two attempts to retire."""

_SAY_AGAIN = 600.0
_MB = 1 << 20
_RANDOM = random.SystemRandom()


@dataclass(frozen=True)
class SizeLimit:
    """How large a worker may grow. It is put in force by `apply()`, or by calling it as a hook.

    unshared, resident: bytes, or None.   share: the part of its cgroup's memory, shared out over the
    workers, that stands in for both.   every: requests from look to look.   jitter: the part of the
    limit by which it is drawn smaller, for each worker anew.   min_lifetime: seconds.
    """

    unshared: int | None
    resident: int | None
    share: float | None
    every: int
    jitter: float
    min_lifetime: float

    def apply(self) -> None:
        """Look after each response from now on; a second time it changes nothing."""
        self._apply(running_server({}))

    def __call__(self, _server: Any = None, _worker: Any = None, *more: Any, **_named: Any) -> None:
        """The same as `apply()`, whatever a server's hook is called with.

        Two arguments have names, since gunicorn counts them before it takes a `post_fork` hook.
        """
        found = [gunicorn_server(each) for each in (_server, _worker, *more)]
        self._apply(next((each for each in found if each is not None), None) or running_server({}))

    def _apply(self, server: Server) -> None:
        retire.remember_server(server)
        process = current_process()
        if self not in process.size_guards:
            guard = process.size_guards[self] = SizeGuard(self)
            process.hooks.when_started(guard.begin)
            process.hooks.after_response += (guard.look,)


def size_limit(
    unshared: str | int | None = None,
    *,
    resident: str | int | None = None,
    every: int = 1,
    jitter: str | float = "10%",
    min_lifetime: str | float = "1m",
) -> SizeLimit:
    """Describe how large a worker may grow before it retires; nothing happens yet.

    unshared: memory that no other process has too, as "300M"; or a part of what the cgroup may have,
    shared out over the workers, as "80%", which is the default.   resident: all that is in memory,
    shared or not.   every: look after so many requests.   jitter: each worker draws its limit up to
    this part smaller, so that not all retire at once.   min_lifetime: no younger worker retires.

    A worker that is too large finishes its requests and ends in its server's own way, under gunicorn,
    uWSGI and mod_wsgi; elsewhere one log line says so. One worker at a time. It needs a throttle in
    front of the app, which sees the responses.

    Use it beside `throttle()`: `guardrails.size_limit("300M").apply()`, or as a hook of a server's.
    Raises ConfigurationError for what is wrong.
    """
    share = None
    if unshared is None and resident is None:
        unshared = DEFAULT_SHARE
    if isinstance(unshared, str) and unshared.strip().endswith("%"):
        share, unshared = _share(unshared, "unshared"), None
    parse_count(every, "every", most=1_000_000)
    part = 0.0 if jitter in (0, "0", "0%") else _share(jitter, "jitter")
    if part >= 1:
        raise ConfigurationError(f'jitter: {jitter!r} leaves nothing of the limit: write such as "10%"')
    return SizeLimit(
        None if unshared is None else _size(unshared, "unshared"),
        None if resident is None else _size(resident, "resident"),
        share,
        every,
        part,
        parse_seconds(min_lifetime, "min_lifetime"),
    )


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


def _share(value: str | float, argument: str) -> float:
    try:
        share = parse_percent(value, argument)
    except ConfigurationError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigurationError(
            f'{argument}: {value!r} is no part of a whole: write a percentage from 1 to 100, as "10%"'
        )
    return share


def _size(value: str | int, argument: str) -> int:
    size = parse_size(value, argument)
    if size < _MB:
        raise ConfigurationError(
            f"{argument}: {value!r} is less than any worker takes: write at least 1M, such as "
            f'"300M", or "{DEFAULT_SHARE}" of what the cgroup may have'
        )
    return size

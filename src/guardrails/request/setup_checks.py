"""Checks of how guardrails is set up.

The arguments of `throttle()` are checked when it is called (build_checks.py): a mistake is a
ConfigurationError. Other mistakes only show while requests come: the guards do not fit the server, or
its traffic. Each of them is a warning under a code that stays the same, and never changes what happens
to a request. Each code has a section in docs/errors.md with cause, remedy and how to silence it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from guardrails.client.keys import shown_by
from guardrails.errors import ConfigurationError
from guardrails.guards.bound import BoundGuard
from guardrails.once import Once
from guardrails.request.delay_queue import THREADS_PER_WAITING_ONE
from guardrails.request.routes import MOST_WITHOUT_KEY
from guardrails.store.contract import Store
from guardrails.store.memory import MemoryStore
from guardrails.store.records import GuardCounters
from guardrails.worker.server import Server

log = logging.getLogger("guardrails")

CODES = (
    "undeclared-proxy",
    "ignored-forwarding-header",
    "no-client-address",
    "everything-trusted",
    "client-is-proxy",
    "one-client",
    "guard-met-twice",
    "guard-never-matched",
    "cap-above-threads",
    "wait-without-threads",
    "by-gives-nothing",
    "no-guards",
    "memory-store-per-worker",
    "unnamed-store-moves",
    "built-in-a-request",
)

LONG_ENOUGH = 24 * 3600
"""Seconds after which a guard should have met a request."""

MANY_REQUESTS = 10_000
"""Requests of one process of which one should have asked for the path of each guard."""

monotonic = time.monotonic

_MOST_SUBJECTS = 16
"""How many guards or peers a code is said of at most: clients may bring some about."""

_NO_COUNTERS = GuardCounters()


class SetupChecks:
    """The checks of one throttle while requests come. Each warning is said once in each process.

    Args:
        silence: the codes that are not said.

    Raises:
        ConfigurationError: a code is unknown.
    """

    def __init__(self, silence: str | Iterable[str] = ()) -> None:
        codes = (silence,) if isinstance(silence, str) else tuple(silence)
        for code in codes:
            if code not in CODES:
                raise ConfigurationError(
                    f"silence: {code!r} is not the code of a check: use " + ", ".join(CODES)
                )
        self._first = {code: Once(most=_MOST_SUBJECTS) for code in CODES if code not in codes}
        self._started_at = 0.0
        self._requests = 0

    def warn(self, code: str, about: object, message: str, *values: object) -> None:
        """Log a warning, unless it is silenced or was logged about this guard or peer.

        Args:
            code: the code, which ends the sentence.
            about: the guard or the peer.
            message: the sentence, in the format of `logging`.
            values: what the sentence is filled with.
        """
        first = self._first.get(code)
        if first is not None and first(about):
            log.warning(f"{message} [%s]", *values, code)  # noqa: G004 - the code ends each sentence

    def start_process(
        self, guards: Iterable[BoundGuard], server: Server, store: Store, environ: dict[str, Any]
    ) -> None:
        """At the first request of a process: compare guards and store with what its server does.

        Args:
            guards: the guards.
            server: what runs this process.
            store: the store that this throttle was given.
            environ: the environ of the request.
        """
        self._started_at = monotonic()
        self._requests = 0
        self._check_store(server, store, environ)
        for bound in guards:
            self._check_cap(bound, server)
            if bound.wait and server.threads is not None and server.threads < THREADS_PER_WAITING_ONE:
                self.warn(
                    "wait-without-threads",
                    bound.name,
                    "%s: wait= has no effect on %s: at most one in %d of a process's threads may "
                    "wait, so that the others go on serving; give each process at least %d threads, "
                    "or leave wait= out",
                    bound.name,
                    server,
                    THREADS_PER_WAITING_ONE,
                    THREADS_PER_WAITING_ONE,
                )

    def check_traffic(self, guards: Mapping[str, BoundGuard], store: Store, requests: int) -> None:
        """After so many requests: warn of the guards that no request has met.

        This is said of a guard whose path no request has asked for, and after a day of any guard.

        Args:
            guards: the guards by their names.
            store: where they count.
            requests: how many requests have come since the last call.
        """
        self._requests += requests
        after_a_day = monotonic() - self._started_at >= LONG_ENOUGH
        if not after_a_day and self._requests < MANY_REQUESTS:
            return
        bound_guards = list(guards.values())
        met = {bound.number for bound in bound_guards if bound.met}
        counters = store.counters()
        for bound in bound_guards:
            # One that varies may have met requests in other workers and required nothing for them.
            if bound.number in met or bound.varies or bound.usual_requirement is None:
                continue
            if not after_a_day and bound.path_met:
                continue
            if counters.get(bound.name, _NO_COUNTERS) == _NO_COUNTERS:
                self.warn(
                    "guard-never-matched",
                    bound.name,
                    "%s: no request that it covers has come in %s: compare its path, methods and "
                    "host with what clients ask for (the case of a path counts), or leave it out",
                    bound.name,
                    "a day" if after_a_day else f"the first {self._requests}",
                )

    def warn_no_guards(self) -> None:
        """Warn of a throttle that was given no guards."""
        self.warn(
            "no-guards",
            "",
            "throttle() was given no guards, so it refuses nothing: give it some, as in "
            'throttle(app, SpeedLimit("120/minute")); if it only serves the scoreboard or a watchdog, '
            'write silence="no-guards"',
        )

    def warn_met_twice(self, bound: BoundGuard) -> None:
        """Warn of a guard that nested throttles meet twice in one request."""
        self.warn(
            "guard-met-twice",
            bound.name,
            "%s: nested throttles meet it twice in one request, and it is charged once, so the inner "
            "one does nothing: leave one of them out, or give the inner one another path, figure or "
            "name",
            bound.name,
        )

    def warn_gives_nothing(self, bound: BoundGuard) -> None:
        """Warn of a guard whose `by` has given no request a key."""
        if bound.by_client:
            return  # then no request has an address, which a check of its own says
        by = getattr(bound.guard, "by", "client")
        self.warn(
            "by-gives-nothing",
            bound.name,
            "%s: by=%s gave none of the first %d requests a key, so the guard has not applied to any: "
            "correct it, or name what counts instead, as in by=%s",
            bound.name,
            shown_by(by),
            MOST_WITHOUT_KEY,
            shown_by([*by, "client"] if isinstance(by, tuple) else [by, "client"]),
        )

    def _check_store(self, server: Server, store: Store, environ: dict[str, Any]) -> None:
        several = bool(environ.get("wsgi.multiprocess"))
        if server.processes is not None:
            several = server.processes > 1
        if several and isinstance(store, MemoryStore):
            self.warn(
                "memory-store-per-worker",
                "",
                'store="memory:" counts in each process alone, and %s: each of them admits all that '
                'the guards allow: write store="shm:NAME", which all processes share',
                f"there are {server.processes}" if server.processes else "there are several",
            )

    def _check_cap(self, bound: BoundGuard, server: Server) -> None:
        requirement, most = bound.usual_requirement, server.at_once
        limits = [slot.limit for slot in requirement.slots] if requirement is not None else []
        if most is not None and limits and min(limits) > most:
            self.warn(
                "cap-above-threads",
                bound.name,
                "%s: a cap of %d is never reached, since %s serves %d at once: lower it below that, "
                "or leave it out",
                bound.name,
                min(limits),
                server,
                most,
            )

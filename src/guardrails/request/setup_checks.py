"""Whether the guards fit the server and its traffic: looked at once per process, and now and then.

Nothing here changes what happens to a request; what looks wrong is said once, under its code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from guardrails.guards.bound import BoundGuard
from guardrails.request.checks import Checks
from guardrails.request.delay_queue import THREADS_PER_WAITING_ONE
from guardrails.store.contract import GuardCounters, Store
from guardrails.worker.server import Server

LONG_ENOUGH = 24 * 3600
"""Seconds after which a guard should have met a request."""

monotonic = time.monotonic


class Inspector:
    """Looks at the guards of one throttle, in one process.

    posts: its guards on duty, by name; more of them may come.
    """

    def __init__(self, bound_guards: Mapping[str, BoundGuard], checks: Checks) -> None:
        self._bound_guards = bound_guards
        self._checks = checks
        self._began = 0.0

    def begin(self, server: Server) -> None:
        """At the first request of a process: see what its server can do."""
        self._began = monotonic()
        for bound in list(self._bound_guards.values()):
            self._look_at_cap(bound, server)
            if bound.wait and server.threads is not None and server.threads < THREADS_PER_WAITING_ONE:
                self._checks.warn(
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

    def look_again(self, store: Store) -> None:
        """Now and then: say which guards have met nothing in a day. `store`: where they count."""
        if monotonic() - self._began < LONG_ENOUGH:
            return
        bound_guards = list(self._bound_guards.values())
        met = {bound.number for bound in bound_guards if bound.met}
        counters = store.counters()
        for bound in bound_guards:
            # What varies may have met requests in other workers and asked nothing for them.
            if bound.number in met or bound.varies or bound.usual_requirement is None:
                continue
            if counters.get(bound.name, _NOTHING) == _NOTHING:
                self._checks.warn(
                    "guard-never-matched",
                    bound.name,
                    "%s: no request that it covers has come in a day: compare its path, methods and "
                    "host with what clients ask for (the case of a path counts), or leave it out",
                    bound.name,
                )

    def _look_at_cap(self, bound: BoundGuard, server: Server) -> None:
        requirement, most = bound.usual_requirement, server.at_once
        limits = [slot.limit for slot in requirement.slots] if requirement is not None else []
        if most is not None and limits and min(limits) > most:
            self._checks.warn(
                "cap-above-threads",
                bound.name,
                "%s: a cap of %d is never reached, since %s serves %d at once: lower it below that, "
                "or leave it out",
                bound.name,
                min(limits),
                server,
                most,
            )


_NOTHING = GuardCounters()

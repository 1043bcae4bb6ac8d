"""Checks of how guardrails is set up.

The arguments of `throttle()` are checked when it is called: a mistake is a ConfigurationError. Other
mistakes only show while requests come: the guards do not fit the server, or its traffic. Each of them
is a warning under a code that stays the same, and never changes what happens to a request. Each code
has a section in docs/errors.md with cause, remedy and how to silence it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence

from guardrails.client.keys import shown_by
from guardrails.errors import ConfigurationError
from guardrails.guards.base import Guard
from guardrails.guards.bound import BoundGuard
from guardrails.once import Once
from guardrails.request.delay_queue import THREADS_PER_WAITING_ONE
from guardrails.request.routes import MOST_WITHOUT_KEY
from guardrails.store.contract import DRY_RUN, MOST_SLOTS, OFF, ON, SWITCH_WORDS, Store
from guardrails.store.records import GuardCounters
from guardrails.worker.server import Server

log = logging.getLogger("guardrails")

CODES = (
    "undeclared-proxy",
    "ignored-forwarding-header",
    "no-client-address",
    "everything-trusted",
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

    def start_process(self, guards: Iterable[BoundGuard], server: Server) -> None:
        """At the first request of a process: compare the guards with what its server can do."""
        self._started_at = monotonic()
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

    def check_traffic(self, guards: Mapping[str, BoundGuard], store: Store) -> None:
        """Now and then: warn of the guards that have met no request in a day.

        Args:
            guards: the guards by their names.
            store: where they count.
        """
        if monotonic() - self._started_at < LONG_ENOUGH:
            return
        bound_guards = list(guards.values())
        met = {bound.number for bound in bound_guards if bound.met}
        counters = store.counters()
        for bound in bound_guards:
            # One that varies may have met requests in other workers and required nothing for them.
            if bound.number in met or bound.varies or bound.usual_requirement is None:
                continue
            if counters.get(bound.name, _NO_COUNTERS) == _NO_COUNTERS:
                self.warn(
                    "guard-never-matched",
                    bound.name,
                    "%s: no request that it covers has come in a day: compare its path, methods and "
                    "host with what clients ask for (the case of a path counts), or leave it out",
                    bound.name,
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


def check_guards(guards: Sequence[Guard]) -> Sequence[Guard]:
    """Return guards that were built. Raises ConfigurationError for anything else."""
    for guard in guards:
        if not isinstance(guard, Guard):
            raise ConfigurationError(
                f"guards: {guard!r} is not a guard: build one first, as in "
                'throttle(app, SpeedLimit("120/minute"))'
            )
    return guards


def check_store(store: Store) -> Store:
    """Return a store that was built. Raises ConfigurationError for anything else."""
    if not hasattr(store, "enter") or not hasattr(store, "leave"):
        raise ConfigurationError(
            f'store: {store!r} is not a store: write a URL, such as "memory:" or "shm:NAME"'
        )
    return store


def check_slots(guards: Sequence[BoundGuard]) -> None:
    """Refuse guards that need more slots than a request can hold."""
    slots = sum(len(requirement.slots) for bound in guards if (requirement := bound.usual_requirement))
    if slots > MOST_SLOTS:
        raise ConfigurationError(
            f"guards: {slots} of them cap concurrent requests, and a request can hold {MOST_SLOTS} "
            "slots: use one guard for several paths, as in path=[...], or nest a throttle with a "
            "store= of its own"
        )


def switch_position(enabled: bool, dry_run: bool) -> str:
    """Return where the switch stands: GUARDRAILS in the environment, else the arguments."""
    word = os.environ.get("GUARDRAILS", "").strip().lower()
    if not word:
        if not enabled:
            return OFF
        return DRY_RUN if dry_run else ON
    if word not in SWITCH_WORDS:
        raise ConfigurationError(
            f"GUARDRAILS: {word!r} in the environment is not a position of the switch: write "
            "on, dry-run or off, or unset it"
        )
    return word

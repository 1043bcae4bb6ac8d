"""How a request enters the store: at once, after waiting for its turn, or past a store that fails.

A store that fails never fails a request. `on_store_error` says what stands in for it: "fallback"
counts in this process's own memory, "allow" lets pass, "deny" refuses what enforced guards are
about. Agents on a blocklist are refused all the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from guardrails.errors import ConfigurationError, InsideError
from guardrails.request.delay_queue import WaitingRoom
from guardrails.request.failures import Reporter
from guardrails.request.response import Flight, Unreleased
from guardrails.store.contract import Ask, Refusal, Store, Verdict, Visit
from guardrails.store.memory import MemoryStore

_ON_STORE_ERROR = ("fallback", "allow", "deny")
_POLL_SECONDS = (0.005, 0.020)
_RANDOM = random.Random()  # noqa: S311 - jitter


class Entrance:
    """The way into the store, for the requests of one throttle.

    waits: whether any of its guards holds requests back.
    """

    def __init__(
        self,
        on_store_error: str,
        reporter: Reporter,
        *,
        waits: bool,
    ) -> None:
        if on_store_error not in _ON_STORE_ERROR:
            raise ConfigurationError(
                f'on_store_error: {on_store_error!r} is unknown: write "fallback", "allow" or "deny"'
            )
        self._on_store_error = on_store_error
        self._reporter = reporter
        self._waits = waits
        self._waiting = WaitingRoom()
        self._fallback: MemoryStore | None = None
        self.unreleased = Unreleased(self._store_failed)

    def enter(self, flight: Flight, outer: Flight | None) -> tuple[Flight, Verdict | None]:
        """Ask the store, or what stands in for it when it fails. No verdict: all may pass."""
        try:
            if self._waits:
                return flight, self._enter_patiently(flight.store, flight)
            flight.may_wait = False
            return flight, flight.store.enter(flight)
        except Exception as error:
            self._store_failed(error)
        if flight is outer:
            # What the outer throttle holds stays with its store: this one goes on by itself.
            flight = outer.companion()
        elif flight.generation:
            # It may have got as far as a row before it failed.
            self.unreleased.add(flight.left_behind())
        if self._on_store_error != "fallback":
            return flight, self._without_store(flight.asks)
        if self._fallback is None:
            self._fallback = MemoryStore()
        flight.store = self._fallback
        return flight, self._enter_patiently(self._fallback, flight)

    def _without_store(self, asks: Sequence[Ask]) -> Verdict | None:
        """What can be said without a store: agents are refused all the same."""
        refusals = tuple(Refusal(ask, None) for ask in asks if ask.demand.refused and not ask.dry_run)
        enforced = any(not ask.dry_run for ask in asks)
        if refusals or (self._on_store_error == "deny" and enforced):
            return Verdict(False, 0, refusals, (), 0, 0, 0)
        return None

    def _enter_patiently(self, store: Store, visit: Visit) -> Verdict | None:
        """Let a request wait for its turn, if a thread can be spared."""
        if not self._waits or not self._waiting.may_wait(visit.pid):
            visit.may_wait = False
            return store.enter(visit)
        visit.may_wait = True
        verdict = store.enter(visit, final=False)
        if verdict is None or (verdict.admitted and not verdict.delay):
            return verdict
        if not self._waiting.enter():
            visit.may_wait = False
            return verdict if verdict.admitted else store.enter(visit)
        try:
            if verdict.admitted:
                store.sleep(verdict.delay)
                return verdict
            return self._wait_for_slot(store, visit, verdict)
        finally:
            self._waiting.leave()

    def _wait_for_slot(self, store: Store, visit: Visit, verdict: Verdict) -> Verdict | None:
        """Ask again every 5 to 20 ms until a slot is free or the guards' patience ends."""
        waited = 0
        answer: Verdict | None = verdict
        while answer is not None and not answer.admitted:
            patience = min(
                refusal.ask.demand.wait if refusal.by_slot and not refusal.never else 0
                for refusal in answer.refusals
            )
            if waited >= patience:
                return store.enter(visit)
            pause = int(_RANDOM.uniform(*_POLL_SECONDS) * 1_000_000)
            store.sleep(pause)
            waited += pause
            answer = store.enter(visit, final=False)
        if answer is None:
            return None
        if answer.delay:
            store.sleep(answer.delay)
        return answer._replace(delay=answer.delay + waited)

    def _store_failed(self, error: Exception) -> None:
        if isinstance(error, InsideError):
            return
        if self._on_store_error == "fallback":
            what = "counting in this process alone"
        else:
            what = f'on_store_error="{self._on_store_error}" is obeyed'
        self._reporter.report(error, f"the store failed; until it is back, {what}")

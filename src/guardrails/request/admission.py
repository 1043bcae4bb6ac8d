"""How a request enters the store: at once, after waiting for its turn, or past a store that fails.

A store that fails never fails a request. `on_store_error` says what stands in for it: "fallback"
counts in this process's own memory, "allow" lets pass, "deny" refuses what enforced guards are
about. Agents on a blocklist are refused all the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from guardrails.errors import ConfigurationError, InsideError
from guardrails.request.delay_queue import DelayQueue
from guardrails.request.failures import Reporter
from guardrails.request.response import OpenRequest, ReleaseRetryQueue
from guardrails.store.contract import EnterResult, KeyedRequirement, Refusal, Store, StoreRequest
from guardrails.store.memory import MemoryStore

_ON_STORE_ERROR = ("fallback", "allow", "deny")
_POLL_SECONDS = (0.005, 0.020)
_RANDOM = random.Random()  # noqa: S311 - jitter


class Admission:
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
        self._waiting = DelayQueue()
        self._fallback: MemoryStore | None = None
        self.retry_queue = ReleaseRetryQueue(self._store_failed)

    def enter(
        self, open_request: OpenRequest, outer: OpenRequest | None
    ) -> tuple[OpenRequest, EnterResult | None]:
        """Ask the store, or what stands in for it when it fails. No verdict: all may pass."""
        try:
            if self._waits:
                return open_request, self._enter_patiently(open_request.store, open_request)
            open_request.may_wait = False
            return open_request, open_request.store.enter(open_request)
        except Exception as error:
            self._store_failed(error)
        if open_request is outer:
            # What the outer throttle holds stays with its store: this one goes on by itself.
            open_request = outer.companion()
        elif open_request.generation:
            # It may have got as far as a row before it failed.
            self.retry_queue.add(open_request.failed_admission())
        if self._on_store_error != "fallback":
            return open_request, self._without_store(open_request.requirements)
        if self._fallback is None:
            self._fallback = MemoryStore()
        open_request.store = self._fallback
        return open_request, self._enter_patiently(self._fallback, open_request)

    def _without_store(self, requirements: Sequence[KeyedRequirement]) -> EnterResult | None:
        """What can be said without a store: agents are refused all the same."""
        refusals = tuple(
            Refusal(keyed, None)
            for keyed in requirements
            if keyed.requirement.refused and not keyed.dry_run
        )
        enforced = any(not keyed.dry_run for keyed in requirements)
        if refusals or (self._on_store_error == "deny" and enforced):
            return EnterResult(False, 0, refusals, (), 0, 0, 0)
        return None

    def _enter_patiently(self, store: Store, open_request: StoreRequest) -> EnterResult | None:
        """Let a request wait for its turn, if a thread can be spared."""
        if not self._waits or not self._waiting.may_wait(open_request.pid):
            open_request.may_wait = False
            return store.enter(open_request)
        open_request.may_wait = True
        result = store.enter(open_request, final=False)
        if result is None or (result.admitted and not result.delay):
            return result
        if not self._waiting.enter():
            open_request.may_wait = False
            return result if result.admitted else store.enter(open_request)
        try:
            if result.admitted:
                store.sleep(result.delay)
                return result
            return self._wait_for_slot(store, open_request, result)
        finally:
            self._waiting.leave()

    def _wait_for_slot(
        self, store: Store, open_request: StoreRequest, result: EnterResult
    ) -> EnterResult | None:
        """Ask again every 5 to 20 ms until a slot is free or the guards' patience ends."""
        waited = 0
        answer: EnterResult | None = result
        while answer is not None and not answer.admitted:
            patience = min(
                refusal.keyed.requirement.wait if refusal.by_slot and not refusal.never else 0
                for refusal in answer.refusals
            )
            if waited >= patience:
                return store.enter(open_request)
            pause = int(_RANDOM.uniform(*_POLL_SECONDS) * 1_000_000)
            store.sleep(pause)
            waited += pause
            answer = store.enter(open_request, final=False)
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

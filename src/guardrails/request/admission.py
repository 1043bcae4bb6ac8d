"""How a request enters the store: at once, after a delay, or without the store when that fails.

A store that fails never fails a request. `on_store_error` says what happens instead: "fallback" counts
in this process's own memory, "allow" admits, "refuse" refuses what enforced guards cover. Agents on a
blocklist are refused in any case.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from guardrails.errors import InsideError
from guardrails.options import check_word
from guardrails.request.delay_queue import DelayQueue
from guardrails.request.failures import FailureLog
from guardrails.request.open_request import OpenRequest, ReleaseRetryQueue
from guardrails.request.options import OnStoreError
from guardrails.store.contract import EnterResult, KeyedRequirement, Refusal, Store, StoreRequest
from guardrails.store.memory import MemoryStore

_POLL_SECONDS = (0.005, 0.020)
_RANDOM = random.Random()  # noqa: S311 - jitter


class Admission:
    """Admits the requests of one throttle.

    Args:
        on_store_error: "fallback", "allow" or "refuse".
        failures: where failures of the store are reported.
        waits: whether any of its guards holds requests back.

    Raises:
        ConfigurationError: `on_store_error` is another word.
    """

    def __init__(
        self,
        on_store_error: OnStoreError,
        failures: FailureLog,
        *,
        waits: bool,
    ) -> None:
        self._on_store_error = check_word(on_store_error, OnStoreError, "on_store_error")
        self._failures = failures
        self._waits = waits
        self._delays = DelayQueue()
        self._fallback: MemoryStore | None = None
        self.retry_queue = ReleaseRetryQueue(self._store_failed)

    def start_process(self) -> None:
        """At the first request of a process: forget what the parent's threads did."""
        self._delays.start_process()

    def enter(
        self, open_request: OpenRequest, outer: OpenRequest | None
    ) -> tuple[OpenRequest, EnterResult | None]:
        """Ask the store, or what stands in for it when the store fails.

        Args:
            open_request: the request.
            outer: the open request of the outer throttle; None without one.

        Returns:
            The request that goes on, and the store's answer. No answer means that no guard was asked.
        """
        try:
            if self._waits:
                return open_request, self._enter_patiently(open_request.store, open_request)
            open_request.may_wait = False
            return open_request, open_request.store.enter(open_request)
        except Exception as error:
            self._store_failed(error)
        if open_request is outer:
            # What the outer throttle holds stays in its store, so this part is a request of its own.
            open_request = outer.separate()
        elif open_request.generation:
            # The store may have taken a row before it failed.
            self.retry_queue.add(open_request.failed_admission())
        if self._on_store_error != "fallback":
            return open_request, self._without_store(open_request.requirements)
        if self._fallback is None:
            self._fallback = MemoryStore()
        open_request.store = self._fallback
        return open_request, self._enter_patiently(self._fallback, open_request)

    def _without_store(self, requirements: Sequence[KeyedRequirement]) -> EnterResult | None:
        """Return the answer without a store."""
        refusals = tuple(
            Refusal(keyed, None)
            for keyed in requirements
            if keyed.requirement.refused and not keyed.dry_run
        )
        enforced = any(not keyed.dry_run for keyed in requirements)
        if refusals or (self._on_store_error == "refuse" and enforced):
            return EnterResult(False, 0, refusals, (), 0, 0, 0)
        return None

    def _enter_patiently(self, store: Store, open_request: StoreRequest) -> EnterResult | None:
        """Enter, and hold the request back where it has to wait and a thread can be spared."""
        if not self._waits or not self._delays.may_wait():
            open_request.may_wait = False
            return store.enter(open_request)
        open_request.may_wait = True
        result = store.enter(open_request, final=False)
        if result is None or (result.admitted and not result.delay):
            return result
        if not self._delays.enter():
            open_request.may_wait = False
            return result if result.admitted else store.enter(open_request)
        try:
            if result.admitted:
                store.sleep(result.delay)
                return result
            return self._wait_for_slot(store, open_request, result)
        finally:
            self._delays.leave()

    def _wait_for_slot(
        self, store: Store, open_request: StoreRequest, result: EnterResult
    ) -> EnterResult | None:
        """Ask again every 5 to 20 ms until a slot is free or the guards' `wait` has passed."""
        waited = 0
        answer: EnterResult | None = result
        while answer is not None and not answer.admitted:
            longest_wait = min(
                refusal.keyed.requirement.wait if refusal.by_slot and not refusal.never else 0
                for refusal in answer.refusals
            )
            if waited >= longest_wait:
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
            what = f'on_store_error="{self._on_store_error}" applies'
        self._failures.report(error, f"the store failed; until it is back, {what}")

"""How a request enters the store: at once, after a delay, or without the store when that fails.

A store that fails never fails a request. `on_store_error` says what happens instead: "fallback" counts
in this process's own memory, "allow" admits, "refuse" refuses what enforced guards cover. Agents on a
blocklist are refused in any case.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import TypeGuard

from guardrails.errors import InsideError
from guardrails.options import check_word
from guardrails.request.brief_wait import LONGEST, PAUSES, BriefWaits
from guardrails.request.delay_queue import DelayQueue
from guardrails.request.failures import FailureLog
from guardrails.request.open_request import OpenRequest, ReleaseRetryQueue
from guardrails.request.options import OnStoreError
from guardrails.request.robots import ALLOWANCE, BeyondAllowance
from guardrails.store.contract import (
    EnterResult,
    KeyedRequirement,
    Refusal,
    Requirement,
    Store,
    StoreRequest,
    for_want_of_slots,
)
from guardrails.store.memory import MemoryStore

_POLL_SECONDS = (0.005, 0.020)
_RANDOM = random.Random()  # noqa: S311 - jitter
_wait: Callable[[Requirement], int] = attrgetter("wait")


class Admission:
    """Admits the requests of one throttle.

    Args:
        on_store_error: "fallback", "allow" or "refuse".
        failures: where failures of the store are reported.
        waits: whether any of its guards holds requests back.
        waits_briefly: whether any of them lets requests wait briefly for a slot.

    Raises:
        ConfigurationError: `on_store_error` is another word.
    """

    def __init__(
        self,
        on_store_error: OnStoreError,
        failures: FailureLog,
        *,
        waits: bool,
        waits_briefly: bool,
    ) -> None:
        self._on_store_error = check_word(on_store_error, OnStoreError, "on_store_error")
        self._failures = failures
        self._waits = waits
        self._waits_briefly = waits_briefly
        self._delays = DelayQueue()
        self._brief_waits = BriefWaits()
        self._fallback: MemoryStore | None = None
        self.retry_queue = ReleaseRetryQueue(self._store_failed)

    def start_process(self) -> None:
        """At the first request of a process: forget what the parent's threads did."""
        self._delays.start_process()
        self._brief_waits.start_process()

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
        if type(open_request.requirements) is BeyondAllowance:
            return self._enter_by_allowance(open_request, outer)
        store = open_request.store
        try:
            if self._waits:
                return open_request, self._enter_patiently(store, open_request)
            open_request.may_wait = False
            if not self._waits_briefly:
                return open_request, store.enter(open_request)
            result = store.enter(open_request, final=False)
            if result is not None and not result.admitted:
                result = self._after_refusal(store, open_request, result)
            return open_request, result
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

    def _enter_by_allowance(
        self, open_request: OpenRequest, outer: OpenRequest | None
    ) -> tuple[OpenRequest, EnterResult | None]:
        """Ask only the allowance of robots.txt first, and the guards if it is used up."""
        of_the_guards = list(open_request.requirements)
        open_request.requirements = (ALLOWANCE,)
        open_request, result = self.enter(open_request, outer)
        if result is None or (result.admitted and not result.dry_run_refusals):
            open_request.exempt = open_request.allowed = True
            return open_request, result
        open_request.requirements = of_the_guards
        return self.enter(open_request, outer)

    def _without_store(self, requirements: Sequence[KeyedRequirement]) -> EnterResult | None:
        """Return the answer without a store."""
        refusals = tuple(
            Refusal(keyed, None)
            for keyed in requirements
            if keyed.requirement.refused and not keyed.dry_run
        )
        enforced = any(not keyed.dry_run and keyed is not ALLOWANCE for keyed in requirements)
        if refusals or (self._on_store_error == "refuse" and enforced):
            return EnterResult(False, 0, refusals, (), 0, 0, 0)
        return None

    def _enter_patiently(self, store: Store, open_request: StoreRequest) -> EnterResult | None:
        """Enter, and hold the request back where it has to wait and a thread can be spared."""
        open_request.may_wait = self._waits and self._delays.may_wait()
        result = store.enter(open_request, final=False)
        if result is not None and not result.admitted:
            return self._after_refusal(store, open_request, result)
        if result is not None:
            self._delay(store, result.delay)
        return result

    def _after_refusal(
        self, store: Store, open_request: StoreRequest, result: EnterResult
    ) -> EnterResult | None:
        """Wait if nothing but slots refuses: briefly first, then for as long as the guards' `wait`."""
        answer: EnterResult | None = result
        waited = 0
        if for_want_of_slots(result.refusals) and self._waits_briefly:
            answer, waited = self._wait_briefly(store, open_request, result)
        if _needs_slot(answer) and open_request.may_wait and self._delays.enter():
            try:
                answer, longer = _ask_again(store, open_request, answer, _wait, _random_pauses())
            finally:
                self._delays.leave()
            waited += longer
        if _needs_slot(answer):
            open_request.may_wait = False
            return store.enter(open_request)
        if answer is None or not answer.admitted:
            return answer
        self._delay(store, answer.delay)
        return answer._replace(delay=answer.delay + waited)

    def _wait_briefly(
        self, store: Store, open_request: StoreRequest, result: EnterResult
    ) -> tuple[EnterResult | None, int]:
        """Wait until the client's last response is closed, if a request of this key may wait now."""
        requirement, key, _ = result.refusals[0].keyed
        waiter = (requirement.guard, open_request.key if key is None else key)
        if not self._brief_waits.begin(waiter):
            return result, 0
        admitted = False
        try:
            answer, waited = _ask_again(store, open_request, result, _brief_wait, PAUSES)
            admitted = answer is None or answer.admitted
        finally:
            self._brief_waits.end(waiter, in_vain=not admitted)
        return answer, waited

    def _delay(self, store: Store, microseconds: int) -> None:
        """Hold an admitted request back until its turn, if a thread can be spared."""
        if microseconds and self._delays.enter():
            try:
                store.sleep(microseconds)
            finally:
                self._delays.leave()

    def _store_failed(self, error: Exception) -> None:
        if isinstance(error, InsideError):
            return
        if self._on_store_error == "fallback":
            what = "counting in this process alone"
        else:
            what = f'on_store_error="{self._on_store_error}" applies'
        self._failures.report(error, f"the store failed; until it is back, {what}")


def _ask_again(
    store: Store,
    open_request: StoreRequest,
    result: EnterResult,
    patience: Callable[[Requirement], int],
    pauses: Iterable[int],
) -> tuple[EnterResult | None, int]:
    """Ask for slots again, until they are free or the time of one of the guards is over.

    Args:
        store: the store.
        open_request: the request.
        result: its refusal for want of slots.
        patience: returns how long a requirement lets a request wait, in microseconds.
        pauses: the microseconds between two questions.

    Returns:
        The last answer, and how long the request has waited.
    """
    waited = 0
    answer: EnterResult | None = result
    for pause in pauses:
        if not _needs_slot(answer) or waited >= min(
            patience(refusal.keyed.requirement) for refusal in answer.refusals
        ):
            break
        store.sleep(pause)
        waited += pause
        answer = store.enter(open_request, final=False)
    return answer, waited


def _brief_wait(requirement: Requirement) -> int:
    return LONGEST if requirement.waits_briefly else 0


def _needs_slot(answer: EnterResult | None) -> TypeGuard[EnterResult]:
    """Return whether nothing but slots refuses the request."""
    return answer is not None and not answer.admitted and for_want_of_slots(answer.refusals)


def _random_pauses() -> Iterator[int]:
    """Yield the pauses of long waits: 5 to 20 ms, so that those who wait ask at different moments."""
    while True:
        yield int(_RANDOM.uniform(*_POLL_SECONDS) * 1_000_000)

"""From the store's answer to a decision; a refusal is logged, and the user's callback is called."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from guardrails.client.keys import shown_key
from guardrails.decision import (
    DELAYED,
    DELAYED_DRY_RUN,
    PASSED,
    REJECTED,
    REJECTED_DRY_RUN,
    Decision,
)
from guardrails.errors import ConfigurationError
from guardrails.guards.base import Guard
from guardrails.guards.bound import BoundGuard
from guardrails.request.ban_log import BanLog
from guardrails.request.failures import FailureLog
from guardrails.request.open_request import OpenRequest
from guardrails.request.options import OnDecision
from guardrails.store.contract import PENALIZED, PENALTY_GUARD, EnterResult, Refusal, StoreRequest

log = logging.getLogger("guardrails")

_new: Callable[..., Decision] = tuple.__new__  # several times faster than the named constructor


class DecisionMaker:
    """Turns what a store answers into decisions.

    Args:
        guards: the guards by their names; nested throttles may add to them.
        failures: where an error of `on_decision` is reported.
        on_decision: called with (decision, environ) for refusals and dry-run refusals.

    Raises:
        ConfigurationError: `on_decision` is not callable.
    """

    def __init__(
        self,
        guards: Mapping[str, BoundGuard],
        failures: FailureLog,
        on_decision: OnDecision | None,
    ) -> None:
        if on_decision is not None and not callable(on_decision):
            raise ConfigurationError(
                f"on_decision: {on_decision!r} is not callable: give a function of (decision, environ)"
            )
        self._guards = guards
        self._failures = failures
        self._on_decision = on_decision
        self._bans = BanLog()

    def decide(
        self, result: EnterResult | None, open_request: OpenRequest, environ: dict[str, Any]
    ) -> Decision:
        """Return the decision; a refusal is logged, and `on_decision` is called.

        Args:
            result: what the store answered; None where no guard was asked.
            open_request: the request.
            environ: its environ.
        """
        if result is None:
            return Decision()
        admitted, delay, _, dry_run_refusals, dry_run_delay, remaining, number = result
        if admitted and not dry_run_refusals:
            outcome = PASSED
            if delay:
                outcome = DELAYED
            elif dry_run_delay:
                outcome = DELAYED_DRY_RUN
            return _new(Decision, (True, outcome, None, None, None, remaining, None, number))
        decision = self._refusal(result, open_request)
        _log_refusal(decision, open_request)
        if self._on_decision is not None:
            try:
                self._on_decision(decision, environ)
            except Exception as error:
                self._failures.report(error, "on_decision raised")
        return decision

    def _refusal(self, result: EnterResult, open_request: OpenRequest) -> Decision:
        """Return the decision of a refusal, or of what would have been one without a dry run."""
        refusals = result.refusals or result.dry_run_refusals
        if not refusals:
            return Decision(False, REJECTED, retry_after=1, status=503)
        open_request.banned = refusals[0].banned
        open_request.may_drain = not any(
            refusal.banned or refusal.keyed.requirement.refused for refusal in refusals
        )
        if result.refusals and result.number:
            self._log_new_bans(result.refusals, open_request)
        first = refusals[0]
        if first.keyed is PENALIZED:
            return self._penalty(result, open_request)
        bound = self._guards[first.keyed.requirement.guard]
        if any(refusal.never for refusal in refusals):
            self._failures.warn(
                f"never {bound.name}",
                f"{bound.name}: a request costs more than could ever be admitted, so it is refused "
                "for good: lower its cost, or raise the burst",
            )
        retries = [refusal.retry for refusal in refusals]
        retry_after = None
        if None not in retries:
            # The latest of all, rounded up: no client is told to come back too early.
            retry_after = _seconds(max(retry for retry in retries if retry is not None))
        return Decision(
            admitted=result.admitted,
            outcome=REJECTED_DRY_RUN if result.admitted else REJECTED,
            guard=bound.name,
            key=open_request.client
            if first.banned
            else self._shown_key(bound.guard, first.keyed.key, open_request),
            retry_after=retry_after,
            remaining=result.remaining,
            status=None if result.admitted else bound.guard.status,
            id=result.number,
        )

    def _log_new_bans(self, refusals: Sequence[Refusal], open_request: OpenRequest) -> None:
        """Log the bans that begin with this refusal. A request of a banned client begins none."""
        for refusal in refusals:
            ban_for = refusal.keyed.requirement.ban_for
            if ban_for and not refusal.banned and open_request.ban_key:
                self._bans.begins(refusal.keyed.requirement.guard, open_request, ban_for)

    def _penalty(self, result: EnterResult, open_request: StoreRequest) -> Decision:
        """Return the decision about a client whose request for this path a watchdog has killed."""
        return Decision(
            admitted=False,
            outcome=REJECTED,
            guard=PENALTY_GUARD,
            key=open_request.client,
            retry_after=_seconds(result.refusals[0].retry or 0),
            remaining=0,
            status=503,
            id=result.number,
        )

    def _shown_key(self, guard: Guard, key: bytes | None, open_request: OpenRequest) -> str:
        """Return how a key is shown: an address as it is, a header's value as a keyed hash."""
        plain = shown_key(getattr(guard, "by", "client"), key, open_request)
        return open_request.store.pseudonym(key or b"") if plain is None else plain


def _log_refusal(decision: Decision, open_request: OpenRequest) -> None:
    if log.isEnabledFor(logging.INFO):
        log.info(
            "%s by %.200s%s: %s from %s, %.20a %.200a, %s, reference %x",
            decision.outcome,
            decision.guard,
            " (banned)" if open_request.banned else "",
            decision.key,
            open_request.client or "an unknown client",
            open_request.method,
            open_request.path,
            "no retry" if decision.retry_after is None else f"retry after {decision.retry_after} s",
            decision.id,
        )


def _seconds(microseconds: int) -> int:
    """Return whole seconds for Retry-After, at least one."""
    return max(1, -(-microseconds // 1_000_000))

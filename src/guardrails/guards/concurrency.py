"""MaxConcurrentReqs: so many requests at once. Successor of mod_throttle_access."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from guardrails.client.keys import By
from guardrails.errors import ConfigurationError
from guardrails.guards.base import CountingGuard
from guardrails.guards.bound import BoundGuard
from guardrails.store.contract import Requirement, Slot
from guardrails.units import parse_count, parse_duration


@dataclass(frozen=True, repr=False)
class MaxConcurrentReqs(CountingGuard):
    """Refuses with 503 while `limit` requests that it covers are open, over all workers.

    limit: how many at once, or a callable environ -> int or None (does not apply).
    by: "all" by default: one cap for everybody. "client" caps each client.
    hold: "response" counts a request until its response is closed; "call" only until the app has
    returned, so that slow readers of a stream hold nothing.
    max_hold: after so long a slot that nobody released is free again.

    Slots of a worker that died come back. Retry-After is estimated from how long slots are held.
    """

    limit: int | Callable[[dict[str, Any]], int | None]
    _: KW_ONLY
    by: By = "all"
    hold: str = "response"
    max_hold: str | float = "10m"

    kind: ClassVar[str] = "max-concurrent"
    default_status: ClassVar[int] = 503

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.limit):
            parse_count(self.limit, "limit", instead=", or leave the guard out")
        if self.hold not in ("response", "call"):
            raise ConfigurationError(
                f'hold: {self.hold!r} is neither "response" nor "call": write one of them'
            )
        if parse_duration(self.max_hold, "max_hold") == 0:
            raise ConfigurationError(
                f'max_hold: {self.max_hold!r} would free every slot at once: write e.g. "10m"'
            )

    def usual_requirement(self, bound: BoundGuard) -> Requirement | None:
        return None if callable(self.limit) else self._requirement(bound, self.limit)

    def varies(self) -> bool:
        return callable(self.limit)

    def requirement(self, bound: BoundGuard, environ: dict[str, Any]) -> Requirement | None:
        limit = self.limit(environ) if callable(self.limit) else self.limit
        if limit is None:
            return None
        return bound.tier(limit, lambda: self._requirement(bound, parse_count(limit, "limit")))

    def _requirement(self, bound: BoundGuard, limit: int) -> Requirement:
        slot = Slot(
            bound.name,
            limit,
            parse_duration(self.max_hold, "max_hold"),
            until_return=self.hold == "call",
        )
        return bound.make_requirement(slots=(slot,))

"""MaxConcurrentReqs limits the requests that are open at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

from guardrails.client.keys import By
from guardrails.errors import ConfigurationError
from guardrails.guards.base import CountingGuard, checked_keywords
from guardrails.guards.bound import BoundGuard
from guardrails.options import check_word
from guardrails.store.contract import Requirement, Slot
from guardrails.units import parse_count, parse_duration

Hold = Literal["response", "call"]
"""How long a request holds its slot."""


@checked_keywords
@dataclass(frozen=True, repr=False)
class MaxConcurrentReqs(CountingGuard):
    """Refuses requests while `limit` covered requests are open in all workers, with status 503.

    Slots of a worker that died are given back. Retry-After is an estimate by Little's law, from how
    long slots have been held. A cap by client waits up to 50 ms before it refuses, since the client's
    last response may be about to be closed. The guard is the successor of mod_throttle_access.

    Args:
        limit: how many requests may be open at once, or a callable environ -> int | None. None means
            that the guard does not apply, and 0 that it refuses.
        by: what requests are counted by. By default "all", one limit for all clients together;
            "client" is a limit for each client.
        hold: how long a request holds its slot: "response", until its response is closed, or "call",
            until the app has returned the response.
        max_hold: after how long a slot that was not released is free again, in seconds or as a text
            such as "10m".

    `CountingGuard` and `Guard` describe the other options.

    Raises:
        ConfigurationError: an option is wrong.
    """

    limit: int | Callable[[dict[str, Any]], int | None]
    _: KW_ONLY
    by: By = "all"
    hold: Hold = "response"
    max_hold: str | float = "10m"

    kind: ClassVar[str] = "max-concurrent"
    default_status: ClassVar[int] = 503

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.limit):
            parse_count(self.limit, "limit", instead=", or leave the guard out")
        check_word(self.hold, Hold, "hold")
        if parse_duration(self.max_hold, "max_hold") == 0:
            raise ConfigurationError(
                f'max_hold: {self.max_hold!r} would free every slot at once: write a time such as "10m"'
            )

    def caps_by_client(self) -> bool:
        return self.counts_clients_apart()

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

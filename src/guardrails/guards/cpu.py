"""CPUThrottle limits the share of a CPU that each client uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

from guardrails.errors import ConfigurationError
from guardrails.guards.base import CountingGuard, checked_keywords
from guardrails.guards.bound import BoundGuard
from guardrails.store.contract import Meter, Requirement, Slot
from guardrails.units import parse_count, parse_duration, parse_percent

_MAX_DEBT_WINDOWS = 4
_MAX_HOLD_MICROSECONDS = 600_000_000


@checked_keywords
@dataclass(frozen=True, repr=False)
class CPUThrottle(CountingGuard):
    """Refuses clients that have used more than their share of a CPU, with status 503.

    A client is admitted again when enough time has passed to make up for its use. The guard measures
    the CPU time of the request's thread, or of its greenlet under gevent: in the call of the app, in
    each step of the response and in its `close()`. A client's debt is at most four windows. The guard
    is the successor of Stonehenge::Throttle.

    Args:
        percent: the share of one CPU that each client may use in the long run, such as "20%" or 20,
            or a callable environ -> such a value | None. None means that the guard does not
            apply, and 0 that it refuses.
        window: how much a client may use in advance, in seconds or as a text: with "20%" and "15s",
            3 seconds of CPU at once. At least a second.
        resume: the part of the window, from 0 to 1, to which the use of a refused client must sink
            before the client is admitted again. Retry-After names that instant.
        at_once: how many requests of one client may be open at once. CPU is charged after it is
            used, so without this limit a client can open many before the first is charged. By
            default there is no limit.

    `CountingGuard` and `Guard` describe the other options.

    Raises:
        ConfigurationError: an option is wrong.
    """

    percent: str | float | Callable[[dict[str, Any]], str | float | None]
    _: KW_ONLY
    window: str | float = "15s"
    resume: float = 0.5
    at_once: int | None = None
    _share: float = field(default=0.0, init=False, repr=False, compare=False)

    kind: ClassVar[str] = "cpu-throttle"
    default_status: ClassVar[int] = 503

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.percent):
            self._set("_share", parse_percent(self.percent, "percent"))
        if parse_duration(self.window, "window") < 1_000_000:
            raise ConfigurationError(
                f'window: {self.window!r} is less than a second: write a longer one, such as "15s"'
            )
        if (
            isinstance(self.resume, bool)
            or not isinstance(self.resume, int | float)
            or not 0 <= self.resume <= 1
        ):
            raise ConfigurationError(
                f"resume: {self.resume!r} is not a part of the window: write a number from 0 to 1, "
                "such as 0.5"
            )
        if self.at_once is not None:
            parse_count(self.at_once, "at_once")

    def caps_by_client(self) -> bool:
        return self.at_once is not None and self.counts_clients_apart()

    def usual_requirement(self, bound: BoundGuard) -> Requirement | None:
        return None if callable(self.percent) else self._requirement(bound, self._share)

    def varies(self) -> bool:
        return callable(self.percent)

    def requirement(self, bound: BoundGuard, environ: dict[str, Any]) -> Requirement | None:
        percent = self.percent(environ) if callable(self.percent) else self.percent
        if percent is None:
            return None
        return bound.tier(percent, lambda: self._requirement(bound, parse_percent(percent, "percent")))

    def _requirement(self, bound: BoundGuard, share: float) -> Requirement:
        window = parse_duration(self.window, "window")
        meter = Meter(
            bound.name,
            need=0,
            cost=0,
            limit=window,
            resume=int(window * self.resume),
            slack=bound.wait,
            horizon=window + bound.wait + _MAX_DEBT_WINDOWS * window,
        )
        slots: tuple[Slot, ...] = ()
        if self.at_once is not None:
            slots = (Slot(f"{bound.name} at once", self.at_once, _MAX_HOLD_MICROSECONDS),)
        return bound.make_requirement(meters=(meter,), slots=slots, cpu=1 / share)

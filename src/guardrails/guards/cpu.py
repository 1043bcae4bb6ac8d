"""CPUThrottle: so much of a CPU per client. Successor of Stonehenge::Throttle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

from guardrails.errors import ConfigurationError
from guardrails.guards.base import CountingGuard
from guardrails.guards.bound import BoundGuard
from guardrails.store.contract import Meter, Requirement, Slot
from guardrails.units import parse_count, parse_duration, parse_percent

_MAX_DEBT_WINDOWS = 4
_MAX_HOLD = 600_000_000


@dataclass(frozen=True, repr=False)
class CPUThrottle(CountingGuard):
    """Refuses with 503 who has burnt more than its share of CPU, until that has been made up.

    percent: the share of one CPU that each client may use in the long run: "20%" or 20; or a
    callable environ -> such a value or None (does not apply).
    window: what may be used ahead: with "20%" and "15s", 3 seconds of CPU at once.
    resume: once refused, a client is admitted again when this part of the window is left over;
    Retry-After names that instant.
    at_once: besides, at most so many requests of one client at a time, since CPU is charged after
    it is burnt.

    What is charged is thread time, of the app's call and of each step of its response. At most four
    windows beyond the first are ever owed.
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
            slots = (Slot(f"{bound.name} at once", self.at_once, _MAX_HOLD),)
        return bound.make_requirement(meters=(meter,), slots=slots, cpu=1 / share)

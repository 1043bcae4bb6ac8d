"""SpeedLimit limits the rate of requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

from guardrails.errors import ConfigurationError
from guardrails.guards.base import CountingGuard, checked_keywords
from guardrails.guards.bound import BoundGuard
from guardrails.options import check_bool
from guardrails.store.contract import Meter, Requirement
from guardrails.units import Rate, check_figure, format_duration, parse_count, parse_rates


@checked_keywords
@dataclass(frozen=True, repr=False)
class SpeedLimit(CountingGuard):
    """Refuses clients that exceed a rate, with status 429.

    The algorithm is GCRA, the generic cell rate algorithm of ITU-T I.371, Annex A: a leaky bucket
    that stores one instant (guardrails.store.gcra). A refused request is not charged. Preflights are
    counted apart, with the same figures, unless `methods` names OPTIONS. The guard is the successor of
    Apache::SpeedLimit.

    Args:
        rate: one or several rates, such as "120/minute", "100 per 2 hours" or "5/second burst 20;
            500/hour", or a callable environ -> str | None. None means that the guard does not apply,
            and a rate of nothing ("0/minute") that it refuses.
        burst: how many requests may come at once. By default the count of the rate: "120/minute"
            admits 120 at once, then one each half second, at most 239 in the first minute.
        strict: choose burst and interval so that no window of the period ever admits more than the
            count. The burst is then half of the count, unless you give one. In the long run about half
            of the rate is admitted, also to a client that asks evenly. By default False.
        cost: how many units a request costs, or a callable environ -> int. By default 1.

    `CountingGuard` and `Guard` describe the other options.

    Raises:
        ConfigurationError: an option is wrong.
    """

    rate: str | Callable[[dict[str, Any]], str | None]
    _: KW_ONLY
    burst: int | None = None
    strict: bool = False
    cost: int | Callable[[dict[str, Any]], int] = 1
    _rates: tuple[Rate, ...] = field(default=(), init=False, repr=False, compare=False)
    kind: ClassVar[str] = "speed-limit"
    default_status: ClassVar[int] = 429

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool(self.strict, "strict")
        if self.burst is not None:
            parse_count(self.burst, "burst", most=2**40)
        if not callable(self.rate):
            self._set("_rates", self._effective(parse_rates(self.rate)))
        if not callable(self.cost):
            parse_count(self.cost, "cost")
            for rate in self._rates:
                if self.cost > rate.burst:
                    raise ConfigurationError(
                        f"cost: {self.cost} can never be admitted by {self.rate!r}, where at most "
                        f"{rate.burst} may come at once: raise burst to {self.cost} or more"
                    )

    def usual_requirement(self, bound: BoundGuard) -> Requirement | None:
        if callable(self.rate) or callable(self.cost):
            return None
        return self._requirement(bound, self._rates, self.cost)

    def varies(self) -> bool:
        return callable(self.rate) or callable(self.cost)

    def requirement(self, bound: BoundGuard, environ: dict[str, Any]) -> Requirement | None:
        rate = self.rate(environ) if callable(self.rate) else self.rate
        if rate is None:
            return None
        cost = self.cost(environ) if callable(self.cost) else self.cost
        return bound.tier((rate, cost), lambda: self._tier(bound, rate, cost))

    def _tier(self, bound: BoundGuard, rate: str, cost: object) -> Requirement:
        rates = self._effective(parse_rates(rate)) if callable(self.rate) else self._rates
        return self._requirement(bound, rates, parse_count(cost, "cost", least=0))

    def _effective(self, rates: tuple[Rate, ...]) -> tuple[Rate, ...]:
        if self.burst is not None:
            if len(rates) > 1:
                raise ConfigurationError(
                    f"burst: {self.burst} with {len(rates)} rates in {self.rate!r} is ambiguous: "
                    'write it at the rate it is for, as in "5/second burst 20; 500/hour"'
                )
            rates = (Rate(rates[0].count, rates[0].period, self.burst),)
        if self.strict:
            rates = tuple(_strict(rate, chosen=self.burst is not None) for rate in rates)
        for rate in rates:
            check_figure(rate.interval * rate.burst, "rate", self.rate)
        return rates

    def _requirement(self, bound: BoundGuard, rates: tuple[Rate, ...], cost: int) -> Requirement:
        meters = []
        for index, rate in enumerate(rates):
            charge = cost * rate.interval
            limit = rate.interval * rate.burst
            name = bound.name if index == 0 else f"{bound.name} #{index + 1}"
            if callable(self.rate):
                # Each tier has its own meter: on one meter, each rate would spoil the other's state.
                name = f"{name} {rate}"
            meters.append(
                Meter(
                    name,
                    need=check_figure(charge, "cost", cost),
                    cost=charge,
                    limit=limit,
                    resume=limit,
                    slack=bound.wait,
                    horizon=limit + bound.wait,
                )
            )
        return bound.make_requirement(meters=tuple(meters))

    def __repr__(self) -> str:
        if callable(self.rate):
            return super().__repr__()
        words = "; ".join(_describe(rate) for rate in self._rates)
        return f"{super().__repr__()}: {words}"


def _strict(rate: Rate, *, chosen: bool) -> Rate:
    """Return a rate that admits at most `count` requests in any window of its period.

    With burst b, count c and period T the interval is T / (c - b + 1). A window [t, t + T) then
    admits b requests at once, and at most c - b after them.

    Args:
        rate: the rate as it was written.
        chosen: whether the user chose the burst; otherwise it becomes half of the count.
    """
    burst = rate.burst if chosen or rate.burst != rate.count else -(-rate.count // 2)
    if burst > rate.count:
        raise ConfigurationError(
            f"burst: {burst} is more than the {rate.count} that strict=True allows in any "
            f"{format_duration(rate.period)}: use a burst of at most {rate.count}"
        )
    return Rate(rate.count - burst + 1, rate.period, burst)


def _describe(rate: Rate) -> str:
    first = rate.burst + (rate.period - 1) // rate.interval
    return (
        f"{rate.burst} at once, then one every {rate.interval / 1_000_000:g} s, at most {first} in "
        f"the first {format_duration(rate.period)}"
    )

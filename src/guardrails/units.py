"""Units: how rates, durations, sizes and percents are written, and what is wrong with others.

Inside of guardrails, time is an integer of microseconds. No figure exceeds `LARGEST_FIGURE`, so that
every store computes exactly: numbers in Lua are exact up to 2**53.
"""

import math
import re
from dataclasses import dataclass

from guardrails.errors import ConfigurationError, FigureOfNothingError

MICROSECONDS = 1_000_000
LARGEST_FIGURE = 2**51

_UNIT_MICROSECONDS = {
    "millisecond": 1_000,
    "second": MICROSECONDS,
    "minute": 60 * MICROSECONDS,
    "hour": 3_600 * MICROSECONDS,
    "day": 86_400 * MICROSECONDS,
    "week": 7 * 86_400 * MICROSECONDS,
    "month": 30 * 86_400 * MICROSECONDS,
    "year": 365 * 86_400 * MICROSECONDS,
}
_MOST_YEARS = LARGEST_FIGURE // _UNIT_MICROSECONDS["year"]
_UNIT_ALIASES = {
    "ms": "millisecond",
    "s": "second",
    "sec": "second",
    "m": "minute",
    "min": "minute",
    "h": "hour",
    "hr": "hour",
    "d": "day",
    "w": "week",
}
_RATE = re.compile(
    r"(?P<count>\d{1,15})\s*(?:/|per\b)\s*(?P<multiple>\d{1,15})?\s*(?P<unit>[a-z]+)"
    r"(?:\s+burst\s+(?P<burst>\d{1,15}))?",
    re.IGNORECASE,
)
_DURATION = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)", re.IGNORECASE)
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_MOST_DIGITS = 100
_SIZE_BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_PERCENT = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*%?")


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate of requests.

    Attributes:
        count: how many requests per period.
        period: the period, in microseconds.
        burst: how many requests may come at once.
    """

    count: int
    period: int
    burst: int

    @property
    def interval(self) -> int:
        """Microseconds from one request to the next, rounded up so that the rate is never exceeded."""
        return -(-self.period // self.count)

    def __str__(self) -> str:
        return f"{self.count}/{format_duration(self.period)} burst {self.burst}"


def parse_rates(value: object, argument: str = "rate") -> tuple[Rate, ...]:
    """Return the rates in a text such as "10/second", "100 per 2 hours" or "5/s burst 20; 500/h".

    A rate without a burst has its count as burst. A month has 30 days, a year 365.

    Args:
        value: what the user gave.
        argument: what a message calls the option.

    Raises:
        ConfigurationError: this is not a rate, or it can never admit a request.
    """
    if isinstance(value, Rate):
        return (value,)
    if not isinstance(value, str):
        raise _error_for(value)(
            f'{argument}: {value!r} is not a rate: a rate is a text such as "10/second" '
            'or "100 per 2 hours"'
        )
    return tuple(_parse_rate(part, argument) for part in re.split("[;,|]", value))


def _parse_rate(text: str, argument: str) -> Rate:
    text = text.strip()
    match = _RATE.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f'{argument}: {text!r} is not a rate: write COUNT/UNIT, such as "10/second", '
            '"100 per 2 hours" or "5/second burst 20"'
        )
    period = int(match["multiple"] or 1) * _unit(match["unit"], argument, text)
    count = int(match["count"])
    burst = int(match["burst"] or count)
    if count == 0 or period == 0 or burst == 0:
        raise (ConfigurationError if period == 0 else FigureOfNothingError)(
            f"{argument}: {text!r} can never admit a request: count, period and burst are at least "
            "1; to refuse all requests remove the route, to switch the guard off leave it out"
        )
    rate = Rate(count, period, burst)
    check_figure(rate.interval * rate.burst, argument, text)
    return rate


def parse_duration(value: object, argument: str) -> int:
    """Return the microseconds of a duration: seconds, or a text such as "15s", "20m" or "250ms"."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        microseconds = round(value * MICROSECONDS)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        if match[2] == "M":  # it may be meant as megabytes
            raise ConfigurationError(
                f"{argument}: {value!r} has a capital M, as sizes have: write {match[1]}m for minutes"
            )
        unit = _unit(match[2] or "second", argument, value)
        microseconds = round(float(match[1]) * unit)
    else:
        raise ConfigurationError(
            f"{argument}: {value!r} is not a duration: write seconds, or a text such as "
            '"15s", "20m" or "2h"'
        )
    if microseconds < 0:
        raise ConfigurationError(
            f'{argument}: {value!r} is negative: a duration is 0 or more, such as 15 or "15s"'
        )
    return check_figure(microseconds, argument, value)


def parse_seconds(value: object, argument: str) -> float:
    """Return the seconds of a duration, as `parse_duration` reads it."""
    return parse_duration(value, argument) / MICROSECONDS


def number_of_text(value: object) -> object:
    """Return the number in a text of digits, as command lines give it; other values as they are."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) <= _MOST_DIGITS:
        return int(value)
    return value


def parse_size(value: object, argument: str) -> int:
    """Return the bytes of a size: a number of bytes, or a text such as "512M" or "1G" (of 1024)."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return round(float(match[1]) * _SIZE_BYTES[match[2].lower()])
    raise ConfigurationError(
        f'{argument}: {value!r} is not a size: write bytes, or a text such as "512M" or "1G"'
    )


def parse_percent(value: object, argument: str) -> float:
    """Return the share of one CPU: "20%" or 20 is 0.2, "200%" is two CPUs."""
    number = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and (match := _PERCENT.fullmatch(value.strip())):
        number = float(match[1])
    if number is None:
        raise ConfigurationError(
            f'{argument}: {value!r} is not a percent: write "20%" or 20 for a fifth of one CPU'
        )
    if not 1 <= number <= 100_000:
        raise _error_for(number)(
            f"{argument}: {value!r} is outside 1 to 100000 percent of one CPU: a fifth of a CPU "
            'is "20%" or 20, not 0.2'
        )
    return number / 100


def parse_count(
    value: object, argument: str, *, least: int = 1, most: int = 2**20, instead: str = ""
) -> int:
    """Return a whole number between `least` and `most`.

    Args:
        value: what the user gave.
        argument: what the message calls the option.
        least: the smallest number that is allowed.
        most: the largest number that is allowed.
        instead: another remedy, which the message ends with.

    Raises:
        ConfigurationError: this is not such a number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _error_for(value)(
            f"{argument}: {value!r} is not a whole number from {least} to {most}: "
            f"write such a number{instead}"
        )
    return value


def check_figure(figure: int, argument: str, value: object) -> int:
    """Return a figure that stores can compute exactly; a larger one raises ConfigurationError."""
    if figure > LARGEST_FIGURE:
        raise ConfigurationError(
            f"{argument}: {value!r} reaches beyond {_MOST_YEARS} years, the most that stores can "
            "count: use a smaller count, burst or period"
        )
    return figure


def format_duration(microseconds: int) -> str:
    """Return a duration in the largest unit that divides it: "minute", "15 seconds", "2 hours"."""
    for name in ("day", "hour", "minute", "second"):
        unit = _UNIT_MICROSECONDS[name]
        if microseconds >= unit and microseconds % unit == 0:
            count = microseconds // unit
            return name if count == 1 else f"{count} {name}s"
    return f"{microseconds / MICROSECONDS:g} seconds"


def _error_for(value: object) -> type[ConfigurationError]:
    """Return the error for a wrong figure: one of its own for the number 0."""
    is_nothing = isinstance(value, int | float) and not isinstance(value, bool) and value == 0
    return FigureOfNothingError if is_nothing else ConfigurationError


def _unit(name: str, argument: str, value: object) -> int:
    lowered = name.lower()
    lowered = _UNIT_ALIASES.get(lowered, lowered)
    unit = _UNIT_MICROSECONDS.get(lowered) or _UNIT_MICROSECONDS.get(lowered.removesuffix("s"))
    if unit is None:
        raise ConfigurationError(
            f"{argument}: {value!r} has an unknown unit {name!r}: use second, minute, hour, day, "
            "week, month or year"
        )
    return unit

"""Resource limits per worker. Successor of Apache::Resource, over the standard library's `resource`.

Unlike there, no unit is guessed, an unknown name is an error, and 0 means 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from guardrails.errors import ConfigurationError
from guardrails.units import parse_count, parse_size

log = logging.getLogger("guardrails")

UNLIMITED = -1
_LARGEST_COUNT = 2**31


def _count(value: object, argument: str) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return parse_count(value, argument, least=0, most=_LARGEST_COUNT)


_PARSERS: dict[str, Callable[[object, str], int]] = {
    "CORE": parse_size,
    "DATA": parse_size,
    "AS": parse_size,
    "NOFILE": _count,
}


class LimitReport(NamedTuple):
    """One limit as it was set: soft and hard, -1 for unlimited, and what they were before."""

    name: str
    soft: int
    hard: int
    soft_before: int
    hard_before: int


@dataclass(frozen=True)
class ResourceLimits:
    """Limits that are set in the process that calls `apply()`, or that calls the value itself.

    Being callable with any arguments it is a hook: `post_fork = guardrails.rlimits(...)`. `limits`
    holds (name, soft, hard); hard is None where it stays as it is.
    """

    limits: tuple[tuple[str, int, int | None], ...]

    def apply(self) -> tuple[LimitReport, ...]:
        """Set them, and report. Raises ConfigurationError for what the system refuses."""
        import resource  # noqa: PLC0415 - building a value works where there is no such module

        reports = []
        for name, soft, hard in self.limits:
            which = getattr(resource, f"RLIMIT_{name}")
            soft_before, hard_before = resource.getrlimit(which)
            wanted = (soft, hard_before if hard is None else hard)
            try:
                resource.setrlimit(which, wanted)
            except (ValueError, OSError) as error:
                raise ConfigurationError(
                    f"{name}: the system refuses soft {wanted[0]} and hard {wanted[1]} ({error}): "
                    f"it has hard {hard_before} now, and only root may raise that; ask for less"
                ) from None
            report = LimitReport(name, *resource.getrlimit(which), soft_before, hard_before)
            log.info("rlimits: %s soft %d hard %d (was %d, %d)", *report)
            reports.append(report)
        return tuple(reports)

    def __call__(
        self, _server: Any = None, _worker: Any = None, *_more: Any, **_named: Any
    ) -> tuple[LimitReport, ...]:
        """The same as `apply()`, whatever a server's hook is called with.

        Two arguments have names, since gunicorn counts them before it takes a `post_fork` hook.
        """
        return self.apply()


def rlimits(**limits: str | float) -> ResourceLimits:
    """Describe limits for a worker; nothing is set yet.

    CORE, DATA, AS: sizes, such as "1G" or 0.   NOFILE: a number. Each is one value for the soft
    limit, or "SOFT:HARD"; "SOFT:" and ":HARD" set one of them. "unlimited" is a value too. Only
    soft limits change unless a hard one is asked for, since lowering a hard limit is final.

    Use it as a hook, `post_fork = guardrails.rlimits(DATA="1G", CORE=0)`, or call `.apply()`.
    Raises ConfigurationError for a name or a value that is wrong.
    """
    return ResourceLimits(tuple(_limit(name, value) for name, value in limits.items()))


def _limit(name: str, value: object) -> tuple[str, int, int | None]:
    if name == "CPU":
        raise ConfigurationError(
            f"CPU: {value!r} would kill the worker in the midst of a request: a limit that lets it "
            "finish and retire comes in a later version; until then leave CPU out, and use the "
            "server's own maximum of requests per worker"
        )
    if name not in _PARSERS:
        raise ConfigurationError(
            f"{name}: {value!r} is for a limit that this version does not set: use "
            + ", ".join(sorted(_PARSERS))
        )
    if not isinstance(value, str) or ":" not in value:
        return name, _value(name, value), None
    soft_text, _, hard_text = value.partition(":")
    hard = _value(name, hard_text) if hard_text else None
    if not soft_text:
        if hard is None:
            raise ConfigurationError(
                f'{name}: {value!r} says nothing: write "SOFT:HARD", "SOFT:" or ":HARD"'
            )
        return name, hard, hard
    soft = _value(name, soft_text)
    if hard is not None and hard != UNLIMITED and (soft == UNLIMITED or soft > hard):
        raise ConfigurationError(
            f"{name}: {value!r} has a soft limit above the hard one: write the smaller one first"
        )
    return name, soft, hard


def _value(name: str, value: object) -> int:
    if value == "unlimited":
        return UNLIMITED
    return _PARSERS[name](value, name)

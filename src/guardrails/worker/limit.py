"""One limit of a process: what was asked for, set as far as the system lets, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

from guardrails.errors import ConfigurationError

UNLIMITED = -1


class Limit(NamedTuple):
    """One limit as it was asked for. None leaves that side as it is; -1 is unlimited."""

    name: str
    soft: int | None
    hard: int | None
    origin: str


class LimitReport(NamedTuple):
    """One limit as it was set: what was asked for, and (soft, hard) before and after; -1: unlimited.

    origin: "argument", "mapping", "environment" or "default".
    """

    name: str
    soft: int | None
    hard: int | None
    before: tuple[int, int]
    after: tuple[int, int]
    origin: str

    def __str__(self) -> str:
        return (
            f"{self.name} soft {limit_text(self.after[0])} hard {limit_text(self.after[1])} "
            f"(was {limit_text(self.before[0])}, {limit_text(self.before[1])}; {self.origin})"
        )


def resource_module() -> Any:
    """The standard library's module. Raises ConfigurationError where there is none."""
    try:
        return import_module("resource")
    except ImportError:
        raise ConfigurationError(
            "rlimits: this system has no resource limits: leave it out, or use a POSIX system"
        ) from None


def set_all(resource: Any, limits: Iterable[Limit], nice: int | None = None) -> list[LimitReport]:
    """Set several limits and the priority, or as far as that is possible none of them."""
    before = priority()
    nice = before if nice is None else nice
    # Down may be refused, and can be taken back; up is never refused, and cannot.
    if nice < before:
        _set_priority(nice)
    try:
        reports = _set_limits(resource, limits)
    except ConfigurationError:
        if nice < before:
            _set_priority(before)
        raise
    if nice > before:
        _set_priority(nice)
    return reports


def _set_limits(resource: Any, limits: Iterable[Limit]) -> list[LimitReport]:
    """Set several limits, or as far as that is possible none of them."""
    reports: list[LimitReport] = []
    try:
        for limit in limits:
            reports.append(_set(resource, limit))  # noqa: PERF401 - what was set must be known
    except ConfigurationError:
        restore(resource, reports)
        raise
    return reports


def restore(resource: Any, reports: Iterable[LimitReport]) -> None:
    """Put back what was, each as far as the system lets."""
    for report in reversed(tuple(reports)):  # two names may be one limit
        which = getattr(resource, f"RLIMIT_{report.name}")
        for before in (report.before, (report.before[0], resource.getrlimit(which)[1])):
            with suppress(ValueError, OSError):
                resource.setrlimit(which, before)
                break


def _set(resource: Any, limit: Limit) -> LimitReport:
    """Set one limit."""
    which = getattr(resource, f"RLIMIT_{limit.name}")
    before = resource.getrlimit(which)
    asked = _both_sides(limit, before)
    try:
        resource.setrlimit(which, asked)
    except (ValueError, OSError, OverflowError) as error:
        raise _refused(limit, asked, before, error) from None
    return LimitReport(
        limit.name, limit.soft, limit.hard, before, resource.getrlimit(which), limit.origin
    )


def check(resource: Any, limit: Limit) -> None:
    """Have refused what `_set` would be refused, and leave all as it is.

    Only what is above the present hard limit is refused, and a hard one that could be raised can be
    lowered again.
    """
    which = getattr(resource, f"RLIMIT_{limit.name}")
    before = resource.getrlimit(which)
    soft, hard = _both_sides(limit, before)
    try:
        if is_above(soft, hard):
            resource.setrlimit(which, (soft, hard))
        if is_above(hard, before[1]):
            resource.setrlimit(which, (before[0], hard))
            resource.setrlimit(which, before)
    except (ValueError, OSError, OverflowError) as error:
        raise _refused(limit, (soft, hard), before, error) from None


def _both_sides(limit: Limit, before: tuple[int, int]) -> tuple[int, int]:
    """The soft and the hard limit to be set. A hard one alone takes a higher soft one down with it."""
    hard = before[1] if limit.hard is None else limit.hard
    soft = before[0] if limit.soft is None else limit.soft
    if limit.soft is None and is_above(soft, hard):
        soft = hard
    return soft, hard


def _refused(
    limit: Limit, asked: tuple[int, int], before: tuple[int, int], error: Exception
) -> ConfigurationError:
    soft, hard, current = map(limit_text, (*asked, before[1]))
    return ConfigurationError(
        f"{limit.name}: the system refuses soft {soft} and hard {hard} ({error}): it has hard "
        f"{current} now, and only a process with CAP_SYS_RESOURCE may raise that; ask for less"
    )


def priority() -> int:
    """The process's own, from -20 to 19."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def check_priority(nice: int) -> None:
    """Have refused what setting it would be refused, and leave it as it is."""
    before = priority()
    if nice < before:
        _set_priority(nice)
        _set_priority(before)


def _set_priority(nice: int) -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError as error:
        raise ConfigurationError(
            f"nice: the system refuses {nice} ({error}): only root may go below the present one"
        ) from None


def is_above(soft: int, hard: int) -> bool:
    """Whether a soft limit is above a hard one."""
    return hard != UNLIMITED and (soft == UNLIMITED or soft > hard)


def limit_text(value: int) -> str:
    """A limit in words."""
    return "unlimited" if value == UNLIMITED else str(value)

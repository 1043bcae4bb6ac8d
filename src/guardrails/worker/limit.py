"""Sets and restores single limits of this process, and its priority."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

from guardrails.errors import ConfigurationError

UNLIMITED = -1


class Limit(NamedTuple):
    """One limit as it was requested.

    Attributes:
        name: without "RLIMIT_".
        soft: the soft limit; None keeps the present one, and -1 is unlimited.
        hard: the hard limit, likewise.
        origin: "argument", "mapping", "environment" or "default".
    """

    name: str
    soft: int | None
    hard: int | None
    origin: str


class LimitReport(NamedTuple):
    """One limit as it was set, in the unit of the system, such as bytes or seconds. -1 is unlimited.

    Attributes:
        name: the name of the limit, such as "CPU".
        soft: the requested soft limit; None where none was requested.
        hard: the requested hard limit; None where none was requested.
        before: the soft and the hard limit until then.
        after: the soft and the hard limit from then on.
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
    """Return the standard library's module `resource`.

    Raises:
        ConfigurationError: this system has no such module.
    """
    try:
        return import_module("resource")
    except ImportError:
        raise ConfigurationError(
            "rlimits: this system has no resource limits: leave it out, or use a POSIX system"
        ) from None


def set_all(resource: Any, limits: Iterable[Limit], nice: int | None = None) -> list[LimitReport]:
    """Set several limits and the priority. After a refusal, restore those that were set.

    Args:
        resource: the module.
        limits: the requested limits.
        nice: the requested priority; None keeps the present one.

    Returns:
        A report of each limit.

    Raises:
        ConfigurationError: the system refuses a limit or the priority.
    """
    before = priority()
    nice = before if nice is None else nice
    # A lower number may be refused, and can be restored, so it comes first. A higher number is never
    # refused, and only root can restore it, so it comes last.
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
    """Set several limits. After a refusal, restore those that were set."""
    reports: list[LimitReport] = []
    try:
        for limit in limits:
            reports.append(_set(resource, limit))  # noqa: PERF401 - needed after an exception
    except ConfigurationError:
        restore(resource, reports)
        raise
    return reports


def restore(resource: Any, reports: Iterable[LimitReport]) -> None:
    """Restore the limits before a change, as far as the system allows."""
    for report in reversed(tuple(reports)):  # OFILE and NOFILE are one limit: the first is the oldest
        which = getattr(resource, f"RLIMIT_{report.name}")
        for before in (report.before, (report.before[0], resource.getrlimit(which)[1])):
            with suppress(ValueError, OSError):
                resource.setrlimit(which, before)
                break


def _set(resource: Any, limit: Limit) -> LimitReport:
    """Set one limit."""
    which = getattr(resource, f"RLIMIT_{limit.name}")
    before = resource.getrlimit(which)
    both = both_sides(limit, before)
    try:
        resource.setrlimit(which, both)
    except (ValueError, OSError, OverflowError) as error:
        raise _refused(limit, both, before, error) from None
    return LimitReport(
        limit.name, limit.soft, limit.hard, before, resource.getrlimit(which), limit.origin
    )


def check(resource: Any, limit: Limit) -> None:
    """Try whether the system would refuse a limit, and change nothing.

    The system refuses only what is above the present hard limit. A process that may raise its hard
    limit may lower it again, so raising it is tried.

    Args:
        resource: the module.
        limit: the requested limit.

    Raises:
        ConfigurationError: the system refuses the limit.
    """
    which = getattr(resource, f"RLIMIT_{limit.name}")
    before = resource.getrlimit(which)
    soft, hard = both_sides(limit, before)
    try:
        if is_above(soft, hard):
            resource.setrlimit(which, (soft, hard))
        if is_above(hard, before[1]):
            resource.setrlimit(which, (before[0], hard))
            resource.setrlimit(which, before)
    except (ValueError, OSError, OverflowError) as error:
        raise _refused(limit, (soft, hard), before, error) from None


def both_sides(limit: Limit, before: tuple[int, int]) -> tuple[int, int]:
    """Return the soft and the hard limit to set. A hard limit alone lowers a soft one above it."""
    hard = before[1] if limit.hard is None else limit.hard
    soft = before[0] if limit.soft is None else limit.soft
    if limit.soft is None and is_above(soft, hard):
        soft = hard
    return soft, hard


def _refused(
    limit: Limit, both: tuple[int, int], before: tuple[int, int], error: Exception
) -> ConfigurationError:
    soft, hard, current = map(limit_text, (*both, before[1]))
    return ConfigurationError(
        f"{limit.name}: the system refuses soft {soft} and hard {hard} ({error}): the hard limit is "
        f"{current} now, and only a process with CAP_SYS_RESOURCE may raise it: write less"
    )


def priority() -> int:
    """Return the priority of this process, from -20 to 19."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def check_priority(nice: int) -> None:
    """Try whether the system would refuse a priority, and change nothing.

    Raises:
        ConfigurationError: the system refuses the priority.
    """
    before = priority()
    if nice < before:
        _set_priority(nice)
        _set_priority(before)


def _set_priority(nice: int) -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError as error:
        raise ConfigurationError(
            f"nice: the system refuses {nice} ({error}): only root may go below {priority()}: "
            "write that or more"
        ) from None


def is_above(soft: int, hard: int) -> bool:
    """Return whether a soft limit is above a hard one."""
    return hard != UNLIMITED and (soft == UNLIMITED or soft > hard)


def limit_text(value: int) -> str:
    """Return a limit as a text: a number, or "unlimited"."""
    return "unlimited" if value == UNLIMITED else str(value)

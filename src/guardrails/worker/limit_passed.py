"""Limits that are below what the process already has.

The system accepts such a limit. From then on each allocation fails, or each file that is to be opened,
and so each request. Libraries that reserve much memory when they are imported bring this about.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from guardrails.errors import ConfigurationError
from guardrails.worker.limit import Limit, both_sides, is_above, limit_text
from guardrails.worker.usage import usage

_MEASURED = frozenset(("AS", "DATA", "MEMLOCK", "NOFILE", "SIGPENDING", "STACK"))
"""Limits of what a process has at a time. A limit of CPU that is passed lets the worker retire."""


def passed_limits(resource: Any, limits: Iterable[Limit]) -> dict[Limit, str]:
    """Return the limits below what this process already has, each with a sentence that says so.

    Args:
        resource: the module.
        limits: the requested limits.
    """
    measured = [limit for limit in limits if limit.name in _MEASURED]
    used = usage() if measured else {}
    found = {}
    for limit in measured:
        soft, _ = both_sides(limit, resource.getrlimit(getattr(resource, f"RLIMIT_{limit.name}")))
        has = used[limit.name].used
        if has is not None and is_above(int(has), soft):
            found[limit] = (
                f"{limit.name}: {limit_text(soft)} is less than the {int(has)} that this process "
                "already has, so each request would fail: write more, or let the process reserve less"
            )
    return found


def refuse_passed_limits(resource: Any, limits: Iterable[Limit]) -> None:
    """Raise ConfigurationError for the first limit below what this process already has."""
    for sentence in passed_limits(resource, limits).values():
        raise ConfigurationError(sentence)

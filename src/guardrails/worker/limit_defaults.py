"""The soft limits that `rlimits(defaults=True)` adds to the requested ones."""

from __future__ import annotations

import logging
from typing import Any

from guardrails.worker import memory
from guardrails.worker.limit import UNLIMITED, Limit, resource_module
from guardrails.worker.server import Server
from guardrails.worker.usage import usage

log = logging.getLogger("guardrails")

DEFAULT_CPU_SECONDS = 600
MEMORY_SHARE = 0.8
"""The part of the cgroup's memory that all workers together may have."""

_USUAL_STACK = 8 << 20
_LEAST_ROOM = 2
"""A worker's share of the memory must be so many times what it already uses."""


def default_limits(requested: tuple[Limit, ...], server: Server) -> tuple[Limit, ...]:
    """Return the limits that were not requested. None of them is above the present soft limit.

    Args:
        requested: the limits that were requested.
        server: what runs this process.
    """
    resource = resource_module()
    names = {limit.name for limit in requested}
    defaults = {"CORE": 0}
    if server.respawns and server.retire_signal:
        defaults["CPU"] = DEFAULT_CPU_SECONDS
    if not names & {"AS", "DATA"}:
        data = _default_data(resource, server)
        if data is not None:
            defaults["DATA"] = data
    limits = []
    for name, soft in defaults.items():
        if name not in names:
            current = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
            if current == UNLIMITED or soft < current:
                limits.append(Limit(name, soft, None, "default"))
    return tuple(limits)


def _default_data(resource: Any, server: Server) -> int | None:
    """Return the worker's share of the cgroup's memory, plus the stacks of its threads.

    The kernel counts the whole address range of a thread's stack in DATA, used or not.
    """
    cgroup_bytes = memory.cgroup_limit()
    if cgroup_bytes is None or not server.processes:
        return None
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    threads = 0 if server.greenlets else server.threads or 0
    share = round(cgroup_bytes * MEMORY_SHARE) // server.processes
    data = share + threads * (_USUAL_STACK if stack == UNLIMITED else stack)
    used = usage()["DATA"].used
    if used is not None and share < _LEAST_ROOM * used:
        log.warning(
            "rlimits: DATA has no default: %.0f%% of the cgroup's memory, divided by %d workers, is "
            "%.0f MB, and this worker uses %.0f MB before its first request: have fewer workers, or "
            "give the cgroup more memory",
            MEMORY_SHARE * 100,
            server.processes,
            share / (1 << 20),
            used / (1 << 20),
        )
        return None
    return data

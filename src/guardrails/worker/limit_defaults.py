"""The limits that `rlimits(defaults=True)` adds: what was not asked for."""

from __future__ import annotations

import logging
from typing import Any

from guardrails.worker import memory
from guardrails.worker.limit import (
    UNLIMITED,
    Limit,
    resource_module,
)
from guardrails.worker.server import (
    Server,
)
from guardrails.worker.usage import usage

log = logging.getLogger("guardrails")


DEFAULT_CPU_SECONDS = 600
MEMORY_SHARE = 0.8
_USUAL_STACK = 8 << 20


def default_limits(asked: tuple[Limit, ...], server: Server) -> tuple[Limit, ...]:
    """What was not asked for. Never more than there is already."""
    resource = resource_module()
    names = {limit.name for limit in asked}
    wanted = {"CORE": 0}
    if server.respawns and server.retire_signal:
        wanted["CPU"] = DEFAULT_CPU_SECONDS
    if not names & {"AS", "DATA"}:
        data = _default_data(resource, server)
        if data is not None:
            wanted["DATA"] = data
    found = []
    for name, soft in wanted.items():
        if name not in names:
            current = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
            if current == UNLIMITED or soft < current:
                found.append(Limit(name, soft, None, "default"))
    return tuple(found)


def _default_data(resource: Any, server: Server) -> int | None:
    """A worker's share of the cgroup's memory, and its threads' stacks, which count in DATA whole."""
    room = memory.cgroup_limit()
    if room is None or not server.processes:
        return None
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    threads = 0 if server.greenlets else server.threads or 0
    share = round(room * MEMORY_SHARE) // server.processes
    data = share + threads * (_USUAL_STACK if stack == UNLIMITED else stack)
    used = usage()["DATA"].used
    if used is not None and share < 2 * used:
        log.warning(
            "rlimits: DATA has no default: %.0f%% of the cgroup's memory, shared out over %d workers, "
            "is %.0f MB, and this one takes %.0f MB before it has served anybody: have fewer workers, "
            "or give the cgroup more memory",
            MEMORY_SHARE * 100,
            server.processes,
            share / (1 << 20),
            used / (1 << 20),
        )
        return None
    return data

"""Warnings of limits that do something else than their names promise."""

from __future__ import annotations

import logging

from guardrails.store.contract import Store
from guardrails.worker.limit import (
    UNLIMITED,
    LimitReport,
)
from guardrails.worker.server import (
    Server,
)

log = logging.getLogger("guardrails")


_MISLEADING = {
    "AS": "it counts addresses, not memory, and each thread takes 8 MB for its stack and 64 MB and "
    "more for its arena: use DATA, and leave room for 8 MB for each thread there",
    "NPROC": "it counts all processes and threads of the user, over all workers, and root is exempt: "
    "leave it to the system's administrator",
    "RSS": "Linux ignores it: use DATA",
}


def warn_of_misleading(reports: list[LimitReport], server: Server) -> None:
    """Say what will surprise."""
    for report in reports:
        name, (soft, hard) = report.name, report.after
        if name in _MISLEADING and soft != UNLIMITED and not (name == "AS" and server.threads == 1):
            log.warning("rlimits: %s misleads: %s", name, _MISLEADING[name])
        if name == "CPU" and soft == hard != UNLIMITED:
            log.warning(
                "rlimits: CPU has one limit of %d s for soft and hard, so the kernel kills without "
                'notice, in the midst of a request: write "%d:" to let the worker retire',
                soft,
                soft,
            )


def warn_where_death_is_final(server: Server, _store: Store) -> None:
    """At the first request, when the server is known for certain."""
    if not server.respawns:
        log.warning(
            "rlimits: nobody starts %s again, so no worker retires at a soft limit of CPU, and a hard "
            "one, or memory that runs out at the wrong place, ends the whole server: use a server that "
            "starts its workers again, such as gunicorn",
            server.name,
        )

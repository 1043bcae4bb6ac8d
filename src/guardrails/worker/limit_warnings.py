"""Warnings about limits that have other effects than their names promise."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from guardrails.store.contract import Store
from guardrails.worker.limit import UNLIMITED, LimitReport
from guardrails.worker.server import Server

log = logging.getLogger("guardrails")

_MISLEADING = {
    "AS": "it counts addresses, not memory, and each thread takes 8 MB of them for its stack and 64 MB "
    "or more for its arena: use DATA, and leave room for 8 MB for each thread there",
    "NPROC": "it counts all processes and threads of the user, over all workers, and root is exempt: "
    "leave it to the system's administrator",
    "RSS": "Linux ignores it: use DATA",
}


def warn_of_misleading(reports: Iterable[LimitReport], server: Server) -> None:
    """Warn about each limit that was set and has another effect than its name promises.

    Args:
        reports: the limits that were set.
        server: what runs this process.
    """
    for report in reports:
        name, (soft, hard) = report.name, report.after
        if name in _MISLEADING and soft != UNLIMITED and not (name == "AS" and server.threads == 1):
            log.warning("rlimits: %s misleads: %s", name, _MISLEADING[name])
        if name == "CPU" and soft == hard != UNLIMITED:
            log.warning(
                "rlimits: CPU has one limit of %d s for soft and hard, so the kernel kills without "
                'notice, during a request: write "%d:" to let the worker retire',
                soft,
                soft,
            )


def warn_without_restart(server: Server, _store: Store) -> None:
    """Warn where a limit ends the server for good. A hook: the first request knows the server."""
    if not server.respawns:
        log.warning(
            "rlimits: nobody starts %s again, so no worker retires at a soft limit of CPU. The hard "
            "limit of CPU ends the whole server, and so may a lack of memory: use a server that "
            "restarts its workers, such as gunicorn",
            server.name,
        )

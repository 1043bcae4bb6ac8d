"""How a worker retires: it finishes its requests and ends, in its server's own way.

gunicorn's SIGTERM to a worker, uWSGI's SIGHUP and mod_wsgi's SIGUSR1 are what these servers use
themselves when a worker has served its number of requests.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress

from guardrails.store.contract import Store
from guardrails.worker.process import current_process
from guardrails.worker.server import Server

log = logging.getLogger("guardrails")


def remember_server(server: Server) -> None:
    """Remember the server of this process, until the first request detects it for certain."""
    process = current_process()
    if not process.is_server_certain:
        process.server = server
    process.hooks.when_started(_learn_server)


def _learn_server(server: Server, store: Store) -> None:
    process = current_process()
    process.server, process.store, process.is_server_certain = server, store, True


def may_retire() -> bool:
    """Return whether this worker can retire, and its server starts another one in its place."""
    # After a fork the server is unknown, so a child of a worker does not retire.
    server = current_process().server
    return server is not None and server.respawns and bool(server.retire_signal)


def is_retiring() -> bool:
    """Return whether this worker was told to retire."""
    return current_process().is_retiring


def retire(say: Callable[[], object], *, one_at_a_time: bool = False) -> bool:
    """Let this worker finish its requests and end. It may be called any number of times.

    Args:
        say: reports the retirement. It is called first, since some servers end an idle worker at once.
        one_at_a_time: do not retire while another worker of the same store does; False by default.

    Returns:
        False where this worker cannot retire, or not now.
    """
    process = current_process()
    server = process.server
    if process.is_retiring:
        return True
    if server is None or not may_retire():
        return False
    if process.store is not None:
        try:
            if not process.store.begin_retiring() and one_at_a_time:
                return False
        except Exception as error:
            log.warning("retiring: the store does not show it: %s", error)
    process.is_retiring = True
    with suppress(Exception):  # an app's own log handlers may raise; the worker retires all the same
        say()
    os.kill(process.pid, server.retire_signal)
    return True


def why_not() -> str:
    """Return why this process cannot retire, as a part of a sentence."""
    server = current_process().server
    name = server.name if server is not None else "an unknown server"
    if server is not None and server.respawns:
        return f"{name} has no way to let a worker finish its requests and end"
    return f"nobody would start {name} again"

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
from guardrails.worker.hooks import here as request_hooks
from guardrails.worker.server import Server

log = logging.getLogger("guardrails")


class _Known:
    """What is known of where the process `pid` is; whoever it forks is no worker."""

    pid = 0
    server: Server | None = None
    store: Store | None = None
    learnt_in = retired_in = 0


def remember_server(server: Server) -> None:
    """Remember the server, and learn more at the first request, which knows for certain."""
    if _Known.learnt_in != os.getpid():
        _Known.pid, _Known.server = os.getpid(), server
    request_hooks.when_started(_learn)


def _learn(server: Server, store: Store) -> None:
    _Known.pid, _Known.server, _Known.store = os.getpid(), server, store
    _Known.learnt_in = _Known.pid


def may_retire() -> bool:
    """Whether this worker can retire, and somebody starts another one in its place."""
    server = _Known.server
    here = _Known.pid == os.getpid()
    return here and server is not None and server.respawns and bool(server.retire_signal)


def is_retiring() -> bool:
    """Whether it was told to already."""
    return _Known.retired_in == os.getpid()


def retire(say: Callable[[], object], *, one_at_a_time: bool = False) -> bool:
    """Let this worker finish its requests and end. Any number of times; False where it cannot.

    say: called just before, since some servers end the worker at once if it is idle.
    one_at_a_time: not while another worker of the same store is about it.
    """
    server, store = _Known.server, _Known.store
    if is_retiring():
        return True
    if server is None or not may_retire():
        return False
    if store is not None:
        try:
            if not store.begin_retiring() and one_at_a_time:
                return False
        except Exception as error:
            log.warning("retiring: the store cannot be told: %s", error)
    _Known.retired_in = os.getpid()
    with suppress(Exception):  # an app's own log handlers may raise; it retires all the same
        say()
    os.kill(os.getpid(), server.retire_signal)
    return True


def why_not() -> str:
    """Why this process cannot retire, in words."""
    server = _Known.server
    name = server.name if server is not None else "an unknown server"
    if server is not None and server.respawns:
        return f"{name} has no way to let a worker finish its requests and end"
    return f"nobody would start {name} again"

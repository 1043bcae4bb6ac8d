"""How a worker retires: it finishes its requests and ends, in its server's own way.

gunicorn's SIGTERM to a worker, uWSGI's SIGHUP and mod_wsgi's SIGUSR1 are what these servers use
themselves when a worker has served its number of requests.

While the only worker that accepts connections retires, nobody is served. So it first has its server
start another one (extra_worker.py). Where that cannot be, it first lets its other requests end.
"""

from __future__ import annotations

import _thread
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from guardrails.store.contract import Store
from guardrails.worker.extra_worker import add_worker_and_wait, can_add_worker
from guardrails.worker.process import WorkerProcess, current_process
from guardrails.worker.server import Server

log = logging.getLogger("guardrails")

_ALONE_SECONDS = 60.0
"""How long a worker that cannot be replaced first waits for a moment without any request."""

_POLL_SECONDS = 0.05


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
    if _is_last(process, server):
        with suppress(RuntimeError):  # no further thread is possible
            _start_thread(server)(_retire_last, (process, server))
            return True
    os.kill(process.pid, server.retire_signal)
    return True


def _is_last(process: WorkerProcess, server: Server) -> bool:
    """Whether nobody is served once this worker retires, as far as is known."""
    if server.accepts_until_idle:
        return False  # mod_wsgi goes on accepting
    if server.threads == 1 and not can_add_worker(server.name):
        return False  # a worker with one thread has no other request to wait for
    if not hasattr(process.store, "name"):
        return server.processes == 1  # its store shows this worker alone
    try:
        workers = process.store.workers() if process.store is not None else []
    except Exception as error:
        log.info("retiring: the other workers are unknown: %s", error)
        return False
    others = [each for each in workers if each.pid != process.pid and each.parent == os.getppid()]
    return all(each.state == "retiring" for each in others)


def _retire_last(process: WorkerProcess, server: Server) -> None:
    """Retire when another worker accepts connections, or else in a moment without any request."""
    extra = None
    try:
        if can_add_worker(server.name):
            extra = add_worker_and_wait(os.getppid())
        if extra is not None:
            # Before the signal, since this thread may not run any more after it.
            extra.hand_back()
        elif server.threads != 1:
            _wait_until_alone(process)
    except Exception:
        log.exception("retiring: the worker retires although no other one may accept connections")
    os.kill(process.pid, server.retire_signal)


def _wait_until_alone(process: WorkerProcess) -> None:
    until = time.monotonic() + _ALONE_SECONDS
    while process.store is not None and time.monotonic() < until:
        if not any(each.pid == process.pid for each in process.store.requests()):
            return
        time.sleep(_POLL_SECONDS)


def _start_thread(server: Server) -> Callable[..., Any]:
    """What starts a thread: one of the system, unless an event loop serves the requests."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or server.coroutines:
        return _thread.start_new_thread
    start: Callable[..., Any] = monkey.get_original("_thread", "start_new_thread")
    return start


def why_not() -> str:
    """Return why this process cannot retire, as a part of a sentence."""
    server = current_process().server
    name = server.name if server is not None else "an unknown server"
    if server is not None and server.respawns:
        return f"{name} has no way to let a worker finish its requests and end"
    return f"nobody would start {name} again"

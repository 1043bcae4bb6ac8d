"""The soft limit of CPU: the worker retires, or the request that burnt too much ends.

The kernel sends SIGXCPU at the soft limit and with each further second, to the thread that is
running; uncaught it kills. Python runs handlers in the main thread only, so a handler will do where
that thread serves the requests. Where others do, the signal is blocked in all of them before they
start, and a thread of its own waits for it.
"""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path

from guardrails.errors import ConfigurationError
from guardrails.store.processes import process_status
from guardrails.worker.cpu_watcher import CPULimitWatcher
from guardrails.worker.process import current_process
from guardrails.worker.server import Server

log = logging.getLogger("guardrails")


def check_one_at_a_time(server: Server) -> None:
    """Refuse a budget per request where it cannot be kept: the limit is the whole process's."""
    if server.threads != 1:
        raise ConfigurationError(
            f"cpu_per_request: {server} serves several requests at once, or may do, and the kernel "
            "counts their CPU together: leave it out, and use CPUThrottle; or take workers that serve "
            "one at a time, such as gunicorn's sync"
        )


def watch(server: Server, life: int | None, budget: int | None) -> None:
    """Be told of the soft limit from now on. To be called before the limit is set.

    life: the soft limit of the whole process, in seconds.   budget: seconds for each request. Of
    several that are asked for in one process the smallest of each kind counts.

    Raises ConfigurationError where this thread cannot arrange for it.
    """
    process = current_process()
    if process.cpu_watcher is None:
        watcher = CPULimitWatcher()
        _arrange(server, watcher)
        process.cpu_watcher = watcher
    process.cpu_watcher.add(life, budget)


def _arrange(server: Server, watcher: CPULimitWatcher) -> None:
    """Have the watcher told of SIGXCPU, by a handler or by a thread."""
    if _server_catches():
        log.info("rlimits: CPU: the server has a way of its own to end a worker at its soft limit")
        return
    handler = signal.getsignal(signal.SIGXCPU)
    if handler not in (signal.SIG_DFL, signal.SIG_IGN, None) and not _is_ours(handler):
        log.warning(
            "rlimits: CPU: SIGXCPU has a handler already, which is left in place, so no worker retires "
            "at its soft limit: let that handler do it, or remove it"
        )
        return
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError(
            "CPU: a soft limit can only be watched when it is set in the main thread: set it in a "
            "hook of the server's, such as gunicorn's post_fork, or where the app's module is loaded"
        )
    if server.threads == 1 or server.greenlets:
        signal.signal(signal.SIGXCPU, watcher.signalled)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXCPU})
    if _all_block():
        watcher.start()
        current_process().hooks.when_started(watcher.start_again)
    else:
        # The other threads are there already: better late than killed.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGXCPU})
        signal.signal(signal.SIGXCPU, watcher.signalled)
        log.warning(
            "rlimits: CPU: threads were running before the limit was set, so the worker may retire "
            "late: set it in a hook, before the server starts its threads"
        )


def _is_ours(handler: object) -> bool:
    return isinstance(getattr(handler, "__self__", None), CPULimitWatcher)


def _server_catches() -> bool:
    """Whether somebody has a handler for SIGXCPU that Python does not know of, as mod_wsgi has."""
    if signal.getsignal(signal.SIGXCPU) not in (signal.SIG_DFL, signal.SIG_IGN, None):
        return False
    return _is_in(process_status("/proc/self").get("SigCgt", "0"))


def _all_block() -> bool:
    """Whether every thread of this process blocks SIGXCPU."""
    tasks = [process_status(task).get("SigBlk", "0") for task in Path("/proc/self/task").glob("*")]
    return bool(tasks) and all(map(_is_in, tasks))


def _is_in(mask: str) -> bool:
    return bool(int(mask, 16) >> (signal.SIGXCPU - 1) & 1)

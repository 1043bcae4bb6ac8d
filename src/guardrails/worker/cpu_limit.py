"""How a worker notices its soft limit of CPU.

The kernel sends SIGXCPU at the soft limit, and again after each further second of CPU. The signal goes
to a thread that runs. Without a handler the signal kills the process.

Python runs handlers in the main thread only. So where the main thread serves the requests, it gets a
handler. Where other threads serve them, all threads block the signal, and one thread waits for it.
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
    """Refuse a budget per request where requests run at the same time.

    The limit is that of the whole process, so the kernel cannot tell their CPU apart.

    Args:
        server: what runs this process.

    Raises:
        ConfigurationError: the server serves several requests at once, or may do so.
    """
    if server.threads != 1:
        raise ConfigurationError(
            f"cpu_per_request: {server} serves several requests at once, or may do, and the kernel "
            "counts their CPU together: leave it out, and use CPUThrottle; or take workers that serve "
            "one at a time, such as gunicorn's sync"
        )


def watch(server: Server, lifetime: int | None, budget: int | None) -> None:
    """Watch the soft limit of this process from now on. Call this before the limit is set.

    A process may have several such limits. The smallest of each kind counts.

    Args:
        server: what runs this process.
        lifetime: the soft limit of the whole process, in seconds of CPU; None without one.
        budget: seconds of CPU for each request; None without a budget.

    Raises:
        ConfigurationError: this thread cannot set a handler, and cannot block the signal for others.
    """
    process = current_process()
    if process.cpu_watcher is None:
        watcher = CPULimitWatcher()
        _connect(server, watcher)
        process.cpu_watcher = watcher
    process.cpu_watcher.add(lifetime, budget)


def _connect(server: Server, watcher: CPULimitWatcher) -> None:
    """Let SIGXCPU reach the watcher, by a handler or by a thread."""
    if _server_has_handler():
        log.info("rlimits: CPU: the server has a way of its own to end a worker at its soft limit")
        return
    handler = signal.getsignal(signal.SIGXCPU)
    if handler not in (signal.SIG_DFL, signal.SIG_IGN, None) and not _is_ours(handler):
        log.warning(
            "rlimits: CPU: SIGXCPU has a handler already, which is left in place, so no worker retires "
            "at its soft limit: let that handler retire the worker, or remove the handler"
        )
        return
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError(
            "CPU: a soft limit can only be watched when it is set in the main thread: set it in a "
            "hook of the server, such as gunicorn's post_fork, or where the app's module is loaded"
        )
    if server.threads == 1 or server.greenlets:
        signal.signal(signal.SIGXCPU, watcher.handle_signal)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXCPU})
    if _all_threads_block():
        watcher.start()
        current_process().hooks.when_started(watcher.restart)
    else:
        # Threads that started earlier do not block the signal, so one of them could get it and the
        # process would die. With a handler the worker retires, if perhaps late.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGXCPU})
        signal.signal(signal.SIGXCPU, watcher.handle_signal)
        log.warning(
            "rlimits: CPU: threads were running before the limit was set, so the worker may retire "
            "late: set it in a hook, before the server starts its threads"
        )


def _is_ours(handler: object) -> bool:
    return isinstance(getattr(handler, "__self__", None), CPULimitWatcher)


def _server_has_handler() -> bool:
    """Return whether C code has a handler for SIGXCPU that Python does not know, as mod_wsgi has."""
    if signal.getsignal(signal.SIGXCPU) not in (signal.SIG_DFL, signal.SIG_IGN, None):
        return False
    return _has_sigxcpu(process_status("/proc/self").get("SigCgt", "0"))


def _all_threads_block() -> bool:
    """Return whether every thread of this process blocks SIGXCPU."""
    masks = [process_status(task).get("SigBlk", "0") for task in Path("/proc/self/task").glob("*")]
    return bool(masks) and all(map(_has_sigxcpu, masks))


def _has_sigxcpu(mask: str) -> bool:
    return bool(int(mask, 16) >> (signal.SIGXCPU - 1) & 1)

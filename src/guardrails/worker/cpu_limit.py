"""The soft limit of CPU: the worker retires, or the request that burnt too much ends.

The kernel sends SIGXCPU at the soft limit and with each further second, to the thread that is
running; uncaught it kills. Python runs handlers in the main thread only, so a handler will do where
that thread serves the requests. Where others do, the signal is blocked in all of them before they
start, and a thread of its own waits for it.
"""

from __future__ import annotations

import _thread
import logging
import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from guardrails.errors import ConfigurationError, CPULimitError
from guardrails.once import Once
from guardrails.store.contract import Store, StoreRequest
from guardrails.store.processes import process_status
from guardrails.worker import interrupt, retire
from guardrails.worker.process import WorkerProcess, current_process
from guardrails.worker.server import Server, threads_are_greenlets

log = logging.getLogger("guardrails")

_UNLIMITED = -1


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


class CPULimitWatcher:
    """What happens at the soft limit, in the process that made it."""

    def __init__(self) -> None:
        self._life: float = math.inf
        self._budget: float = math.inf
        self._request_soft: float = math.inf
        self._first_time = Once()
        self._waiting_in: WorkerProcess | None = None
        self._moved = False

    def add(self, life: int | None, budget: int | None) -> None:
        """Take on another limit: the smallest counts."""
        self._life = min(self._life, math.inf if life is None else life)
        if budget is None:
            return
        if self._budget == math.inf:
            hooks = current_process().hooks
            hooks.before_request += (self.begin,)
            hooks.after_response += (self.end,)
            hooks.after_refusal += (self.end,)
        self._budget = min(self._budget, budget)

    def begin(self) -> None:
        """Before each request: move the soft limit on by its budget."""
        soft, hard = _cpu_limits()
        if not self._moved and soft != _UNLIMITED:
            # Somebody else's, as systemd's, must not be moved away.
            self._life = min(self._life, soft)
        self._moved = True
        self._request_soft = math.ceil(time.process_time() + self._budget)
        wanted = min(self._request_soft, self._life, math.inf if hard == _UNLIMITED else hard)
        _resource().setrlimit(_resource().RLIMIT_CPU, (int(wanted), hard))

    def end(self, _visit: StoreRequest | None = None) -> None:
        """After each request: what is burnt between them is nobody's."""
        self._request_soft = math.inf

    def signalled(self, _signal: int, frame: FrameType | None) -> None:
        """SIGXCPU, in the main thread, which is where the request runs.

        What a request holds is given back undisturbed: it ends where its app runs, if need be at the
        next signal.

        Which limit was passed is the kernel's to say: its count, taken at its ticks, may be ahead of
        the exact one. With each signal it moves the soft limit on by a second.
        """
        passed = _cpu_limits()[0] - (sys.platform == "linux")
        if passed >= self._life:
            self._retire_elsewhere()
        if passed >= self._request_soft and _is_the_apps(frame):
            raise CPULimitError(
                f"this request has burnt its {self._budget:g} s of CPU: see cpu_per_request"
            )

    def _retire_elsewhere(self) -> None:
        """Not in the handler: whom it interrupted may hold what a log, or the store, would wait for."""
        if threads_are_greenlets():
            import_module("gevent").spawn(self._retire)
            return
        try:
            _thread.start_new_thread(self._retire, ())
        except RuntimeError:  # no more threads can be had
            self._retire()

    def start(self) -> None:
        """Wait for the signal in a thread that does nothing else, and is a thread everywhere."""
        self._waiting_in = current_process()
        monkey = sys.modules.get("gevent.monkey")
        start = (
            monkey.get_original("_thread", "start_new_thread") if monkey else _thread.start_new_thread
        )
        start(self._wait, ())

    def start_again(self, _server: Server, _store: Store) -> None:
        """At the first request of a process: a fork leaves threads behind."""
        if self._waiting_in is not current_process():
            self._first_time = Once()
            self.start()

    def _wait(self) -> None:
        while True:
            signal.sigwait({signal.SIGXCPU})
            with suppress(Exception):  # an app's own log handlers may raise; the next signal counts too
                self._retire()

    def _retire(self) -> None:
        if not self._first_time():
            return
        pid = os.getpid()
        if not retire.retire(
            lambda: log.warning(
                "rlimits: CPU: worker %d has used %g s, its soft limit: it finishes its requests and "
                "retires",
                pid,
                self._life,
            )
        ):
            log.error(
                "rlimits: CPU: process %d has used %g s, its soft limit, and goes on: %s",
                pid,
                self._life,
                retire.why_not(),
            )


def _is_the_apps(frame: FrameType | None) -> bool:
    """Whether the app was running there, and neither the server nor what stands before the app."""
    outer = frame
    while outer is not None:
        module = str(outer.f_globals.get("__name__"))
        if module.startswith("guardrails.") and module != "guardrails.testing":
            return outer is not frame and outer.f_code in interrupt.APP_CALLERS
        outer = outer.f_back
    return False


def _resource() -> Any:
    return import_module("resource")  # POSIX only, and so is this


def _cpu_limits() -> tuple[int, int]:
    """The soft and the hard limit of CPU that are in force."""
    limits: tuple[int, int] = _resource().getrlimit(_resource().RLIMIT_CPU)
    return limits


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

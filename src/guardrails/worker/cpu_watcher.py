"""What happens at the soft limit of CPU: the worker retires, or the request ends."""

from __future__ import annotations

import _thread
import logging
import math
import os
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from types import FrameType

from guardrails.errors import CPULimitError
from guardrails.once import Once
from guardrails.store.contract import Store, StoreRequest
from guardrails.worker import interrupt, retire
from guardrails.worker.limit import UNLIMITED, resource_module
from guardrails.worker.process import WorkerProcess, current_process
from guardrails.worker.server import Server, threads_are_greenlets

log = logging.getLogger("guardrails")


class CPULimitWatcher:
    """Acts at the soft limit of CPU, in the process that made the watcher."""

    def __init__(self) -> None:
        self._lifetime: float = math.inf
        self._budget: float = math.inf
        self._request_soft: float = math.inf
        self._first_time = Once()
        self._waiting_in: WorkerProcess | None = None
        self._has_moved_limit = False

    def add(self, lifetime: int | None, budget: int | None) -> None:
        """Watch a further limit. The smallest of each kind counts.

        Args:
            lifetime: the soft limit of the whole process, in seconds of CPU; None without one.
            budget: seconds of CPU for each request; None without a budget.
        """
        self._lifetime = min(self._lifetime, math.inf if lifetime is None else lifetime)
        if budget is None:
            return
        if self._budget == math.inf:
            hooks = current_process().hooks
            hooks.before_request += (self.begin_request,)
            hooks.after_response += (self.end_request,)
            hooks.after_refusal += (self.end_request,)
        self._budget = min(self._budget, budget)

    def begin_request(self) -> None:
        """Move the soft limit ahead by the budget. A hook before each request."""
        soft, hard = _cpu_limits()
        if not self._has_moved_limit and soft != UNLIMITED:
            # Keep a limit that something else has set, such as systemd.
            self._lifetime = min(self._lifetime, soft)
        self._has_moved_limit = True
        self._request_soft = math.ceil(time.process_time() + self._budget)
        soft_limit = min(self._request_soft, self._lifetime, math.inf if hard == UNLIMITED else hard)
        resource = resource_module()
        resource.setrlimit(resource.RLIMIT_CPU, (int(soft_limit), hard))

    def end_request(self, _open_request: StoreRequest | None = None) -> None:
        """Count no CPU against a request that is over. A hook after each request."""
        self._request_soft = math.inf

    def handle_signal(self, _signal: int, frame: FrameType | None) -> None:
        """Handle SIGXCPU in the main thread, which serves the requests.

        An exception is raised only while the app runs, so that guardrails releases what the request
        holds. Outside the app the request goes on until the next signal, a second of CPU later.
        """
        # Compare with the kernel's limit, not with the exact CPU clock: the kernel counts by ticks, and
        # may be ahead. At each signal Linux raises the soft limit by a second.
        passed = _cpu_limits()[0] - (sys.platform == "linux")
        if passed >= self._lifetime:
            self._retire_elsewhere()
        if passed >= self._request_soft and _is_in_app(frame):
            raise CPULimitError(
                f"this request has used its {self._budget:g} s of CPU: see cpu_per_request"
            )

    def _retire_elsewhere(self) -> None:
        # Not in the handler: the interrupted code may hold a lock that logging or the store needs.
        if threads_are_greenlets():
            import_module("gevent").spawn(self._retire)
            return
        try:
            _thread.start_new_thread(self._retire, ())
        except RuntimeError:  # no further thread is possible
            self._retire()

    def start(self) -> None:
        """Wait for the signal in a thread: one of the system, also where gevent replaces threads."""
        self._waiting_in = current_process()
        monkey = sys.modules.get("gevent.monkey")
        start = (
            monkey.get_original("_thread", "start_new_thread") if monkey else _thread.start_new_thread
        )
        start(self._wait, ())

    def restart(self, _server: Server, _store: Store) -> None:
        """Start the thread in a forked process, which has none. A hook for the first request."""
        if self._waiting_in is not current_process():
            self._first_time = Once()
            self.start()

    def _wait(self) -> None:
        while True:
            signal.sigwait({signal.SIGXCPU})
            with suppress(Exception):  # a log handler of the app may raise; the next signal comes
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
                self._lifetime,
            )
        ):
            log.error(
                "rlimits: CPU: process %d has used %g s, its soft limit, and goes on: %s",
                pid,
                self._lifetime,
                retire.why_not(),
            )


def _is_in_app(frame: FrameType | None) -> bool:
    """Return whether a frame is the app's: neither the server's nor guardrails' own."""
    outer = frame
    while outer is not None:
        module = str(outer.f_globals.get("__name__"))
        if module.startswith("guardrails.") and module != "guardrails.testing":
            return outer is not frame and outer.f_code in interrupt.APP_CALLERS
        outer = outer.f_back
    return False


def _cpu_limits() -> tuple[int, int]:
    """Return the soft and the hard limit of CPU that are in force."""
    resource = resource_module()
    limits: tuple[int, int] = resource.getrlimit(resource.RLIMIT_CPU)
    return limits

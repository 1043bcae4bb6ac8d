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
from typing import Any

from guardrails.errors import CPULimitError
from guardrails.once import Once
from guardrails.store.contract import Store, StoreRequest
from guardrails.worker import interrupt, retire
from guardrails.worker.process import WorkerProcess, current_process
from guardrails.worker.server import Server, threads_are_greenlets

log = logging.getLogger("guardrails")

_UNLIMITED = -1


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

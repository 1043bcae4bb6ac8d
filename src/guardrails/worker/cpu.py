"""The soft limit of CPU: the worker retires, or the request that burnt too much ends.

The kernel sends SIGXCPU at the soft limit and with each further second, to the thread that is
running; uncaught it kills. Python runs handlers in the main thread only, so a handler will do where
that thread serves the requests. Where others do, the signal is blocked in all of them before they
start, and a thread of its own waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from guardrails.errors import ConfigurationError, CPULimitError
from guardrails.occasions import here as occasions
from guardrails.server import Server
from guardrails.store.contract import Store, Visit
from guardrails.worker import retiring

log = logging.getLogger("guardrails")

_UNLIMITED = -1
_TICKS_AHEAD = 0.1
"""Seconds by which the kernel's count, taken at its ticks, may be ahead of the exact one."""


def check_one_at_a_time(server: Server) -> None:
    """Refuse a budget per request where it cannot be kept: the limit is the whole process's."""
    if server.threads != 1:
        raise ConfigurationError(
            f"cpu_per_request: {server} serves several requests at once, or may do, and the kernel "
            "counts their CPU together: leave it out, and use CPUThrottle; or take workers that serve "
            "one at a time, such as gunicorn's sync"
        )


def watch(server: Server, life: tuple[int, int] | None, budget: int | None) -> None:
    """Be told of the soft limit from now on.

    life: the soft and the hard limit of the whole process, if any, in seconds; -1 is unlimited.
    budget: seconds for each request.

    Raises ConfigurationError where this thread cannot arrange for it.
    """
    watcher = _Watcher(life, budget)
    if _server_catches():
        log.info("rlimits: CPU: the server has a way of its own to end a worker at its soft limit")
        return
    main = threading.current_thread() is threading.main_thread()
    if main and (server.threads == 1 or "gevent" in server.name):
        signal.signal(signal.SIGXCPU, watcher.signalled)
    elif main:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXCPU})
        if _all_block():
            watcher.start()
            occasions.at_start += (watcher.start_again,)
        else:
            # The other threads are there already: better late than killed.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGXCPU})
            signal.signal(signal.SIGXCPU, watcher.signalled)
            log.warning(
                "rlimits: CPU: threads were running before the limit was set, so the worker may "
                "retire late: set it in a hook, before the server starts its threads"
            )
    else:
        raise ConfigurationError(
            "CPU: a soft limit can only be watched when it is set in the main thread: set it in a "
            "hook of the server's, such as gunicorn's post_fork, or where the app's module is loaded"
        )
    if budget is not None:
        occasions.before_request += (watcher.begin,)
        occasions.after_response += (watcher.end,)


class _Watcher:
    """What happens at the soft limit, in the process that made it."""

    def __init__(self, life: tuple[int, int] | None, budget: int | None) -> None:
        self._life = life
        self._budget = budget
        self._request_until = math.inf
        self._said = False
        self._pid = 0

    def begin(self) -> None:
        """Before each request: move the soft limit on by its budget."""
        import resource  # noqa: PLC0415 - POSIX only, and so is this

        assert self._budget is not None  # noqa: S101 - else nobody calls this
        until = time.process_time() + self._budget
        soft = math.ceil(until)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        if self._life is not None and self._life[0] != _UNLIMITED:
            soft = min(soft, self._life[0])
        if hard != _UNLIMITED:
            soft = min(soft, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
        self._request_until = until

    def end(self, _visit: Visit) -> None:
        """After each response: what is burnt between requests is nobody's."""
        self._request_until = math.inf

    def signalled(self, _signal: int, _frame: Any) -> None:
        """SIGXCPU, in the main thread, which is where the request runs."""
        used = time.process_time() + _TICKS_AHEAD
        if self._life is not None and self._life[0] != _UNLIMITED and used >= self._life[0]:
            self._retire(used)
        if used >= self._request_until:
            raise CPULimitError(
                f"this request has burnt its {self._budget} s of CPU: see cpu_per_request"
            )

    def start(self) -> None:
        """Wait for the signal in a thread that does nothing else."""
        self._pid = os.getpid()
        threading.Thread(target=self._wait, name="guardrails-cpu-limit", daemon=True).start()

    def start_again(self, _server: Server, _store: Store) -> None:
        """At the first request of a process: a fork leaves threads behind."""
        if self._pid != os.getpid():
            self._said = False
            self.start()

    def _wait(self) -> None:
        while True:
            signal.sigwait({signal.SIGXCPU})
            self._retire(time.process_time())

    def _retire(self, used: float) -> None:
        if self._said:
            return
        self._said = True
        if retiring.retire():
            log.warning(
                "rlimits: CPU: worker %d has used %d s, its soft limit: it finishes its requests and "
                "retires",
                os.getpid(),
                used,
            )
        else:
            log.error(
                "rlimits: CPU: worker %d has used %d s, its soft limit, and goes on: nobody would "
                "start %s again",
                os.getpid(),
                used,
                retiring.here(),
            )


def _server_catches() -> bool:
    """Whether somebody has a handler for SIGXCPU that Python does not know of, as mod_wsgi has."""
    if signal.getsignal(signal.SIGXCPU) not in (signal.SIG_DFL, signal.SIG_IGN, None):
        return False
    caught = _mask("/proc/self/status", "SigCgt:")
    return bool(caught >> (signal.SIGXCPU - 1) & 1)


def _all_block() -> bool:
    """Whether every thread of this process blocks SIGXCPU."""
    masks = [_mask(f"{task}/status", "SigBlk:") for task in Path("/proc/self/task").glob("*")]
    return bool(masks) and all(mask >> (signal.SIGXCPU - 1) & 1 for mask in masks)


def _mask(path: str, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(path).read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(name):
                return int(line.split()[1], 16)
    return 0

"""A further worker, started before the only one that accepts connections retires.

A worker that retires accepts nothing, and its server starts another one only when it has ended. So
a server with one such worker serves nobody until the last request of that worker is over.

gunicorn's master starts a worker at SIGTTIN. At SIGTTOU it takes one away: it sends SIGTERM to the
oldest. Both are sent before the worker that retires has ended, so the number of workers is the same
again when it has. No other server can be asked for one more worker.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress

from guardrails.store.processes import children_of, process_facts
from guardrails.worker.stacks import catches

log = logging.getLogger("guardrails")

START_SECONDS = 30.0
"""How long a new worker may take to load its app."""

_QUIET_SECONDS = 0.5
"""A new worker that has not served yet, and uses no CPU for so long, waits for connections."""


def can_add_worker(server: str) -> bool:
    """Return whether a server, by its name on the scoreboard, can be asked for one more worker."""
    return server.startswith("gunicorn") and hasattr(signal, "SIGTTIN")


class ExtraWorker:
    """One more worker of a gunicorn master. The master is asked for it at once.

    Args:
        master: pid of the master.

    Raises:
        OSError: the master has ended, is stopped, belongs to another user, or handles no such signal.
    """

    def __init__(self, master: int) -> None:
        # Any other process would be stopped by these signals.
        if not (catches(master, signal.SIGTTIN) and catches(master, signal.SIGTTOU)):
            raise ProcessLookupError(f"process {master} is no gunicorn that could start a worker")
        self._master = master
        self._before = children_of(master)
        self._busy: dict[int, float] = {}
        self._quiet_since: dict[int, float] = {}
        self._was_there = self._is_handed_back = False
        os.kill(master, signal.SIGTTIN)

    def is_ready(self, serving: Collection[int], now: float) -> bool:
        """Return whether the new worker accepts connections. Call this several times a second.

        Args:
            serving: pids of workers that have served a request.
            now: the time in seconds.
        """
        return any(pid in serving or self._is_quiet(pid, now) for pid in self._new())

    def has_come(self) -> bool:
        """Return whether the master has started a worker, which may still load its app."""
        return bool(self._new())

    def hand_back(self) -> None:
        """Let the master take one worker away, once: it has one less when the other has ended.

        After a reload (SIGHUP) the extra worker is gone, and the number is that of the settings.
        """
        if self._is_handed_back:
            return
        self._is_handed_back = True
        if self._was_there and not self._new():
            return
        with suppress(OSError):  # it has ended, and its number of workers with it
            if catches(self._master, signal.SIGTTOU):
                os.kill(self._master, signal.SIGTTOU)

    def _new(self) -> set[int]:
        found = children_of(self._master) - self._before
        self._was_there = self._was_there or bool(found)
        return found

    def _is_quiet(self, pid: int, now: float) -> bool:
        facts = process_facts(pid)
        if facts is None:
            return False
        if not facts.is_waiting or facts.cpu_seconds != self._busy.get(pid):
            self._busy[pid], self._quiet_since[pid] = facts.cpu_seconds, now
        return now - self._quiet_since[pid] >= _QUIET_SECONDS


def add_worker_and_wait(master: int, seconds: float = START_SECONDS) -> ExtraWorker | None:
    """Add a worker, and wait until it accepts connections.

    Args:
        master: pid of gunicorn's master.
        seconds: how long to wait (30).

    Returns:
        The worker; None where the master starts none.
    """
    try:
        extra = ExtraWorker(master)
    except OSError as error:
        log.info("retiring: no worker is added first: %s", error)
        return None
    until = time.monotonic() + seconds
    while not extra.is_ready((), now := time.monotonic()) and now < until:
        time.sleep(0.05)
    if extra.has_come():
        return extra
    extra.hand_back()
    return None

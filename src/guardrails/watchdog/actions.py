"""What a watchdog does with the processes of this host: it looks at them and signals them."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from guardrails.store.processes import Owner, is_dead, pid_namespace, process_facts
from guardrails.store.records import InFlight, Worker
from guardrails.watchdog import stack_dump
from guardrails.watchdog.pidfd import open_process
from guardrails.worker import control_pipe, memory, stacks
from guardrails.worker.extra_worker import ExtraWorker, can_add_worker

log = logging.getLogger("guardrails.watch")


class System(Protocol):
    """What the watchdog does with processes."""

    def send(self, owner: Owner, number: int) -> bool:
        """Send a signal to that process and no later one with its pid; False when it has ended."""

    def is_there(self, owner: Owner) -> bool:
        """Return whether that process, and not a later one with its pid, still runs."""

    def namespace(self) -> int:
        """Return the pid namespace whose processes are visible from here."""

    def parent(self, pid: int) -> int:
        """Return the parent of a process now; 0 where that is not known."""

    def cpu_seconds(self, pid: int) -> float:
        """Return the CPU time that a process has used."""

    def dump(self, worker: Worker, thread: int) -> stack_dump.Dump | None:
        """Return the Python stacks of a worker, with that of a thread if possible."""

    def interrupt(self, worker: Worker, request: InFlight) -> bool:
        """Have a request ended by an exception; return whether the worker took the command."""

    def add_worker(self, worker: Worker) -> ExtraWorker | None:
        """Have the server of a worker start one more; return None where that cannot be."""

    def oom_file(self, pid: int) -> Path | None:
        """Return the file that counts the OOM kills of a process's cgroup; None without one."""

    def oom_kills(self, file: Path) -> int | None:
        """Return how many processes of a cgroup were killed for lack of memory; None if unreadable."""


class Processes:
    """The processes of this host."""

    def send(self, owner: Owner, number: int) -> bool:
        """By pidfd, so that a later process with that pid gets no signal."""
        with suppress(ProcessLookupError), open_process(owner.pid) as send:
            if self.is_there(owner):
                send(number)
                return True
        return False

    def is_there(self, owner: Owner) -> bool:
        """A zombie has ended."""
        return not is_dead(owner, pid_namespace())

    def namespace(self) -> int:
        """The namespace of this process."""
        return pid_namespace()

    def parent(self, pid: int) -> int:
        """As /proc says."""
        facts = process_facts(pid)
        return facts.parent if facts else 0

    def cpu_seconds(self, pid: int) -> float:
        """As /proc says."""
        facts = process_facts(pid)
        return facts.cpu_seconds if facts else 0.0

    def dump(self, worker: Worker, thread: int) -> stack_dump.Dump | None:
        """From the worker itself, else from py-spy where that is installed."""
        owner, dump = worker.owner, None
        file = stack_dump.open_stack_file(owner)
        if file is not None:
            try:
                # faulthandler may crash a running worker, so it is asked only if Python is silent.
                for send in (self._ask_python, self._ask_faulthandler):
                    dump = stack_dump.ask(file, partial(send, worker, thread), thread) or dump
                    if dump is not None and dump.of(thread) is not None:
                        return dump
            finally:
                os.close(file)
        if not self.is_there(owner):
            return dump
        return stack_dump.ask_py_spy(worker.pid) or dump

    def _ask_python(self, worker: Worker, thread: int) -> bool:
        if not worker.asked_by_signal:
            return control_pipe.send_command(worker.owner, control_pipe.SHOW_STACKS, 0, thread)
        return stacks.catches(worker.pid, stacks.ASK_SIGNAL) and self.send(
            worker.owner, stacks.ASK_SIGNAL
        )

    def _ask_faulthandler(self, worker: Worker, _thread: int) -> bool:
        number = worker.dump_signal
        # A process that has executed another program has the same pid, but no handler.
        return bool(number) and stacks.catches(worker.pid, number) and self.send(worker.owner, number)

    def interrupt(self, worker: Worker, request: InFlight) -> bool:
        """By the control pipe of the worker."""
        return control_pipe.send_command(
            worker.owner, control_pipe.INTERRUPT, request.generation, request.thread
        )

    def add_worker(self, worker: Worker) -> ExtraWorker | None:
        """By a signal to gunicorn's master."""
        if not can_add_worker(worker.server) or self.parent(worker.pid) != worker.parent:
            return None
        try:
            return ExtraWorker(worker.parent)
        except OSError as error:
            log.info("watchdog: no worker is added: %s", error)
            return None

    def oom_file(self, pid: int) -> Path | None:
        """As /proc says."""
        return memory.oom_file(Path(f"/proc/{pid}"))

    def oom_kills(self, file: Path) -> int | None:
        """As the kernel says."""
        return memory.oom_kills(file)

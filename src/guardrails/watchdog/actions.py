"""What a watchdog does to the processes of this host: looks at them, and sends them signals."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import Protocol

from guardrails.store.processes import Owner, is_dead, pid_namespace, process_facts
from guardrails.store.records import InFlight, Worker
from guardrails.watchdog.pidfd import open_process
from guardrails.worker import control_pipe, stacks


class System(Protocol):
    """What the watchdog does to processes."""

    def send(self, owner: Owner, number: int) -> bool:
        """Send a signal to that very process. False when it is gone."""

    def is_there(self, owner: Owner) -> bool:
        """Whether that very process still runs."""

    def namespace(self) -> int:
        """The pid namespace whose processes it can see."""

    def parent(self, pid: int) -> int:
        """Its parent now; 0 where that is not known."""

    def cpu_seconds(self, pid: int) -> float:
        """What it has burnt."""

    def dump(self, worker: Worker, thread: int) -> stacks.Dump | None:
        """Its Python stacks, with that thread's if it can be had."""

    def interrupt(self, worker: Worker, request: InFlight) -> bool:
        """Have the request ended by an exception."""


class Processes:
    """The processes of this host."""

    def send(self, owner: Owner, number: int) -> bool:
        """To whom it was meant, also where that number is soon another's."""
        with suppress(ProcessLookupError), open_process(owner.pid) as send:
            if self.is_there(owner):
                send(number)
                return True
        return False

    def is_there(self, owner: Owner) -> bool:
        """A zombie has ended."""
        return not is_dead(owner, pid_namespace())

    def namespace(self) -> int:
        """This process's own."""
        return pid_namespace()

    def parent(self, pid: int) -> int:
        """As /proc says."""
        facts = process_facts(pid)
        return facts.parent if facts else 0

    def cpu_seconds(self, pid: int) -> float:
        """As /proc says."""
        facts = process_facts(pid)
        return facts.cpu_seconds if facts else 0.0

    def dump(self, worker: Worker, thread: int) -> stacks.Dump | None:
        """By the worker itself, else by py-spy where that is installed."""
        owner, dump = worker.owner, None
        file = stacks.open_stack_file(owner)
        if file is not None:
            try:
                # The second may crash a worker that runs: only for one that does not answer.
                for send in (self._ask, self._ask_c_code):
                    dump = stacks.ask(file, partial(send, worker, thread), thread) or dump
                    if dump is not None and dump.of(thread) is not None:
                        return dump
            finally:
                os.close(file)
        if not self.is_there(owner):
            return dump
        return stacks.ask_py_spy(worker.pid) or dump

    def _ask(self, worker: Worker, thread: int) -> bool:
        if not worker.asked_by_signal:
            return control_pipe.send_command(worker.owner, control_pipe.SHOW_STACKS, 0, thread)
        return stacks.catches(worker.pid, stacks.ASK_SIGNAL) and self.send(
            worker.owner, stacks.ASK_SIGNAL
        )

    def _ask_c_code(self, worker: Worker, _thread: int) -> bool:
        number = worker.dump_signal
        # A process that executed something else anew has the same pid, and no handler.
        return bool(number) and stacks.catches(worker.pid, number) and self.send(worker.owner, number)

    def interrupt(self, worker: Worker, request: InFlight) -> bool:
        """By the worker's own pipe."""
        return control_pipe.send_command(
            worker.owner, control_pipe.INTERRUPT, request.generation, request.thread
        )

"""What a watchdog does to the processes of this host: looks at them, and sends them signals."""

from __future__ import annotations

import os
import signal
from typing import Protocol

from guardrails import interrupting, stacks
from guardrails.store.contract import InFlight, Worker
from guardrails.store.processes import Owner, is_dead, pid_namespace, process_facts


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
        """Through a descriptor of the process, so that no later one of the same pid is met."""
        try:
            descriptor = os.pidfd_open(owner.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_there(owner):
                return False
            signal.pidfd_send_signal(descriptor, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)

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
        """By faulthandler in the worker itself, else by py-spy where that is installed."""
        dump = None
        if worker.dump_signal:
            file = stacks.open_file(worker.owner)
            if file is not None:
                dump = stacks.ask(file, lambda: self.send(worker.owner, worker.dump_signal))
        if dump is not None and dump.of(thread) is not None:
            return dump
        if not self.is_there(worker.owner):
            return dump
        return stacks.ask_py_spy(worker.pid) or dump

    def interrupt(self, worker: Worker, request: InFlight) -> bool:
        """By the worker's own pipe."""
        return interrupting.order(worker.owner, request.generation, request.thread)

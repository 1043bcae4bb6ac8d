"""The state of one worker process: one object, renewed after every fork.

Everything that belongs to a process, and not to the program, is in `WorkerProcess`: the server and the
store, the hooks, the control pipe, the file of stacks, the limits that were applied. A fork makes a new
one. Nothing else in guardrails compares pids.
"""

from __future__ import annotations

import atexit
import itertools
import os
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType

from guardrails.worker.control_pipe import ControlPipe
from guardrails.worker.hooks import RequestHooks
from guardrails.worker.interrupt import RequestInterrupts
from guardrails.worker.memory import Statm
from guardrails.worker.server import Server
from guardrails.worker.stacks import StackFile

if TYPE_CHECKING:
    from guardrails.store.contract import Store
    from guardrails.worker.cpu_watcher import CPULimitWatcher
    from guardrails.worker.limit import LimitReport
    from guardrails.worker.rlimits import ResourceLimits
    from guardrails.worker.size import SizeLimit
    from guardrails.worker.size_guard import SizeGuard


class WorkerProcess:
    """The state of this process.

    Args:
        parent: the object of the process that this one was forked from. Hooks and size guards belong to
            the program, so they are kept. Threads, locks, open files and limits are not.

    Attributes:
        pid: the pid of the process.
        server: the server that runs the process, as far as it is known; None before it was detected.
        store: the store of its first request; None before that.
        is_retiring: whether the process was told to finish its requests and end.
        applied_limits: the limits that were set in this process, with what was reported of them.
        named_limits: the names of the limits that were requested. No default overrides them.
        cpu_watcher: acts at the soft limit of CPU; None without such a limit.
        size_guards: the size guards in force.
        open_requests: the requests whose responses are not closed, by their tokens.
        request_tokens: gives each request its token, which no other process gives a request.
    """

    def __init__(self, parent: WorkerProcess | None = None) -> None:
        self.pid = os.getpid()
        self.hooks: RequestHooks = RequestHooks(parent.hooks if parent else None)
        self.control_pipe = ControlPipe()
        self.interrupts = RequestInterrupts(self.control_pipe)
        self.stacks: StackFile = StackFile(self.control_pipe, parent.stacks if parent else None)
        self.statm = Statm()
        self.server: Server | None = None
        self.store: Store | None = None
        self.is_server_certain = False
        self.is_retiring = False
        self.applied_limits: dict[ResourceLimits, tuple[LimitReport, ...]] = {}
        self.named_limits: set[str] = set()
        self.cpu_watcher: CPULimitWatcher | None = None
        self.size_guards: dict[SizeLimit, SizeGuard] = dict(parent.size_guards) if parent else {}
        self.open_requests: dict[int, ReferenceType[Any]] = {}
        # Random, but small enough for every JSON encoder: below 2**63.
        self.request_tokens = itertools.count(int.from_bytes(os.urandom(7), "big") << 6)

    def close(self) -> None:
        """Remove the files of this process."""
        self.control_pipe.close()
        self.stacks.close()


def current_process() -> WorkerProcess:
    """Return the object of the process that calls. After a fork it is a new one."""
    # uWSGI may fork without calling Python's hooks, so compare the pid here, and nowhere else.
    if _process.pid != os.getpid():
        _renew()
    return _process


def _renew() -> None:
    global _process
    _process.interrupts.forget_parent()
    _process = WorkerProcess(_process)


def _close_at_exit() -> None:
    # A child that was forked without Python's hooks also runs this, and the files are its parent's.
    if _process.pid == os.getpid():
        _process.close()


_process = WorkerProcess()
atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)

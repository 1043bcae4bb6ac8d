"""Ending one request by an exception in its thread, when a watchdog asks for it. Opt-in.

The command names a request. If that request is still in flight, `RequestInterruptedError` is raised in
its thread. Python raises it between two bytecodes: a loop ends at once; a sleep, a wait for a lock or a
call of C code ends when it returns.

The exception must reach the app of that request and nothing else: not the next request of the thread,
not the server, not guardrails. So a request can be interrupted only within `at_work`, which calls its
app or takes one part of its response. A command that comes between two parts is applied at the next.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from types import CodeType
from typing import TypeVar

from guardrails.errors import RequestInterruptedError, StoreError
from guardrails.worker.control_pipe import INTERRUPT, ControlPipe
from guardrails.worker.server import Server

log = logging.getLogger("guardrails")

Result = TypeVar("Result")
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., object])

APP_CALLERS: set[CodeType] = set()
"""The functions of guardrails that call the app, or take a part of its response, directly."""

_NOTHING = object()
_MOST_PENDING = 16


def calls_the_app(function: AnyFunction) -> AnyFunction:
    """Note that a function calls the app: what its frame calls is the app's own code."""
    APP_CALLERS.add(function.__code__)
    return function


class _Work:
    """The step of a request that a thread executes, and whether a command has interrupted it."""

    __slots__ = ("interrupted", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.interrupted = False


class RequestInterrupts:
    """Interrupts requests of one process.

    Args:
        control_pipe: where the commands come from.
    """

    def __init__(self, control_pipe: ControlPipe) -> None:
        self._control_pipe = control_pipe
        self._at_work: dict[int, _Work] = {}
        # Interrupts that arrived between two parts of a response; applied at the next part.
        self._pending: deque[int] = deque(maxlen=_MOST_PENDING)
        # A thread holds it while it looks up a request and raises, or withdraws, its exception. It is
        # reentrant: meanwhile a destructor in the same thread may end another request.
        self._lock = threading.RLock()

    def forget_parent(self) -> None:
        """After a fork: drop what the parent's threads did, and the lock, which one may have held.

        A request that was open at the fork still uses this object in the child.
        """
        self._lock = threading.RLock()
        self._at_work.clear()
        self._pending.clear()

    def install(self, server: Server) -> bool:
        """Let watchdogs interrupt the requests of this process from now on. Never raises.

        Args:
            server: what runs this process.

        Returns:
            False where that cannot be. An exception in a thread of coroutines would reach whichever of
            them runs.
        """
        if server.greenlets or not hasattr(os, "mkfifo"):
            return False
        try:
            self._control_pipe.handle(INTERRUPT, self.interrupt)
        except (OSError, StoreError, RuntimeError) as error:
            log.warning("interruptible: no watchdog can end a single request of this worker: %s", error)
            return False
        return True

    def is_installed(self) -> bool:
        """Return whether some throttle of this process lets its requests be interrupted."""
        return self._control_pipe.handles(INTERRUPT)

    def interrupt(self, generation: int, _thread: int) -> None:
        """End a request of this process by an exception, once.

        Args:
            generation: the number of the request.
        """
        with self._lock:
            work = self._at_work.get(generation)
            if work is None:
                self._pending.append(generation)
            elif not work.interrupted:
                work.interrupted = True
                _raise_in(work.thread, RequestInterruptedError)

    @calls_the_app
    def at_work(self, generation: int, step: Callable[..., Result], *arguments: object) -> Result:
        """Call `step(*arguments)`, which may be interrupted meanwhile.

        A step that has returned, or raised, just before the exception arrives counts as done.

        Args:
            generation: the number of the request.
            step: calls the app, or takes a part of its response.
            arguments: of the step.

        Returns:
            What the step returns.
        """
        if generation in self._at_work:
            return step(*arguments)  # the outer throttle of this request is already at work
        work = _Work()
        result: object = _NOTHING
        own: BaseException | None = None
        try:
            try:
                self._begin(generation, work)
                result = step(*arguments)
            except BaseException as error:
                own = error
            finally:
                self._end(generation, work)
        except BaseException as error:
            self._end(generation, work)  # the exception may have cut it short
            late = isinstance(error, RequestInterruptedError) and work.interrupted
            if not late or (own is None and result is _NOTHING):
                raise
        if own is not None:
            try:
                raise own
            finally:
                own = None  # otherwise the error holds itself, by its traceback
        return result  # type: ignore[return-value]

    def _begin(self, generation: int, work: _Work) -> None:
        with self._lock:
            self._at_work[generation] = work
            if generation in self._pending:
                self._pending.remove(generation)
                raise RequestInterruptedError

    def _end(self, generation: int, work: _Work) -> None:
        with self._lock:
            self._at_work.pop(generation, None)
            if work.interrupted:
                _raise_in(work.thread, None)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )

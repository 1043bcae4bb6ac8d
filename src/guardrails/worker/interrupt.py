"""Ending one request by an exception in its thread, at the wish of a watchdog. Opt-in.

The order names a request; if that is still in flight, `RequestInterruptedError` is raised in its
thread. Python raises it between two bytecodes: code that loops is ended at once, a sleep or a wait
for a lock when it comes back by itself, C code likewise.

The exception must meet that request's app and nothing else: neither the next request in its thread, nor
the server, nor what is done here before and after. So a request can be met only in `at_work`, within
which its app is called or asked for a part of its response. An order that comes in between is kept for
the next part.
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
from guardrails.worker import control_pipe
from guardrails.worker.server import Server

log = logging.getLogger("guardrails")

Result = TypeVar("Result")
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., object])

APP_CALLERS: set[CodeType] = set()
"""The functions of guardrails that call the app, or a part of its response, directly."""


def calls_the_app(function: AnyFunction) -> AnyFunction:
    """Note that a function calls the app: code below its frame is the app's own."""
    APP_CALLERS.add(function.__code__)
    return function


_NOTHING = object()
_MOST_KEPT = 16


class _Work:
    """What a thread does for a request now, and whether it was told to end."""

    __slots__ = ("interrupted", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.interrupted = False


_at_work: dict[int, _Work] = {}
"""By the generation of the request."""

_kept: deque[int] = deque(maxlen=_MOST_KEPT)
"""Generations that were to end while nothing was done for them. Who had ended is not seen again."""

_lock = threading.RLock()
"""Held from the look at who is at work until the exception is on its way, or taken back. Python may
tidy up memory meanwhile, and run whatever destroys things."""


def listen(server: Server) -> bool:
    """Take orders for the requests of this process from now on. Never raises.

    Not where coroutines serve: an exception in their thread would meet whichever of them runs.
    """
    if server.greenlets or not hasattr(os, "mkfifo"):
        return False
    try:
        control_pipe.listen(control_pipe.INTERRUPT, interrupt)
    except (OSError, StoreError, RuntimeError) as error:
        log.warning("interruptible: no watchdog can end a single request of this worker: %s", error)
        return False
    return True


def is_listening() -> bool:
    """Whether some throttle of this process takes such orders."""
    return control_pipe.is_listening(control_pipe.INTERRUPT)


def interrupt(generation: int, _thread: int) -> None:
    """End that request of this process by an exception, once."""
    with _lock:
        work = _at_work.get(generation)
        if work is None:
            _kept.append(generation)
        elif not work.interrupted:
            work.interrupted = True
            _raise_in(work.thread, RequestInterruptedError)


@calls_the_app
def at_work(generation: int, step: Callable[..., Result], *arguments: object) -> Result:
    """Call `step(*arguments)`, and let an order end it meanwhile.

    What is done when the order comes is done: a step that has just returned, or raised, counts.
    """
    if generation in _at_work:
        return step(*arguments)  # an inner throttle's
    work = _Work()
    result: object = _NOTHING
    own: BaseException | None = None
    try:
        try:
            _begin(generation, work)
            result = step(*arguments)
        except BaseException as error:
            own = error
        finally:
            _end(generation, work)
    except BaseException as error:
        _end(generation, work)  # it may have been cut short
        late = isinstance(error, RequestInterruptedError) and work.interrupted
        if not late or (own is None and result is _NOTHING):
            raise
    if own is not None:
        try:
            raise own
        finally:
            own = None  # else it would hold itself, by its traceback
    return result  # type: ignore[return-value]


def _begin(generation: int, work: _Work) -> None:
    with _lock:
        _at_work[generation] = work
        if generation in _kept:
            _kept.remove(generation)
            raise RequestInterruptedError


def _end(generation: int, work: _Work) -> None:
    with _lock:
        _at_work.pop(generation, None)
        if work.interrupted:
            _raise_in(work.thread, None)


def _after_a_fork() -> None:
    """The thread that carries out orders is the parent's, and may have held the lock."""
    global _lock
    _lock = threading.RLock()
    _at_work.clear()
    _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_a_fork)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )

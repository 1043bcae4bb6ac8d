"""Ending one request by an exception in its thread, at the wish of a watchdog. Opt-in.

The order names a request; if that is still in flight, `RequestInterruptedError` is raised in its
thread. Python raises it between two bytecodes: code that loops is ended at once, a sleep or a wait
for a lock when it comes back by itself, C code likewise.

The exception must meet that request and no other, and nothing of guardrails' own. So a request can be
met from the moment when its app is called until its response is over, before anything is given back:
both ends are noted here, under the lock under which the exception is raised.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading

from guardrails import orders
from guardrails.errors import RequestInterruptedError, StoreError
from guardrails.server import Server
from guardrails.store.contract import Visit

log = logging.getLogger("guardrails")

listening = False
"""Whether this process takes such orders: where it does not, requests need not be noted."""

_served: dict[int, dict[int, bool]] = {}
"""Thread -> generation of each request that is being served there -> whether it was interrupted.
There are several where an inner throttle has a store of its own."""

_lock = threading.RLock()
"""Whoever holds it may come by again: a dropped request can end wherever memory is allocated."""


def listen(server: Server) -> bool:
    """Take orders for the requests of this process from now on. Never raises.

    Not where greenlets serve: an exception in their thread would meet whichever of them runs.
    """
    global listening
    if server.greenlets or not hasattr(os, "mkfifo"):
        return False
    try:
        orders.listen(orders.INTERRUPT, interrupt)
    except (OSError, StoreError, RuntimeError) as error:
        log.warning("interruptible: no watchdog can end a single request of this worker: %s", error)
        return False
    listening = True
    return True


def interrupt(generation: int, thread: int) -> None:
    """End that request of this process by an exception, once, if that thread still serves it."""
    with _lock:
        served = _served.get(thread, {})
        if served.get(generation) is False:
            served[generation] = True
            _raise_in(thread, RequestInterruptedError)


def begin(visit: Visit, *, outermost: bool) -> None:
    """A request is served from now on.

    outermost: whatever else that thread served is over, though nobody closed it.
    """
    with _lock:
        if outermost:
            _forget(visit.thread)
        _served.setdefault(visit.thread, {})[visit.generation] = False


def over(visit: Visit, *, outermost: bool) -> None:
    """A request is served no longer: nothing that was meant for it may meet what comes next."""
    with _lock:
        served = _served.get(visit.thread, {})
        if visit.generation not in served:
            return
        if outermost or len(served) == 1:
            _forget(visit.thread)
        elif served.pop(visit.generation):
            _raise_in(visit.thread, None)


def _forget(thread: int) -> None:
    if any(_served.pop(thread, {}).values()):
        _raise_in(thread, None)


def _after_a_fork() -> None:
    """The thread that carries out orders is the parent's, and may have held the lock."""
    global _lock, listening
    _lock, listening = threading.RLock(), False
    _served.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_a_fork)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )

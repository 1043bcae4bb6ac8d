"""Ending one request by an exception in its thread, at the wish of a watchdog. Opt-in.

The order names a request; if that is still in flight, `RequestInterruptedError` is raised in its
thread. Python raises it between two bytecodes: code that loops is ended at once, a sleep or a wait
for a lock when it comes back by itself, C code likewise.

The exception must meet that request and no other. So whoever ends a request takes back what may be
pending for it, under the same lock under which it is raised.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading

from guardrails import cputime, orders
from guardrails.errors import RequestInterruptedError, StoreError
from guardrails.server import Server
from guardrails.store.contract import Store, Visit

log = logging.getLogger("guardrails")

pending: dict[int, int] = {}
"""The request that is interrupted in each thread. Empty nearly always: looked at when one ends. What a
thread leaves that ends in that instant stays, and harms nobody."""

_lock = threading.RLock()
"""Whoever holds it may come by again: a dropped request can end wherever memory is allocated."""

_stores: tuple[Store, ...] = ()


def listen(server: Server, store: Store) -> bool:
    """Take orders for the requests of this process in `store` from now on. Never raises.

    Not where greenlets serve: an exception in their thread would meet whichever of them runs.
    """
    global _stores
    if server.greenlets or not hasattr(os, "mkfifo"):
        return False
    try:
        orders.listen(orders.INTERRUPT, interrupt)
    except (OSError, StoreError, RuntimeError) as error:
        log.warning("interruptible: no watchdog can end a single request of this worker: %s", error)
        return False
    if store not in _stores:
        _stores += (store,)
    return True


def interrupt(generation: int, thread: int) -> None:
    """End that request of this process by an exception, if it is still in that thread."""
    with _lock:
        # First this, then the look: who ends in between finds it, and waits for the lock.
        pending[thread] = generation
        stands = False
        try:
            stands = _is_in_flight(generation, thread)
        finally:
            if not stands:
                pending.pop(thread, None)
        if pending.get(thread) == generation:
            _raise_in(thread, RequestInterruptedError)


def over(visit: Visit, *, outermost: bool) -> None:
    """A request has ended: nothing that was meant for it may meet the next one.

    outermost: no other request can be under way in its thread, whatever its number was.
    """
    alone = outermost and visit.thread == cputime.identify()
    with _lock:
        meant = pending.get(visit.thread)
        if meant is not None and (alone or meant == visit.generation):
            del pending[visit.thread]
            _raise_in(visit.thread, None)


def _is_in_flight(generation: int, thread: int) -> bool:
    pid = os.getpid()
    return any(
        (request.pid, request.generation, request.thread) == (pid, generation, thread)
        for store in _stores
        for request in store.requests()
    )


def _after_a_fork() -> None:
    """The thread that carries out orders is the parent's, and may have held the lock."""
    global _lock, _stores
    _lock, _stores = threading.RLock(), ()
    pending.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_a_fork)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )

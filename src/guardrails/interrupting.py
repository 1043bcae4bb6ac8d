"""Ending one request by an exception in its thread, at the wish of a watchdog. Opt-in.

A thread of this process waits at a named pipe in the user's folder of stores. What it reads names a
request; if that is still in flight, `RequestInterruptedError` is raised in its thread. Python raises
it between two bytecodes: code that loops is ended at once, a sleep or a wait for a lock when it comes
back by itself, C code likewise.

The exception must meet that request and no other. So whoever ends a request takes back what may be
pending for it, under the same lock under which it is raised.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import sys
import threading
from contextlib import suppress

from guardrails.errors import RequestInterruptedError, StoreError
from guardrails.store.contract import Store, Visit
from guardrails.store.processes import Owner, this_process

log = logging.getLogger("guardrails")

PREFIX = "interrupt-"
_ORDER = struct.Struct("=QQ")

pending: dict[int, int] = {}
"""The request that is interrupted in each thread. Empty nearly always: looked at when one ends. What a
thread leaves that ends in that instant stays, and harms nobody."""

_lock = threading.Lock()
_listening_in = 0


def listen(store: Store) -> bool:
    """Take orders for the requests of this process from now on. Never raises.

    Not where greenlets serve: an exception in their thread would meet whichever of them runs.
    """
    global _listening_in
    if _listening_in == os.getpid():
        return True
    if "gevent" in sys.modules or not hasattr(os, "mkfifo"):
        return False
    from guardrails.store import place  # noqa: PLC0415 - needs POSIX

    try:
        folder = place.own_folder()
        path = folder / pipe_name(this_process())
        with suppress(FileNotFoundError):
            path.unlink()
        os.mkfifo(path, 0o600)
        pipe = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (OSError, StoreError) as error:
        log.warning("interruptible: no watchdog can end a single request of this worker: %s", error)
        return False
    _listening_in = os.getpid()
    threading.Thread(target=_obey, args=(pipe, store), name="guardrails-interrupt", daemon=True).start()
    return True


def pipe_name(owner: Owner) -> str:
    """What the pipe of a process is called."""
    return f"{PREFIX}{owner.namespace}-{owner.pid}-{owner.start}"


def order(owner: Owner, generation: int, thread: int) -> bool:
    """Ask a process to end one request. False where it does not take orders."""
    from guardrails.store import place  # noqa: PLC0415 - as above

    for folder in place.folders():
        with suppress(OSError):
            pipe = os.open(
                folder / pipe_name(owner), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
            )
            try:
                return os.write(pipe, _ORDER.pack(generation, thread)) == _ORDER.size
            finally:
                os.close(pipe)
    return False


def over(visit: Visit, *, outermost: bool) -> None:
    """A request has ended: nothing that was meant for it may meet the next one.

    outermost: no other request can be under way in its thread, whatever its number was.
    """
    with _lock:
        meant = pending.get(visit.thread)
        if meant is not None and (outermost or meant == visit.generation):
            del pending[visit.thread]
            _raise_in(visit.thread, None)


def _obey(pipe: int, store: Store) -> None:
    while True:
        try:
            generation, thread = _ORDER.unpack(os.read(pipe, _ORDER.size))
            _interrupt(store, generation, thread)
        except Exception:
            log.exception("interruptible: an order was not carried out")


def _interrupt(store: Store, generation: int, thread: int) -> None:
    with _lock:
        # First this, then the look: who ends in between finds it, and waits for the lock.
        pending[thread] = generation
        pid, stands = os.getpid(), False
        try:
            stands = any(
                (request.pid, request.generation, request.thread) == (pid, generation, thread)
                for request in store.requests()
            )
        finally:
            if not stands:
                del pending[thread]
        if stands:
            _raise_in(thread, RequestInterruptedError)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )

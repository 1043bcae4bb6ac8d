"""What somebody outside may ask of a worker, at a named pipe in the user's folder of stores.

A thread of the worker waits there. It runs Python, so it sees the other threads standing still; who
holds the interpreter's lock for ever also holds up the orders.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from guardrails.errors import StoreError
from guardrails.store.processes import Owner, this_process
from guardrails.worker.server import threads_are_greenlets

log = logging.getLogger("guardrails")

SHOW_STACKS, INTERRUPT = 1, 2
PREFIX = "orders-"

CommandHandler = Callable[[int, int], object]
"""What is done at an order: called with the generation and the thread of a request."""

_COMMAND = struct.Struct("=QQQ")


_starting = threading.Lock()


class _State:
    """What this process does at each kind of order."""

    pid = 0
    handlers: dict[int, CommandHandler]


def listen(kind: int, handlers: CommandHandler) -> None:
    """Take orders of a kind from now on, in a thread that is started at the first time.

    Raises OSError, StoreError, or RuntimeError where no thread can be started.
    """
    with _starting:
        if _State.pid != os.getpid():
            _start()
        _State.handlers[kind] = handlers


def is_listening(kind: int) -> bool:
    """Whether this process takes orders of a kind."""
    return _State.pid == os.getpid() and kind in _State.handlers


def pipe_name(owner: Owner) -> str:
    """What the pipe of a process is called."""
    return f"{PREFIX}{owner.namespace}-{owner.pid}-{owner.start}"


def send_command(owner: Owner, kind: int, generation: int, thread: int) -> bool:
    """Give an order to a process. False where it takes none."""
    from guardrails.store import directory  # noqa: PLC0415 - needs POSIX

    for folder in directory.folders():
        with suppress(OSError, StoreError):
            directory.verify_folder(folder)
            pipe = os.open(
                folder / pipe_name(owner), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
            )
            try:
                is_pipe = stat.S_ISFIFO(os.fstat(pipe).st_mode)
                return (
                    is_pipe and os.write(pipe, _COMMAND.pack(kind, generation, thread)) == _COMMAND.size
                )
            finally:
                os.close(pipe)
    return False


def _start() -> None:
    from guardrails.store import directory  # noqa: PLC0415 - as above

    if threads_are_greenlets():
        raise RuntimeError("threads are greenlets here, and one that waits at a pipe holds up all")
    path = directory.own_folder() / pipe_name(this_process())
    with suppress(FileNotFoundError):
        path.unlink()
    os.mkfifo(path, 0o600)
    # Open for writing too, or it would end whenever somebody closes it.
    pipe = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    handlers: dict[int, CommandHandler] = {}
    thread = threading.Thread(
        target=_serve, args=(pipe, handlers), name="guardrails-orders", daemon=True
    )
    try:
        thread.start()
    except RuntimeError:
        os.close(pipe)
        path.unlink(missing_ok=True)
        raise
    _State.pid, _State.handlers = os.getpid(), handlers


def _serve(pipe: int, handlers: dict[int, CommandHandler]) -> None:
    while True:
        try:
            command = os.read(pipe, _COMMAND.size)
        except OSError as error:
            log.warning("orders: the pipe for them was closed (%s), and no more are taken", error)
            return
        try:
            kind, generation, thread = _COMMAND.unpack(command)
            handlers[kind](generation, thread)
        except Exception:
            log.exception("orders: one was not carried out")


def _after_a_fork() -> None:
    """Another thread of the parent's may have held it."""
    global _starting
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_a_fork)

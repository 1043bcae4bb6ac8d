"""Control commands for a worker, read from a FIFO in the user's folder of stores.

A thread of the worker reads them and carries them out. Commands are not processed while another thread
keeps the GIL.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from guardrails.store.process_files import CONTROL, file_name, open_file_of
from guardrails.store.processes import Owner, this_process
from guardrails.worker.server import threads_are_greenlets

log = logging.getLogger("guardrails")

SHOW_STACKS, INTERRUPT = 1, 2
"""The kinds of command."""

CommandHandler = Callable[[int, int], object]
"""Carries out a command; it is called with the generation and the thread of a request."""

_COMMAND = struct.Struct("=QQQ")


class ControlPipe:
    """The control pipe of one process. It is made when the first kind of command gets its handler."""

    def __init__(self) -> None:
        self._handlers: dict[int, CommandHandler] = {}
        self._opening = threading.Lock()
        self._path: Path | None = None

    def handle(self, kind: int, handler: CommandHandler) -> None:
        """Carry out commands of a kind from now on.

        Args:
            kind: SHOW_STACKS or INTERRUPT.
            handler: what carries a command out.

        Raises:
            OSError: the pipe cannot be made.
            StoreError: there is no folder for the pipe.
            RuntimeError: no thread can be started, or threads are greenlets here.
        """
        with self._opening:
            if self._path is None:
                self._path = self._open()
            self._handlers[kind] = handler

    def handles(self, kind: int) -> bool:
        """Return whether commands of a kind are carried out."""
        return kind in self._handlers

    def close(self) -> None:
        """Remove the pipe's name. The thread ends with the process."""
        path, self._path = self._path, None
        if path is not None:
            with suppress(OSError):
                path.unlink()

    def _open(self) -> Path:
        from guardrails.store import directory  # noqa: PLC0415 - needs POSIX

        if threads_are_greenlets():
            raise RuntimeError(
                "threads are greenlets here, and one that waits for a pipe stops all of them"
            )
        path = directory.own_folder() / file_name(CONTROL, this_process())
        with suppress(FileNotFoundError):
            path.unlink()
        os.mkfifo(path, 0o600)
        # Open for writing too: otherwise reading ends whenever a sender closes the pipe.
        pipe = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        thread = threading.Thread(
            target=_serve, args=(pipe, self._handlers), name="guardrails-control", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            os.close(pipe)
            path.unlink(missing_ok=True)
            raise
        return path


def send_command(owner: Owner, kind: int, generation: int, thread: int) -> bool:
    """Send a command to a process.

    Args:
        owner: the process.
        kind: SHOW_STACKS or INTERRUPT.
        generation: the number of the request that is meant.
        thread: the thread that is meant.

    Returns:
        False where the process has no control pipe.
    """
    pipe = open_file_of(CONTROL, owner, os.O_WRONLY | os.O_NONBLOCK)
    if pipe is None:
        return False
    try:
        found = os.fstat(pipe)
        is_pipe = stat.S_ISFIFO(found.st_mode) and found.st_uid == os.geteuid()
        command = _COMMAND.pack(kind, generation, thread)
        return is_pipe and os.write(pipe, command) == len(command)
    except OSError:
        return False
    finally:
        os.close(pipe)


def _serve(pipe: int, handlers: dict[int, CommandHandler]) -> None:
    while True:
        try:
            command = os.read(pipe, _COMMAND.size)
        except OSError as error:
            log.warning("control pipe: it was closed (%s), and no more commands are read", error)
            return
        try:
            kind, generation, thread = _COMMAND.unpack(command)
            handlers[kind](generation, thread)
        except Exception:
            log.exception("control pipe: a command was not carried out")

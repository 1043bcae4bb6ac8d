"""A worker writes its Python stacks to a file when a watchdog asks for them.

Python code writes the stacks where it can run. Where the main thread serves the requests, or greenlets
do, the main thread writes at a signal. Elsewhere the thread of the control pipe writes. Both hold
the GIL, which keeps each frame valid while it is read.

While C code holds the GIL, no Python code can run. Then faulthandler writes the stacks, at another
signal. That is the last resort: if other threads run meanwhile, faulthandler may crash the process.

The file is in the user's folder of stores, and is named after the process. watchdog/stack_dump.py asks
for the stacks and reads the file.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from guardrails.errors import StoreError
from guardrails.store.process_files import STACKS, file_name, remove_files_of_dead
from guardrails.store.processes import process_status, this_process
from guardrails.worker.control_pipe import SHOW_STACKS, ControlPipe
from guardrails.worker.server import Server

log = logging.getLogger("guardrails")

_FIRST_SIGNAL: int = getattr(signal, "SIGRTMIN", 0)

DUMP_SIGNAL: int = _FIRST_SIGNAL and _FIRST_SIGNAL + 11
"""The signal at which faulthandler writes; 0 on systems without real-time signals. Servers use the
other signals."""

ASK_SIGNAL: int = _FIRST_SIGNAL and _FIRST_SIGNAL + 12
"""The signal at which Python code writes in the main thread."""

GREENLET = "Greenlet 0x"
NO_GREENLETS = "Greenlets:"
END = "End of the stacks"
"""How the block of a greenlet begins, the line before all greenlets, and the last line."""

_DEEPEST = 100


class StackFile:
    """The file of stacks of one process. The file is there, and open, until the process ends.

    Args:
        control_pipe: where commands to show the stacks come from.
        inherited: the object of the process that this one was forked from.
    """

    def __init__(self, control_pipe: ControlPipe, inherited: StackFile | None = None) -> None:
        self._control_pipe = control_pipe
        # After a fork faulthandler's handler is still installed.
        self.has_handler: bool = inherited is not None and inherited.has_handler
        self._file: Any = None
        self._path: Path | None = None
        self._shows_greenlets = False
        self._is_installed = False
        self.dump_signal: int = 0
        self.at_a_signal: bool = False

    def install(self, server: Server) -> int:
        """Write the stacks of this process whenever a watchdog asks, from now on. Never raises.

        A signal that has another handler already stays with that handler.

        Args:
            server: what runs this process.

        Returns:
            The signal at which faulthandler writes them, the last resort; 0 without one.
        """
        if self._is_installed or not DUMP_SIGNAL:
            return self.dump_signal
        self._is_installed = True
        from guardrails.store import directory  # noqa: PLC0415 - needs POSIX

        try:
            folder = directory.own_folder()
            remove_files_of_dead(folder)
            path = folder / file_name(STACKS, this_process())
            descriptor = os.open(
                path,
                os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o600,
            )
            self._file = os.fdopen(descriptor, "ab", buffering=0)
            self._path = path
            if self.has_handler or not catches(os.getpid(), DUMP_SIGNAL):
                faulthandler.register(DUMP_SIGNAL, self._file, all_threads=True)
                self.dump_signal, self.has_handler = DUMP_SIGNAL, True
            self._shows_greenlets = server.greenlets
            in_main_thread = server.threads in (None, 1) or server.greenlets
            self.at_a_signal = in_main_thread and self._takes_signals()
            if not self.at_a_signal:
                self._control_pipe.handle(SHOW_STACKS, lambda *_request: self.write(None))
        except (OSError, StoreError, ValueError, RuntimeError) as error:
            log.info("stacks: a watchdog cannot read the stacks of this worker: %s", error)
        return self.dump_signal

    def close(self) -> None:
        """Remove the file's name."""
        path, self._path = self._path, None
        if path is not None:
            with suppress(OSError):
                path.unlink()

    def write(self, interrupted: FrameType | None) -> None:
        """Write the stack of every thread and every greenlet.

        Args:
            interrupted: the frame that the signal interrupted in this thread; None for a thread that
                only writes stacks, which is left out.
        """
        if self._file is None:
            return
        lines: list[str] = []
        own_frame = sys._getframe()  # noqa: SLF001 - tells this thread from the others
        for ident, top in sys._current_frames().items():  # noqa: SLF001 - what faulthandler reads, but under the GIL
            if top is not own_frame:
                lines += _block(f"Thread 0x{ident:x}", top)
            elif interrupted is not None:
                lines += _block(f"Current thread 0x{ident:x}", interrupted)
        greenlet = sys.modules.get("greenlet") if self._shows_greenlets else None
        if greenlet is not None:
            kind: Any = greenlet.greenlet
            lines.append(NO_GREENLETS)
            for found in gc.get_objects():
                # Not isinstance, which reads __class__: a lazy object would be evaluated.
                if issubclass(type(found), kind) and found.gr_frame is not None:
                    lines += _block(f"{GREENLET}{id(found):x}", found.gr_frame)
        lines += [END, ""]
        with suppress(OSError):
            self._file.write("\n".join(lines).encode("utf-8", "replace"))

    def _takes_signals(self) -> bool:
        """Set a handler in Python. Only the main thread may, and some servers forbid it."""
        handler = signal.getsignal(ASK_SIGNAL)
        is_ours = isinstance(getattr(handler, "__self__", None), StackFile)
        if handler != signal.SIG_DFL and not is_ours:
            return False
        with suppress(ValueError):
            signal.signal(ASK_SIGNAL, self._write_at_a_signal)
            signal.siginterrupt(ASK_SIGNAL, False)  # no system call of a request is interrupted
            return signal.getsignal(ASK_SIGNAL) == self._write_at_a_signal
        return False

    def _write_at_a_signal(self, _signal: int, frame: FrameType | None) -> None:
        # Catch nothing: an exception here comes from another signal, and is meant for the request.
        self.write(frame)


def catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal. Without one the signal may end it.

    Args:
        pid: the process.
        number: the signal.
    """
    return bool(int(process_status(f"/proc/{pid}").get("SigCgt", "0"), 16) >> (number - 1) & 1)


def _block(title: str, frame: FrameType | None) -> Iterator[str]:
    yield f"{title} (most recent call first):"
    for _ in range(_DEEPEST):
        if frame is None:
            return
        code = frame.f_code
        file = code.co_filename.replace("\n", "?")
        yield f'  File "{file}", line {frame.f_lineno} in {code.co_name}'
        frame = frame.f_back
    yield "  ..."

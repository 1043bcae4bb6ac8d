"""The Python stacks of a worker, for somebody outside: written by the worker on a signal.

faulthandler writes them from C, so it works also while C code holds the interpreter's lock, and it
costs a request nothing. Where greenlets serve, most of them have no thread: Python adds theirs as
soon as it comes to run.

The file lies in the user's folder of stores, beside nobody else's, and is named after the process.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from guardrails.errors import StoreError
from guardrails.store.processes import Owner, is_dead, this_process

log = logging.getLogger("guardrails")

DUMP_SIGNAL: int = getattr(signal, "SIGRTMIN", 0) + 11 if hasattr(signal, "SIGRTMIN") else 0
"""A real-time signal, since servers have uses for the others; 0 where there is none."""

LONGEST_DUMP = 1 << 20
"""Bytes of a dump that are looked at."""

_GREENLET = "Greenlet 0x"
_NO_GREENLETS = "Greenlets:"
_QUIET_SECONDS = 0.2
_HEADS = ("Thread 0x", "Current thread 0x", _GREENLET, _NO_GREENLETS)
_PY_SPY_SECONDS = 10
_PREFIX = "stack-"
_KINDS = ("stack", "interrupt")


class _Listening:
    """This process's file of stacks. It is open for as long as the process lives."""

    pid = 0
    signal = 0
    file: Any = None


def listen() -> int:
    """From now on write this process's stacks when asked; the signal to ask by, or 0 without one.

    Never raises. A signal that somebody else uses is left to them.
    """
    if _Listening.pid == os.getpid():
        return _Listening.signal
    _Listening.pid, _Listening.signal = os.getpid(), 0
    if not DUMP_SIGNAL or signal.getsignal(DUMP_SIGNAL) not in (signal.SIG_DFL, _add_greenlets):
        return 0
    from guardrails.store import place  # noqa: PLC0415 - needs POSIX

    try:
        folder = place.own_folder()
        _sweep(folder)
        me = this_process()
        descriptor = os.open(
            folder / file_name(me),
            os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
        _Listening.file = os.fdopen(descriptor, "ab", buffering=0)  # open while the process lives
        chain = "gevent" in sys.modules and _takes_signals()
        faulthandler.register(DUMP_SIGNAL, _Listening.file, all_threads=True, chain=chain)
    except (OSError, StoreError, ValueError, RuntimeError) as error:
        log.info("stacks: a watchdog cannot see where requests of this worker are stuck: %s", error)
        return 0
    _Listening.signal = DUMP_SIGNAL
    return DUMP_SIGNAL


def file_name(owner: Owner) -> str:
    """What a process's file is called."""
    return f"{_PREFIX}{owner.namespace}-{owner.pid}-{owner.start}"


class Dump(NamedTuple):
    """What a worker wrote: one block of lines for each thread and greenlet."""

    blocks: tuple[tuple[str, ...], ...]

    def of(self, thread: int) -> tuple[str, ...] | None:
        """The block of one thread or greenlet, by its identifier; None when it is not there.

        A greenlet that is running has none of its own: it is where its thread is.
        """
        for block in self.blocks:
            words = block[0].replace("Current thread", "Thread").split()
            if len(words) > 1 and words[1].startswith("0x") and _number(words[1]) == thread:
                return block
        if any(block[0].startswith((_GREENLET, _NO_GREENLETS)) for block in self.blocks):
            return next((block for block in self.blocks if block[0].startswith("Current")), None)
        return self.blocks[0] if len(self.blocks) == 1 else None


def open_file(owner: Owner) -> int | None:
    """A descriptor of a process's file; None where it has none."""
    from guardrails.store import place  # noqa: PLC0415 - as above

    for folder in place.folders():
        with suppress(OSError, StoreError):
            descriptor = place.open_file(folder / file_name(owner))
            if descriptor is not None:
                try:
                    place.verify_file(descriptor, folder / file_name(owner))
                except StoreError:
                    os.close(descriptor)
                    raise
                return descriptor
    return None


def ask(
    descriptor: int,
    send: Callable[[], object],
    *,
    seconds: float = 1.0,
) -> Dump | None:
    """Let a process write its stacks, and read them. None when it does not within `seconds`.

    descriptor: of its file, which is closed.   send: sends it the signal. What was written before is
    dropped.
    """
    try:
        os.ftruncate(descriptor, 0)
        send()
        size = quiet = 0.0
        while seconds > 0:
            time.sleep(0.02)
            seconds -= 0.02
            before, size = size, os.fstat(descriptor).st_size
            quiet = quiet + 0.02 if size and size == before else 0.0
            if quiet >= _QUIET_SECONDS:
                break
        return parse(os.pread(descriptor, LONGEST_DUMP, 0).decode("utf-8", "replace")) if size else None
    finally:
        os.close(descriptor)


def ask_py_spy(pid: int) -> Dump | None:
    """The same from outside the process, by py-spy where it is installed and allowed to."""
    import shutil  # noqa: PLC0415 - a worker never needs them
    import subprocess  # noqa: PLC0415 - as above

    program = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        return None
    try:
        ran = subprocess.run(  # noqa: S603 - found by its name, and the argument is a number
            [program, "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True,
            timeout=_PY_SPY_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.info("stacks: py-spy does not show process %d: %s", pid, error)
        return None
    return parse(ran.stdout[:LONGEST_DUMP].decode("utf-8", "replace"))


def parse(text: str) -> Dump:
    """Cut a dump of faulthandler's, and what was added for greenlets, into its blocks."""
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if line.startswith(_HEADS) or not blocks:
            blocks.append([])
        blocks[-1].append(line)
    return Dump(tuple(map(tuple, blocks)))


def _number(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return -1


def _takes_signals() -> bool:
    """Whether Python could set a handler that adds the greenlets: only the main thread may."""
    with suppress(ValueError):
        signal.signal(DUMP_SIGNAL, _add_greenlets)
        return True
    return False


def _add_greenlets(_signal: int, _frame: Any) -> None:
    """Write down where every greenlet is that does not run; called after faulthandler."""
    with suppress(Exception):
        kind: Any = import_module("greenlet").greenlet  # there, since gevent serves
        lines = [_NO_GREENLETS]
        for found in gc.get_objects():
            if isinstance(found, kind) and found.gr_frame is not None:
                stack = traceback.extract_stack(found.gr_frame)
                lines += [f"{_GREENLET}{id(found):x} (most recent call first):"]
                lines += [
                    f'  File "{f.filename}", line {f.lineno} in {f.name}' for f in reversed(stack)
                ]
        _Listening.file.write(("\n" + "\n".join(lines) + "\n").encode("utf-8", "replace"))


def _sweep(folder: Path) -> None:
    """Remove what dead processes left, here and for interrupting."""
    namespace = this_process().namespace
    for path in folder.glob("*-*-*-*"):
        kind, *numbers = path.name.split("-")
        if kind in _KINDS and len(numbers) == 3 and all(number.isdecimal() for number in numbers):
            found, pid, start = map(int, numbers)
            if found == namespace and is_dead(Owner(pid, start, namespace), namespace):
                path.unlink(missing_ok=True)

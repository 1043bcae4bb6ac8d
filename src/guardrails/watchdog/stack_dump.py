"""Asks a worker for its Python stacks, and reads what the worker has written.

worker/stacks.py is the other half, which writes them.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from guardrails.errors import StoreError
from guardrails.store.process_files import STACKS, file_name, open_file_of
from guardrails.store.processes import Owner
from guardrails.worker.stacks import END, GREENLET, NO_GREENLETS

log = logging.getLogger("guardrails")

ANSWER_SECONDS = 1.5
"""How long a process may take to write its stacks, by looks of 20 ms."""

BUSY_FACTOR = 4
"""How much longer that may be where a busy machine stretches each look."""

LONGEST_DUMP = 16 << 20
"""Bytes of a dump that are read."""

_QUIET_SECONDS = 0.5
_HEADS = ("Thread 0x", "Current thread 0x", GREENLET, NO_GREENLETS)
_PY_SPY_SECONDS = 10
_KILL_SECONDS = 1


class Dump(NamedTuple):
    """The stacks that a worker wrote.

    Attributes:
        blocks: the lines of each thread and greenlet.
        complete: whether the worker has written all of them.
    """

    blocks: tuple[tuple[str, ...], ...]
    complete: bool = True

    def of(self, thread: int) -> tuple[str, ...] | None:
        """Return the block of one thread or greenlet; None where there is none.

        A greenlet that runs has no block of its own, so the block of its thread is returned.

        Args:
            thread: the identifier of the thread or greenlet.
        """
        for block in self.blocks:
            words = block[0].replace("Current thread", "Thread").split()
            if len(words) > 1 and words[1].startswith("0x") and _thread_number(words[1]) == thread:
                return block
        if any(block[0].startswith((GREENLET, NO_GREENLETS)) for block in self.blocks):
            if not self.complete:
                return None
            return next((block for block in self.blocks if block[0].startswith("Current")), None)
        return self.blocks[0] if len(self.blocks) == 1 else None


def open_stack_file(owner: Owner) -> int | None:
    """Return a descriptor of the file of a process; None where the process has no such file."""
    from guardrails.store import directory  # noqa: PLC0415 - needs POSIX

    descriptor = open_file_of(STACKS, owner, os.O_RDWR)
    if descriptor is not None:
        try:
            directory.verify_file(descriptor, Path(file_name(STACKS, owner)))
        except StoreError:
            os.close(descriptor)
            return None
    return descriptor


def ask(
    descriptor: int, send: Callable[[], bool], thread: int, *, seconds: float = ANSWER_SECONDS
) -> Dump | None:
    """Let a process write its stacks, and read them.

    Args:
        descriptor: of the file of the process. What was written before is dropped.
        send: asks the process to write; returns False where that is not possible.
        thread: the thread whose stack is wanted.
        seconds: how long to wait. It may become BUSY_FACTOR times as long on a busy machine.

    Returns:
        What the process has written; None where it has written nothing in time.
    """
    os.ftruncate(descriptor, 0)
    if not send():
        return None
    dump = None
    size = quiet = 0.0
    latest = time.monotonic() + BUSY_FACTOR * seconds
    while seconds > 0 and time.monotonic() < latest:
        time.sleep(0.02)
        seconds -= 0.02
        before, size = size, os.fstat(descriptor).st_size
        quiet = quiet + 0.02 if size and size == before else 0.0
        if size != before or quiet >= _QUIET_SECONDS:
            text = os.pread(descriptor, LONGEST_DUMP, 0).decode("utf-8", "replace")
            dump = parse(text)
            # faulthandler does not mark the end.
            if END in text or (quiet >= _QUIET_SECONDS and dump.of(thread) is not None):
                break
    return dump


def ask_py_spy(pid: int) -> Dump | None:
    """Read the stacks of a process with py-spy; None where py-spy is missing or not permitted."""
    import shutil  # noqa: PLC0415 - py-spy is the last way
    import subprocess  # noqa: PLC0415 - as above

    program = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        return None
    try:
        process = subprocess.Popen(  # noqa: S603 - found by its name, and the argument is a number
            [program, "dump", "--nonblocking", "--pid", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        log.info("stacks: py-spy cannot be run: %s", error)
        return None
    try:
        output, _ = process.communicate(timeout=_PY_SPY_SECONDS)
    except subprocess.TimeoutExpired:
        log.info("stacks: py-spy took more than %d s to read process %d", _PY_SPY_SECONDS, pid)
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # the kernel may delay its end
            process.wait(_KILL_SECONDS)
        return None
    finally:
        if process.stdout is not None:
            process.stdout.close()
    if process.returncode:
        log.info("stacks: py-spy cannot read process %d: status %d", pid, process.returncode)
        return None
    text = output[:LONGEST_DUMP].decode("utf-8", "replace")
    # py-spy numbers threads in another way than Python, so all are shown: first those that run.
    threads = re.split(r"^(?=Thread \d)", text, flags=re.MULTILINE)
    return parse("".join(sorted(threads, key=lambda thread: "(idle)" in thread.partition("\n")[0])))


def parse(text: str) -> Dump:
    """Parse a dump into blocks, one per thread and greenlet."""
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if not line.strip() or line == END:
            continue
        if line.startswith(_HEADS) or not blocks:
            blocks.append([])
        blocks[-1].append(line)
    return Dump(tuple(map(tuple, blocks)), complete=END in text)


def _thread_number(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return -1

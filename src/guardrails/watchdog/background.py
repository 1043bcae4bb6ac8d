"""A watchdog that is started in the background, and says whether it watches or why it does not.

Its standard error may go where nobody reads. So it inherits a pipe, into which it writes one line.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from guardrails.watchdog.command_line import watch_command
from guardrails.watchdog.systemd import without_notifications

_READY = "ready"
_MOST_BYTES = 1 << 14
_END_SECONDS = 5.0


class Launched(NamedTuple):
    """A process that was started.

    Attributes:
        process: the process.
        is_ready: whether it has said that it watches.
        problem: why it does not, in its own words; empty where it has not said anything.
    """

    process: subprocess.Popen[bytes]
    is_ready: bool
    problem: str


def launch(arguments: Sequence[str], seconds: float, output: int | None = None) -> Launched:
    """Start `guardrails watch ... run` in a session of its own, and wait until it says how it goes.

    Args:
        arguments: the arguments of `guardrails watch`, but for the last one.
        seconds: how long to wait for its word.
        output: descriptor for its standard output and error; None for those of this process.
    """
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: S603 - this Python, this package
            watch_command([*arguments, f"--ready-fd={writing}", "run"]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[writing],
            # systemd is told by its own service alone, which this process may be a part of.
            env=dict(without_notifications(dict(os.environ))),
        )
        os.close(writing)
        writing = -1
        said = _read_line(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    if said is None:
        return Launched(process, False, "")
    if said != _READY:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
    return Launched(process, said == _READY, "" if said == _READY else said)


def report_ready(descriptor: int | None) -> None:
    """Say to the process that has started this one that it watches. Never raises."""
    _report(descriptor, _READY)


def report_problem(descriptor: int | None, error: BaseException) -> None:
    """Say to the process that has started this one why it does not watch. Never raises."""
    _report(descriptor, str(error))


def _report(descriptor: int | None, line: str) -> None:
    if descriptor is not None:
        with suppress(OSError):
            os.write(descriptor, line.encode(errors="replace")[:_MOST_BYTES])
            os.close(descriptor)


def _read_line(reading: int, deadline: float) -> str | None:
    """Read until the other end is closed; None if that is not so at the deadline."""
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                piece = os.read(reading, _MOST_BYTES)
                said += piece
                if not piece:
                    return said.decode(errors="replace").strip()
    return None

"""What a watchdog or a monitor has to tell: one log line, and a command of the user's."""

from __future__ import annotations

import logging
import math
import os
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from guardrails.errors import ConfigurationError

log = logging.getLogger("guardrails.watch")

MOST_COMMANDS = 4
"""How many commands run at once."""

MOST_WAITING = 200
"""How many wait for their turn; events beyond that have none, and it is said how many."""

LONGEST_COMMAND = 60.0
"""Seconds after which a command is ended, with what it has started."""

Announce = Callable[..., None]
"""announce(event, message, level=WARNING, **facts)"""


def command_words(command: str, argument: str) -> tuple[str, ...]:
    """The words of a command, as a shell would split them; no shell ever sees it."""
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise ConfigurationError(
            f"{argument}: {command!r} cannot be split into words ({error}): close its quotes"
        ) from None
    if not words:
        raise ConfigurationError(
            f"{argument}: {command!r} names no program: write one, such as /usr/local/bin/tell"
        )
    return words


def printable(text: str) -> str:
    """A text of somebody else's, with nothing in it that could forge or break a line of a log."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


class Commands:
    """Programs that are run for events, without a shell and without waiting for them.

    What comes while MOST_COMMANDS run is kept, and run in its turn. Nothing raises: a program that
    cannot be started is said in the log.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._waiting: deque[tuple[tuple[str, ...], dict[str, str]]] = deque()
        self._running: list[tuple[subprocess.Popen[bytes], float]] = []
        self._lost = 0
        self._lock = threading.Lock()

    def run(self, words: tuple[str, ...], facts: Mapping[str, str]) -> None:
        """Run a program with `facts` in its environment, in capitals after GUARDRAILS_."""
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                self._lost += 1
            else:
                self._waiting.append((words, dict(facts)))
            self._go_on()

    def tidy(self) -> None:
        """Note which have ended, end those that run for too long, and start what waits."""
        with self._lock:
            self._go_on()

    def _go_on(self) -> None:
        looked_at = [(process, self._look_at(process, until)) for process, until in self._running]
        self._running = [(process, until) for process, until in looked_at if until is not None]
        while self._waiting and len(self._running) < MOST_COMMANDS:
            self._start(*self._waiting.popleft())
        if self._lost and not self._waiting:
            log.error("%d events had no command, since too many were waiting", self._lost)
            self._lost = 0

    def _start(self, words: tuple[str, ...], facts: Mapping[str, str]) -> None:
        environ = dict(os.environ) | {
            f"GUARDRAILS_{name.upper()}": value.replace("\0", "") for name, value in facts.items()
        }
        try:
            process = subprocess.Popen(  # noqa: S603 - the operator's own command, and no shell
                words,
                env=environ,
                # What it prints would fill a log that may lie in memory.
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            log.error("%s: cannot be run: %s", words[0], error)  # noqa: TRY400 - no traceback
        else:
            self._running.append((process, self._monotonic() + LONGEST_COMMAND))

    def _look_at(self, process: subprocess.Popen[bytes], deadline: float) -> float | None:
        """Until when a program may run from now on; None when it has ended."""
        ended = process.poll() is not None
        if not ended and self._monotonic() >= deadline:
            log.error("%s: runs longer than %g s: ended", process.args, LONGEST_COMMAND)
            with suppress(PermissionError):  # it has become another user
                os.killpg(process.pid, signal.SIGKILL)
            return math.inf  # it is not waited for here, since the kernel may hold it up
        if not ended:
            return deadline
        if process.returncode and deadline != math.inf:
            log.error("%s: ended with status %d", process.args, process.returncode)
        return None


class Announcer:
    """Tells of events: by the log, and by a command where the operator named one.

    on_event: the words of the command; the event's name is in GUARDRAILS_EVENT, its message in
    GUARDRAILS_MESSAGE and each of its facts in a variable of its own.
    """

    def __init__(
        self, on_event: tuple[str, ...] | None = None, commands: Commands | None = None
    ) -> None:
        self.commands = commands or Commands()
        self._on_event = on_event

    def __call__(self, event: str, message: str, level: int = logging.WARNING, **facts: Any) -> None:
        """Tell of one event. Never raises."""
        message = printable(message)
        log.log(level, "%s: %s", event, message)
        if self._on_event is not None:
            texts = {name: str(value) for name, value in facts.items()}
            self.commands.run(self._on_event, {"event": event, "message": message, **texts})

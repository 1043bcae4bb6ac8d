"""Events of the watchdog and the monitor: each is a log line, and a run of the operator's command."""

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
"""How many wait for their turn; further ones are dropped, and the log says how many."""

LONGEST_COMMAND = 60.0
"""Seconds after which a command is killed, with the processes that it has started."""

_MOST_CHARACTERS = 200

Notify = Callable[..., None]
"""notify(event, message, level=WARNING, **facts)"""


def command_words(command: str, argument: str) -> tuple[str, ...]:
    """Split a command into words, as a shell would; no shell runs it.

    Args:
        command: the command.
        argument: what errors call it.

    Raises:
        ConfigurationError: its quotes are not closed, or it is empty.
    """
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


def brief(text: str) -> str:
    """Return a text of another program, short and printable, as it goes into an event."""
    return printable(text.strip())[:_MOST_CHARACTERS]


def printable(text: str) -> str:
    """Escape what is not printable, so that a client's text cannot forge or break a log line."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


class Commands:
    """Programs that are run for events, without a shell and without waiting for them.

    While MOST_COMMANDS run, further ones wait for their turn. Nothing raises: the log says which
    program cannot be started.

    Args:
        monotonic: returns the time in seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._waiting: deque[tuple[tuple[str, ...], dict[str, str]]] = deque()
        self._running: list[tuple[subprocess.Popen[bytes], float]] = []
        self._dropped = 0
        self._lock = threading.Lock()

    def run(self, words: tuple[str, ...], facts: Mapping[str, str]) -> None:
        """Run a program, now or in its turn.

        Args:
            words: the program and its arguments.
            facts: what its environment has, in capitals after GUARDRAILS_.
        """
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                self._dropped += 1
            else:
                self._waiting.append((words, dict(facts)))
            self._proceed()

    def tidy(self) -> None:
        """Note which programs have ended, kill those that run too long, and start those that wait."""
        with self._lock:
            self._proceed()

    def _proceed(self) -> None:
        looked_at = [(process, self._look_at(process, until)) for process, until in self._running]
        self._running = [(process, until) for process, until in looked_at if until is not None]
        while self._waiting and len(self._running) < MOST_COMMANDS:
            self._start(*self._waiting.popleft())
        if self._dropped and not self._waiting:
            log.error("no command was run for %d events, since too many were waiting", self._dropped)
            self._dropped = 0

    def _start(self, words: tuple[str, ...], facts: Mapping[str, str]) -> None:
        environ = dict(os.environ) | {
            f"GUARDRAILS_{name.upper()}": value.replace("\0", "") for name, value in facts.items()
        }
        try:
            process = subprocess.Popen(  # noqa: S603 - the operator's own command, and no shell
                words,
                env=environ,
                # Its output would fill the log, which may lie in shared memory.
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
        """Return the time until which a program may run; None when it has ended."""
        ended = process.poll() is not None
        if not ended and self._monotonic() >= deadline:
            log.error("%s: killed, since it ran for more than %g s", process.args, LONGEST_COMMAND)
            with suppress(PermissionError):  # it runs as another user now
                os.killpg(process.pid, signal.SIGKILL)
            return math.inf  # not waited for: the kernel may delay its end
        if not ended:
            return deadline
        if process.returncode and deadline != math.inf:
            log.error("%s: ended with status %d", process.args, process.returncode)
        return None


class Notifier:
    """Logs events, and runs a command for each where the operator named one.

    The environment of the command has GUARDRAILS_EVENT, GUARDRAILS_MESSAGE and a variable for each
    fact.

    Args:
        on_event: the words of the command.
        commands: runs it.
    """

    def __init__(
        self, on_event: tuple[str, ...] | None = None, commands: Commands | None = None
    ) -> None:
        self.commands = commands or Commands()
        self._on_event = on_event

    def __call__(self, event: str, message: str, level: int = logging.WARNING, **facts: Any) -> None:
        """Report one event. Never raises; see `Notify`."""
        message = printable(message)
        log.log(level, "%s: %s", event, message)
        if self._on_event is not None:
            texts = {name: str(value) for name, value in facts.items()}
            self.commands.run(self._on_event, {"event": event, "message": message, **texts})

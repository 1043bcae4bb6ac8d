"""The watchdogs that a server's hook has started: they run beside the process that calls.

The first call starts them. A later one, as at gunicorn's HUP, starts those again that have ended, and
those that have other options now.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from guardrails.errors import ConfigurationError
from guardrails.watchdog.background import launch

START_SECONDS = 10.0
"""How long a server waits for the word of its watchdog before it serves without it."""

STOP_SECONDS = 10.0

_running: list[tuple[Sequence[str], subprocess.Popen[bytes]]] = []
_has_run = False


def run_beside(commands: Sequence[Sequence[str]], server_log: Any = None) -> None:
    """Have these watchdogs run beside this process, and no other ones.

    Args:
        commands: the arguments of `guardrails watch` for each.
        server_log: the log of the server; None for guardrails' own.

    Raises:
        ConfigurationError: a watchdog does not start, at the first call. Later calls log that, since
            an exception would end a server that serves.
    """
    global _has_run
    log = server_log or logging.getLogger("guardrails.watch")
    is_first, _has_run = not _has_run, True
    kept = [
        (words, process) for words, process in _running if process.poll() is None and words in commands
    ]
    for words, process in _running:
        if (words, process) not in kept:
            _end(process)
    _running[:] = kept
    for words in commands:
        if words in [each for each, _process in kept]:
            continue
        launched = launch(words, START_SECONDS)
        _running.append((words, launched.process))
        if launched.is_ready:
            continue
        problem = launched.problem
        if problem and is_first:
            raise ConfigurationError(f"{problem} (so the watchdog of this server does not start)")
        if problem or launched.process.poll() is not None:
            log.error("guardrails: this server has no watchdog: %s", problem or "it ended at once")
        else:
            pid = launched.process.pid
            log.warning("guardrails: watchdog %d says nothing for %g s yet", pid, START_SECONDS)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)

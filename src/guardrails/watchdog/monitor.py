"""The monitor checks a site's answers, the growth of its logs, and the host's free resources.

Each part has `look(now)`, with `now` in monotonic seconds, and reports what it finds by `notify`. No
part stops on a full disk or without a server.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

from guardrails.errors import ConfigurationError
from guardrails.once import Once
from guardrails.units import parse_seconds
from guardrails.watchdog.events import Commands, Notifier, Notify, command_words
from guardrails.watchdog.log_growth import MOST_BACKUPS, LogFile, positive_size
from guardrails.watchdog.probe import (
    MOST_FAILURES,
    Length,
    Number,
    Pid,
    Probe,
    brief,
    count_of,
    positive_seconds,
)
from guardrails.watchdog.process_signal import ProcessSignal
from guardrails.watchdog.thresholds import Thresholds

_REPEAT_SECONDS = 60.0


class Part(Protocol):
    """A part of the monitor."""

    def look(self, now: float) -> None:
        """Look, and act if that is due. `now`: monotonic seconds."""
        ...


class Monitor:
    """Lets several parts look. An error of one part does not reach the others.

    Such an error is event "monitor-error", at most once a minute for each part and type of error.

    Args:
        parts: the parts.
        notify: is called with each event.
    """

    def __init__(self, parts: Sequence[Part], notify: Notify) -> None:
        self._parts = tuple(parts)
        self._notify = notify
        self._first_time = Once(_REPEAT_SECONDS)

    def look(self, now: float) -> None:
        """Let each part look. Never raises.

        Args:
            now: monotonic seconds.
        """
        if isinstance(self._notify, Notifier):
            self._notify.commands.tidy()
        for number, part in enumerate(self._parts):
            try:
                part.look(now)
            except Exception as error:
                with suppress(Exception):
                    self._report(number, part, error, now)

    def run(self, stop: threading.Event, poll: float = 1.0) -> None:
        """Look again and again until `stop` is set: the loop of the monitor's thread.

        Args:
            stop: ends the loop, also while it waits.
            poll: seconds between two looks.
        """
        while not stop.is_set():
            self.look(time.monotonic())
            stop.wait(poll)

    def _report(self, number: int, part: Part, error: Exception, now: float) -> None:
        kind, name = type(error).__name__, type(part).__name__
        if self._first_time((number, kind), now=now):
            text = brief(f"{kind}: {error}")
            message = f"{name}: {text}; it is tried again"
            self._notify("monitor-error", message, logging.ERROR, part=name, error=text)


def monitor_from(
    notify: Notify,
    *,
    probe: str | None = None,
    probe_every: Length = "30s",
    probe_timeout: Length = "10s",
    probe_failures: Number = 3,
    probe_command: str | None = None,
    probe_signal_pid: Pid | None = None,
    probe_signal: str = "HUP",
    probe_cooldown: Length = "2m",
    log: str | os.PathLike[str] | Sequence[str] | None = None,
    log_max: Number = "100M",
    backups: Number = 5,
    reopen_pid: Pid | None = None,
    compress_after: Length = "10s",
    growth: Number = "50M",
    disk: Mapping[str, Number] | str | Iterable[str] = (),
    swap_in: Length | None = None,
    load: Length | None = None,
    pressure: Mapping[str, Length] | str | Iterable[str] = (),
) -> Monitor | None:
    """Build the monitor that these options ask for.

    The options are those of `guardrails.watchdog()`, but for two: `probe_signal_pid` is the process
    that the probe signals, and `reopen_pid` the one that reopens the logs, each by its pid or a pid
    file. Numbers may be texts, as they come from a command line. Every value is checked, also that of
    an option that has no effect.

    Returns:
        The monitor; None where it has nothing to do.

    Raises:
        ConfigurationError: a value is wrong.
    """
    parts: list[Part] = []
    every = positive_seconds(probe_every, "probe_every")
    timeout = positive_seconds(probe_timeout, "probe_timeout")
    failures = count_of(probe_failures, "probe_failures", MOST_FAILURES)
    cooldown = parse_seconds(probe_cooldown, "probe_cooldown")
    ProcessSignal(2, probe_signal, name_argument="probe_signal")
    if probe_command is not None:
        command_words(probe_command, "probe_command")
    if probe is not None:
        parts.append(
            Probe(
                probe,
                notify,
                every=every,
                timeout=timeout,
                failures=failures,
                command=probe_command,
                signal_pid=probe_signal_pid,
                signal_name=probe_signal,
                cooldown=cooldown,
                # A separate Commands, so that the probe's command does not wait for the events'.
                commands=Commands(),
            )
        )
    else:
        _needs("probe_command", probe_command, "probe")
        _needs("probe_signal_pid", probe_signal_pid, "probe")
    most = positive_size(log_max, "log_max")
    kept = count_of(backups, "backups", MOST_BACKUPS)
    positive_size(growth, "growth")
    parse_seconds(compress_after, "compress_after")
    logs = () if log is None else (log,) if isinstance(log, str | os.PathLike) else tuple(log)
    parts.extend(
        LogFile(
            path,
            notify,
            most=most,
            backups=kept,
            reopen_pid=reopen_pid,
            compress_after=compress_after,
            growth=growth,
        )
        for path in logs
    )
    if not logs:
        _needs("reopen_pid", reopen_pid, "log")
    disks, pressures = _pairs(disk, "disk", "/var=10%"), _pairs(pressure, "pressure", "memory=20")
    if disks or pressures or swap_in is not None or load is not None:
        parts.append(Thresholds(notify, disk=disks, swap_in=swap_in, load=load, pressure=pressures))
    return Monitor(parts, notify) if parts else None


def _needs(argument: str, value: object, other: str) -> None:
    if value is not None:
        raise ConfigurationError(
            f"{argument}: {value!r} has no effect without {other}: give {other}, or leave it out"
        )


def _pairs(value: object, argument: str, example: str) -> dict[str, Any]:
    """Read the pairs of a mapping, of a text NAME=THRESHOLD, or of several such texts."""
    if isinstance(value, Mapping):
        return dict(value)
    pairs: dict[str, Any] = {}
    for text in (value,) if isinstance(value, str) else cast("Iterable[object]", value):
        name, equals, threshold = text.rpartition("=") if isinstance(text, str) else ("", "", "")
        if not equals or not name.strip():
            raise ConfigurationError(
                f"{argument}: {text!r} is not a name with its threshold: write both, such as {example}"
            )
        if name.strip() in pairs:
            raise ConfigurationError(
                f"{argument}: {name.strip()!r} has two thresholds: leave one of them out"
            )
        pairs[name.strip()] = threshold.strip()
    return pairs

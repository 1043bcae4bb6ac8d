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
from guardrails.watchdog.events import Commands, Notifier, Notify, brief
from guardrails.watchdog.log_size import LogFile
from guardrails.watchdog.logrotate import Logrotate
from guardrails.watchdog.pressure import HostPressure
from guardrails.watchdog.probe import Probe

_REPEAT_SECONDS = 60.0


class Part(Protocol):
    """A part of the monitor."""

    def check(self) -> list[str]:
        """Return warnings about what is not there yet. Raises ConfigurationError for what is wrong."""
        ...

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

    def check(self) -> list[str]:
        """Return the warnings of all parts: what is not there yet, but may come.

        Raises:
            ConfigurationError: a part could never do its work.
        """
        return [warning for part in self._parts for warning in part.check()]

    def look(self, now: float) -> None:
        """Let each part look. Never raises.

        Args:
            now: monotonic seconds.
        """
        for number, part in enumerate(self._parts):
            self._look_at(number, part, now)

    def run(self, stop: threading.Event, poll: float = 1.0) -> None:
        """Look again and again until `stop` is set: the loop of the monitor's thread.

        Each further part looks in a thread of its own. A call of the system can last without end, as
        on a file system whose server does not answer. It then holds up no other part.

        Args:
            stop: ends the loop, also while it waits.
            poll: seconds between two looks.
        """
        for number, part in list(enumerate(self._parts))[1:]:
            try:
                threading.Thread(
                    target=self._run_part, args=(number, part, stop, poll), name="monitor", daemon=True
                ).start()
            except RuntimeError as error:  # too many threads
                self._report(number, part, error, time.monotonic())
        self._run_part(0, self._parts[0], stop, poll)

    def _run_part(self, number: int, part: Part, stop: threading.Event, poll: float) -> None:
        while not stop.is_set():
            self._look_at(number, part, time.monotonic())
            stop.wait(poll)

    def _look_at(self, number: int, part: Part, now: float) -> None:
        if isinstance(self._notify, Notifier):
            self._notify.commands.tidy()
        try:
            part.look(now)
        except Exception as error:
            with suppress(Exception):
                self._report(number, part, error, now)

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
    probe_every: float | str = "30s",
    probe_timeout: float | str = "10s",
    probe_failures: int | str = 3,
    probe_cooldown: float | str = "2m",
    on_failure: Sequence[str] = (),
    master: int | str | os.PathLike[str] | None = None,
    log: Iterable[str | os.PathLike[str]] = (),
    log_max: int | str = "100M",
    growth: int | str = "50M",
    logrotate: str | os.PathLike[str] | None = None,
    disk: Mapping[str, int | str] | Iterable[str] = (),
    memory: int | str | None = None,
    load: float | str | None = None,
    pressure: Mapping[str, float | str] | Iterable[str] = (),
) -> Monitor | None:
    """Build the monitor that these options of `guardrails.watchdog()` ask for.

    Numbers may be texts, as they come from a command line. Every value is checked, also that of an
    option that has no effect.

    Returns:
        The monitor; None where it has nothing to do.

    Raises:
        ConfigurationError: a value is wrong, or has no effect without another option.
    """
    the_probe = Probe(
        "http://127.0.0.1/" if probe is None else probe,
        notify,
        every=probe_every,
        timeout=probe_timeout,
        failures=probe_failures,
        cooldown=probe_cooldown,
        on_failure=on_failure,
        master=master,
        # A separate Commands, so that a remedy does not wait for the commands of events.
        commands=Commands(),
    )
    rotating = None if logrotate is None else Logrotate(logrotate)
    logs = [
        LogFile(path, notify, most=log_max, growth=growth, logrotate=rotating)
        for path in list(log) or ["checked"]
    ]
    parts: list[Part] = []
    if probe is not None:
        parts.append(the_probe)
    else:
        _needs("on_failure", on_failure[0] if on_failure else None, "probe")
        _needs("master", master, "probe")
        _needs("probe_every", _changed(probe_every, "30s"), "probe")
        _needs("probe_timeout", _changed(probe_timeout, "10s"), "probe")
        _needs("probe_failures", _changed(probe_failures, 3), "probe")
        _needs("probe_cooldown", _changed(probe_cooldown, "2m"), "probe")
    if log:
        parts += logs
    else:
        _needs("logrotate", logrotate, "log")
        _needs("log_max", _changed(log_max, "100M"), "log")
        _needs("growth", _changed(growth, "50M"), "log")
    disks, pressures = _pairs(disk, "disk", "/var=10%"), _pairs(pressure, "pressure", "memory=20")
    parts += [HostPressure(notify, disk={path: least}) for path, least in disks.items()]
    if pressures or memory is not None or load is not None:
        parts.append(HostPressure(notify, memory=memory, load=load, pressure=pressures))
    return Monitor(parts, notify) if parts else None


def _changed(value: object, default: object) -> object:
    """Return a value that is not the default of its option, and None for the default."""
    return None if str(value) == str(default) else value


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

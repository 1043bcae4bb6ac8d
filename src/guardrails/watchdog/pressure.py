"""Thresholds for the host: free disk, available memory, load, and pressure (PSI of Linux)."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from guardrails.errors import ConfigurationError
from guardrails.once import Once
from guardrails.units import parse_size
from guardrails.watchdog.events import Notify, brief, printable
from guardrails.watchdog.option_values import positive_number

REPEAT = 600.0
"""Seconds after which a figure that stays beyond its threshold is reported again."""

EVERY = 10.0
"""Seconds between two looks."""

PRESSURES = ("cpu", "memory", "io")
_OVER = 0.9
"""Part of a threshold below which it is over, so that a figure that varies is reported once."""

_PERCENT = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(%?)")


class Reading(NamedTuple):
    """A figure as it was read: in words, as facts for a command, and beside its threshold."""

    text: str
    facts: dict[str, Any]
    is_beyond: bool
    is_over: bool


class HostPressure:
    """Reports when the host runs short of something.

    An event is sent when a figure passes its threshold, and again each 10 minutes while it stays
    there. The same event with "-over", at level INFO, is sent once the figure is a tenth of the
    threshold away from it. A figure that cannot be read is event "threshold-absent", likewise, and is
    looked at again: a file system may be mounted later.

    Args:
        notify: is called with each event.
        disk: by path, the least free space for ordinary users: bytes, a size such as "2G", or a
            percent of the file system such as "10%". Event "disk-low".
        memory: the least memory that is available, likewise. Event "memory-low".
        load: load average of the last minute per CPU. Event "load-high".
        pressure: for "cpu", "memory" and "io", the percent of the last 10 s in which some task
            waited for it ("some avg10" of /proc/pressure). Event "pressure-high".
        statvfs: returns the status of a file system.
        loadavg: returns the load averages.
        proc: the folder of the kernel's figures.

    Raises:
        ConfigurationError: a path, a name or a threshold is wrong.
    """

    def __init__(
        self,
        notify: Notify,
        *,
        disk: Mapping[str, int | str] | None = None,
        memory: int | str | None = None,
        load: float | str | None = None,
        pressure: Mapping[str, float | str] | None = None,
        statvfs: Callable[[str], os.statvfs_result] = os.statvfs,
        loadavg: Callable[[], tuple[float, float, float]] = os.getloadavg,
        proc: str | Path = "/proc",
    ) -> None:
        self._notify = notify
        self._statvfs, self._loadavg, self._proc = statvfs, loadavg, Path(proc)
        self._due = -math.inf
        self._first_time = Once(REPEAT)
        self._reported: set[tuple[str, str]] = set()
        self._figures: dict[tuple[str, str], Callable[[], Reading]] = {}
        for path, least in (disk or {}).items():
            wanted = _least(least, f"disk {printable(str(path))}")
            self._figures["disk-low", path] = partial(self._disk, path, wanted)
        if memory is not None:
            self._figures["memory-low", "memory"] = partial(self._memory, _least(memory, "memory"))
        if load is not None:
            self._figures["load-high", "load"] = partial(self._load, positive_number(load, "load"))
        for name, percent in (pressure or {}).items():
            if name not in PRESSURES:
                raise ConfigurationError(
                    f"pressure: {name!r} is not measured: use one of " + ", ".join(PRESSURES)
                )
            most = _percent(percent, f"pressure {name}", 100)
            self._figures["pressure-high", f"{name} pressure"] = partial(self._stall, name, most)

    def check(self) -> list[str]:
        """Nothing can be wrong but the values: a file system may be mounted later."""
        return []

    def look(self, now: float) -> None:
        """Read each figure, when that is due.

        Args:
            now: monotonic seconds.
        """
        if now < self._due:
            return
        self._due = now + EVERY
        for key, read in self._figures.items():
            try:
                reading = read()
            except (OSError, ValueError) as error:
                self._absent(key[1], brief(str(error)), now)
            else:
                self._judge(key, reading, now)

    def _judge(self, key: tuple[str, str], reading: Reading, now: float) -> None:
        if reading.is_beyond and self._first_time(key, now=now):
            self._reported.add(key)
            self._notify(key[0], reading.text, logging.WARNING, **reading.facts)
        elif reading.is_over and key in self._reported:
            self._reported.remove(key)
            self._first_time.forget(key)
            self._notify(f"{key[0]}-over", reading.text, logging.INFO, **reading.facts)

    def _absent(self, about: str, error: str, now: float) -> None:
        if self._first_time(about, now=now):
            about = printable(about)
            message = f"{about}: the figure cannot be read ({error}); it is tried again"
            self._notify("threshold-absent", message, logging.WARNING, about=about, error=error)

    def _disk(self, path: str, wanted: Callable[[int], int]) -> Reading:
        found = self._statvfs(path)
        free, whole = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        if not whole:
            raise ValueError("the file system has no blocks")
        return _short(path, "free", free, wanted(whole), {"path": path})

    def _memory(self, wanted: Callable[[int], int]) -> Reading:
        text = (self._proc / "meminfo").read_text("ascii")
        available, whole = (
            _number(rf"^{name}: +(\d+) kB", text) for name in ("MemAvailable", "MemTotal")
        )
        return _short("memory", "available", int(available) << 10, wanted(int(whole) << 10), {})

    def _load(self, most: float) -> Reading:
        load, cpus = self._loadavg()[0], os.cpu_count() or 1
        return _much("load", load / cpus, most, "per CPU", {"load": round(load, 2), "cpus": cpus})

    def _stall(self, name: str, most: float) -> Reading:
        text = (self._proc / "pressure" / name).read_text("ascii")
        percent = _number(r"^some avg10=(\d+\.?\d*)", text)
        facts = {"resource": name, "percent": percent}
        return _much(f"{name} pressure", percent, most, "% of the last 10 s", facts)


def megabytes(size: int) -> str:
    """Return bytes as a person reads them: MB and GB are powers of 1000."""
    if abs(size) >= 10**9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if abs(size) >= 10**5 else f"{size} bytes"


def _short(name: str, kind: str, size: int, wanted: int, facts: dict[str, Any]) -> Reading:
    return Reading(
        f"{name}: {megabytes(size)} {kind}, and the threshold is {megabytes(wanted)}",
        {**facts, kind: size, "least": wanted},
        is_beyond=size < wanted,
        is_over=size > wanted * (2 - _OVER),
    )


def _much(name: str, value: float, most: float, unit: str, facts: dict[str, Any]) -> Reading:
    return Reading(
        f"{name}: {value:.1f} {unit}, and the threshold is {most:g}",
        {**facts, "most": most},
        is_beyond=value > most,
        is_over=value < most * _OVER,
    )


def _least(least: object, argument: str) -> Callable[[int], int]:
    """Return a function from a whole, in bytes, to the bytes of it that must be free."""
    if isinstance(least, str) and "%" in least:
        share = _percent(least, argument, 90) / 100
        return lambda whole: round(whole * share)
    size = parse_size(least, argument)
    if size == 0:
        raise ConfigurationError(
            f"{argument}: {least!r} would never be passed: write the least free space, such as 2G or "
            "10%, or leave it out"
        )
    return lambda _whole: size


def _percent(value: object, argument: str, most: int) -> float:
    number = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and (match := _PERCENT.fullmatch(value.strip())):
        number = float(match[1])
    if number is None or not 0 < number <= most:
        raise ConfigurationError(
            f'{argument}: {value!r} is not a percent above 0 and up to {most}: write one, such as "10%"'
        )
    return number


def _number(pattern: str, text: str) -> float:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise ValueError("the file does not have the figure")
    return float(match[1])

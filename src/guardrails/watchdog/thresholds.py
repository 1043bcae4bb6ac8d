"""Thresholds for the host: free disk, swapping, load, and pressure (PSI of Linux)."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from guardrails.errors import ConfigurationError
from guardrails.once import Once
from guardrails.units import parse_seconds, parse_size
from guardrails.watchdog.events import Notify, printable

REPEAT = 600.0
"""Seconds after which a figure that stays beyond its threshold is reported again."""

PRESSURES = ("cpu", "memory", "io")

_OVER = 0.9
"""Part of a threshold below which it is over, so that a figure that varies is reported once."""

_OVER_FREE = 1.1
"""The same for free space, which is short below its threshold."""

_MOST_READ = 2**16
_PERCENT = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(%?)")
_TRANSIENT_ERRORS = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EINTR,
    errno.EAGAIN,
    errno.EIO,
    errno.ESTALE,
}


class Disk(Protocol):
    """The part of os.statvfs_result that is read."""

    @property
    def f_bavail(self) -> int: ...
    @property
    def f_blocks(self) -> int: ...
    @property
    def f_frsize(self) -> int: ...


class Reading(NamedTuple):
    """A figure as it was read.

    Args:
        text: the figure in words.
        facts: the figure for a command.
        beyond: whether it is beyond its threshold.
        over: whether it is back within it, by some distance.
    """

    text: str
    facts: dict[str, Any]
    beyond: bool
    over: bool


class _Figure:
    """A figure with its threshold. `read` returns None when two looks are needed first."""

    def __init__(self, event: str, about: str, read: Callable[[float], Reading | None]) -> None:
        self.event = event
        self.about = about
        self.read = read
        self.is_reported = False


class Thresholds:
    """Reports when the host runs short of something.

    An event is sent when a figure passes its threshold, and again each 10 minutes while it stays
    there. The same event with "-over", at level INFO, is sent once the figure is below 90 % of the
    threshold (above 110 % for free space). A figure that this host does not have is event
    "threshold-absent", and is not looked at again. A path is, since it may come back.

    Args:
        notify: is called with each event.
        disk: by path, the least free space for ordinary users: bytes, a size such as "2G", or a
            percent of the file system such as "10%". Event "disk-low".
        swap_in: pages per second read back from swap. Event "swapping".
        load: load average of the last minute per CPU. Event "load-high".
        pressure: for "cpu", "memory" and "io", the percent of the last 10 s in which some task
            waited for it ("some avg10" of /proc/pressure). Event "pressure-high".
        every: time between two looks.
        statvfs: returns the status of a file system.
        loadavg: returns the load averages.
        cpus: returns the number of CPUs.
        proc: the folder of the kernel's figures.

    Raises:
        ConfigurationError: a path, a name or a threshold is wrong.
    """

    def __init__(
        self,
        notify: Notify,
        *,
        disk: Mapping[str, int | str] | None = None,
        swap_in: float | str | None = None,
        load: float | str | None = None,
        pressure: Mapping[str, float | str] | None = None,
        every: float | str = "10s",
        statvfs: Callable[[str], Disk] = os.statvfs,
        loadavg: Callable[[], tuple[float, float, float]] = os.getloadavg,
        cpus: Callable[[], int | None] = os.cpu_count,
        proc: str | Path = "/proc",
    ) -> None:
        self._notify = notify
        self._every = parse_seconds(every, "every")
        self._due = -math.inf
        self._statvfs = statvfs
        self._loadavg = loadavg
        self._cpus = cpus
        self._proc = Path(proc)
        self._swapped: tuple[float, int] | None = None
        self._first_time = Once(REPEAT)
        self._first_time_absent = Once(REPEAT)
        self._figures = [
            _Figure("disk-low", path, partial(self._read_disk, path, _least(path, least)))
            for path, least in (disk or {}).items()
        ]
        if swap_in is not None:
            most = positive_number(swap_in, "swap_in")
            self._figures.append(_Figure("swapping", "swap_in", partial(self._read_swap, most)))
        if load is not None:
            most = positive_number(load, "load")
            self._figures.append(_Figure("load-high", "load", partial(self._read_load, most)))
        for name, percent in (pressure or {}).items():
            if name not in PRESSURES:
                raise ConfigurationError(
                    f"pressure: {name!r} is not measured: use one of " + ", ".join(PRESSURES)
                )
            most = _share(percent, f"pressure {name}", 100)
            self._figures.append(
                _Figure("pressure-high", f"{name} pressure", partial(self._read_pressure, name, most))
            )

    def look(self, now: float) -> None:
        """Read each figure, when that is due.

        Args:
            now: monotonic seconds.

        Raises:
            OSError: a figure could not be read just now.
        """
        if now < self._due:
            return
        self._due = now + self._every
        failure = None
        for figure in list(self._figures):
            try:
                reading = figure.read(now)
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRORS:
                    failure = error
                elif figure.event == "disk-low":
                    self._report_absent(figure, error, now)
                else:
                    self._figures.remove(figure)
                    self._report_absent(figure, error, now)
            else:
                if reading is not None:
                    self._judge(figure, reading, now)
        if failure is not None:
            raise failure

    def _judge(self, figure: _Figure, reading: Reading, now: float) -> None:
        if reading.beyond and self._first_time(figure, now=now):
            figure.is_reported = True
            self._notify(figure.event, reading.text, logging.WARNING, **reading.facts)
        elif reading.over and figure.is_reported:
            figure.is_reported = False
            self._first_time.forget(figure)
            self._notify(f"{figure.event}-over", reading.text, logging.INFO, **reading.facts)

    def _report_absent(self, figure: _Figure, error: Exception, now: float) -> None:
        if not self._first_time_absent(figure.about, now=now):
            return
        about = printable(figure.about)
        self._notify(
            "threshold-absent",
            f"{about}: this host does not have it, so it is not looked at ({printable(str(error))})",
            logging.WARNING,
            about=about,
            error=printable(str(error)),
        )

    def _read_disk(self, path: str, least: Callable[[int], int], _now: float) -> Reading:
        """Read the free space. `least`: returns the wanted bytes for the size of the file system."""
        found = self._statvfs(path)
        whole = found.f_blocks * found.f_frsize
        if whole == 0:
            raise ValueError("the file system has no blocks")
        free = found.f_bavail * found.f_frsize
        wanted = least(whole)
        return Reading(
            f"{path}: {megabytes(free)} free, and the threshold is {megabytes(wanted)}",
            {"path": path, "free": free, "least": wanted},
            beyond=free < wanted,
            over=free > wanted * _OVER_FREE,
        )

    def _read_swap(self, most: float, now: float) -> Reading | None:
        pages = int(_found(r"^pswpin (\d{1,20})$", _read(self._proc / "vmstat")))
        before, self._swapped = self._swapped, (now, pages)
        if before is None or now <= before[0] or pages < before[1]:
            return None
        rate = (pages - before[1]) / (now - before[0])
        return _reading("swap-in", rate, most, "pages/s", {"pages_per_second": round(rate, 1)})

    def _read_load(self, most: float, _now: float) -> Reading:
        load, cpus = self._loadavg()[0], self._cpus() or 1
        facts = {"load": round(load, 2), "cpus": cpus}
        return _reading("load", load / cpus, most, "per CPU", facts)

    def _read_pressure(self, name: str, most: float, _now: float) -> Reading:
        text = _read(self._proc / "pressure" / name)
        percent = float(_found(r"^some avg10=(\d{1,3}(?:\.\d{1,6})?)\b", text))
        facts = {"resource": name, "percent": percent}
        return _reading(f"{name} pressure", percent, most, "% of the last 10 s", facts)


def megabytes(size: int) -> str:
    """Return bytes as a person reads them: MB and GB are powers of 1000."""
    if abs(size) >= 10**9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if abs(size) >= 10**5 else f"{size} bytes"


def positive_number(value: object, argument: str) -> float:
    """Return a number above 0, also of a text. Raises ConfigurationError."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
            if math.isfinite(number) and number > 0:
                return number
    raise ConfigurationError(f"{argument}: {value!r} is not a number above 0: write one, such as 1.5")


def _reading(name: str, value: float, most: float, unit: str, facts: dict[str, Any]) -> Reading:
    return Reading(
        f"{name}: {value:.1f} {unit}, and the threshold is {most:g}",
        facts | {"most": most},
        beyond=value > most,
        over=value < most * _OVER,
    )


def _least(path: object, least: object) -> Callable[[int], int]:
    """Return a function from the size of a file system to the bytes that must be free there."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigurationError(f"disk: {path!r} is not a path: name a folder, such as /var/log")
    argument = f"disk {printable(path)}"
    if isinstance(least, str) and "%" in least:
        share = _share(least, argument, 90) / 100
        return lambda whole: round(whole * share)
    size = parse_size(least, argument)
    if size == 0:
        raise ConfigurationError(
            f"{argument}: {least!r} would never be passed: write the least free space, such as 2G or "
            "10%, or leave it out"
        )
    return lambda _whole: size


def _share(value: object, argument: str, most: int) -> float:
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


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise ValueError("the file does not have the figure")
    return match[1]


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST_READ).decode("ascii", "replace")

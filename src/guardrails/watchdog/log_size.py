"""The size and the growth of a server's log. The log itself is only read about, and never changed."""

from __future__ import annotations

import logging
import math
import os
import stat
from collections import deque

from guardrails.errors import ConfigurationError
from guardrails.once import Once
from guardrails.watchdog.events import Notify, brief, printable
from guardrails.watchdog.logrotate import Logrotate, Rotation
from guardrails.watchdog.option_values import absolute_path, positive_size
from guardrails.watchdog.pressure import megabytes

MINUTE = 60.0
TEN_MINUTES = 600.0
HOUR = 3600.0


class Growth:
    """How fast a file grows, measured at irregular times. Time is an argument."""

    def __init__(self) -> None:
        self._total = 0
        self._looks: deque[tuple[float, int]] = deque()

    def add(self, now: float, written: int) -> int:
        """Add the bytes written since the last look; return those of the last minute.

        Args:
            now: monotonic seconds.
            written: the bytes.
        """
        self._total += written
        if not self._looks or now >= self._looks[-1][0] + 0.5:
            self._looks.append((now, self._total))
        while len(self._looks) > 1 and self._looks[1][0] <= now - MINUTE:
            self._looks.popleft()
        since, before = self._looks[0]
        return round((self._total - before) * MINUTE / max(MINUTE, now - since))


class LogFile:
    """Watches the size and the growth of a log, and has it rotated by logrotate.

    A log larger than `most` is rotated where `logrotate` is given: event "log-rotated", at level INFO.
    If the log is as large afterwards, or logrotate fails, that is event "log-not-rotated", and it is
    tried again after ten minutes. Without `logrotate`, event "log-too-large" comes once an hour.

    Args:
        path: the log. It may be missing, and other processes may replace it.
        notify: is called with each event.
        most: size above which it is too large.
        growth: more than this within a minute is event "log-explodes", at most once in ten minutes.
        logrotate: rotates it.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        notify: Notify,
        *,
        most: int | str = "100M",
        growth: int | str = "50M",
        logrotate: Logrotate | None = None,
    ) -> None:
        self._path = absolute_path(path, "log")
        self._shown = printable(str(self._path))
        self._notify = notify
        self._most = positive_size(most, "log_max")
        self._most_growth = positive_size(growth, "growth")
        self._logrotate = logrotate
        self._rotation: Rotation | None = None
        self._before: os.stat_result | None = None
        self._last: os.stat_result | None = None
        self._is_missing = False
        self._growth = Growth()
        self._retry = -math.inf
        self._first_time = {name: Once(seconds) for name, seconds in _REPEATED.items()}

    def check(self) -> list[str]:
        """Return a warning if there is no such file yet.

        Raises:
            ConfigurationError: its folder is missing, it is no regular file, or logrotate cannot run.
        """
        if self._logrotate is not None:
            self._logrotate.check()
        try:
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise ConfigurationError(
                    f"log: {self._shown} is not a regular file: name the log itself"
                )
        except FileNotFoundError:
            if self._path.parent.is_dir():
                return [f"log: there is no {self._shown} yet"]
            raise ConfigurationError(
                f"log: there is no folder {printable(str(self._path.parent))}: name the server's log"
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"log: {self._shown} cannot be looked at: {error.strerror}"
            ) from None
        return []

    def look(self, now: float) -> None:
        """Measure the log, and have it rotated, or report it.

        Args:
            now: monotonic seconds.

        Raises:
            OSError: it cannot be looked at.
        """
        found = self._found()
        self._measure(found, now)
        if self._rotation is not None and self._before is not None:
            self._await_rotation(self._rotation, self._before, now)
        elif found is None:
            if not self._is_missing:
                self._tell(now, "log-missing", "there is no such file yet, or no longer", logging.INFO)
        elif found.st_size > self._most:
            self._too_large(found, now)
        self._is_missing = found is None

    def _found(self) -> os.stat_result | None:
        try:
            return self._path.stat()
        except FileNotFoundError:
            return None

    def _tell(self, now: float, event: str, message: str, level: int, **facts: object) -> None:
        if event not in self._first_time or self._first_time[event](facts.get("error"), now=now):
            self._notify(event, f"{self._shown}: {message}", level, path=self._shown, **facts)

    def _measure(self, found: os.stat_result | None, now: float) -> None:
        """Measure how fast the log grows, also over a rotation by another program."""
        last, self._last = self._last, found
        written = 0
        if found is not None and last is not None:
            is_same = os.path.samestat(found, last) and found.st_size >= last.st_size
            written = found.st_size - last.st_size if is_same else found.st_size
        per_minute = self._growth.add(now, written)
        if found is not None and per_minute > self._most_growth:
            self._tell(
                now,
                "log-explodes",
                f"{megabytes(per_minute)} were written within a minute, and it is "
                f"{megabytes(found.st_size)}: see which lines fill it",
                logging.WARNING,
                size=found.st_size,
                per_minute=per_minute,
            )

    def _too_large(self, found: os.stat_result, now: float) -> None:
        if self._logrotate is None:
            text = (
                f"it is {megabytes(found.st_size)}, and {megabytes(self._most)} is the most: have "
                "logrotate rotate it, with --logrotate and the file of its configuration"
            )
            self._tell(now, "log-too-large", text, logging.WARNING, size=found.st_size)
        elif now >= self._retry:
            self._before = found
            try:
                self._rotation = self._logrotate.begin(now)
            except OSError as error:
                self._not_rotated(found, f"logrotate cannot be run: {brief(str(error))}", now)

    def _await_rotation(self, rotation: Rotation, before: os.stat_result, now: float) -> None:
        error = rotation.error(now)
        if error is None:
            return
        self._rotation = None
        found = self._found()
        if error:
            self._not_rotated(before, error, now)
        elif found and os.path.samestat(found, before) and found.st_size >= before.st_size:
            self._not_rotated(before, f"logrotate ran; see that {rotation} names this log", now)
        else:
            size = before.st_size
            message = f"rotated at {megabytes(size)}"
            self._tell(now, "log-rotated", message, logging.INFO, size=size)

    def _not_rotated(self, before: os.stat_result, error: str, now: float) -> None:
        self._retry = now + TEN_MINUTES
        size = before.st_size
        message = f"it is {megabytes(size)} and is not rotated: {error}; tried again in ten minutes"
        self._tell(now, "log-not-rotated", message, logging.ERROR, size=size, error=error)


_REPEATED = {"log-missing": TEN_MINUTES, "log-too-large": HOUR, "log-explodes": TEN_MINUTES}
"""Seconds after which an event about a log comes again, if what it says still holds."""

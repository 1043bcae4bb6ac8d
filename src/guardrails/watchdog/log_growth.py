"""Rotation of a server's log file: it is renamed and created anew, and the old one is compressed.

Guarantees, even if this process is killed:

- No line is lost. No rename replaces a file. A plain file is removed only when three things are
  true: its complete .gz is on the disk, its size is still the size that was compressed, and no
  process has it open for writing (found out by a lease, where the system has leases).
- No symbolic link is followed, and every name is looked up in the open folder.

Use one monitor for one log. Two lose no line either, but each undoes the work of the other.
"""

from __future__ import annotations

import logging
import math
import os
import stat
from collections import deque
from collections.abc import Callable

from guardrails.errors import ConfigurationError
from guardrails.once import Once
from guardrails.units import parse_count, parse_seconds, parse_size
from guardrails.watchdog import safe_files
from guardrails.watchdog.events import Notify, printable
from guardrails.watchdog.process_signal import ProcessSignal, absolute_path
from guardrails.watchdog.rotated_logs import RotatedLogs, error_text
from guardrails.watchdog.thresholds import megabytes

MOST_BACKUPS = 1000
REOPEN_SECONDS = 60.0
"""Time that a server has to open its log again after the signal."""

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
    """Keeps the log file of a server small.

    A log larger than `most` is renamed to path.1, the older ones to path.2 and so on. An empty file
    with the same owner, group and mode takes its place, since workers could not open a file of root.
    The process of `reopen_pid` gets SIGUSR1 and has a minute to open its log again. If it does not,
    that is event "log-not-reopened", and it is asked again each ten minutes while a process writes to
    the old file. The log counts as reopened when it has a line in it, or when no process has path.1
    open for writing. A system without leases does not show the latter.

    Without `reopen_pid` nothing is renamed, since copying and truncating a log loses lines. Event
    "log-too-large" says so once an hour. Errors call `reopen_pid` master, as its option is called.

    On a full disk nothing is compressed: event "log-not-compressed", and again after a minute. A log
    that cannot be renamed is event "log-not-rotated". A symbolic link, and what is not a regular
    file, is refused: event "log-refused", once.

    Args:
        path: the log. It may be missing, and other processes may replace it.
        notify: is called with each event.
        most: size above which it is rotated.
        backups: how many old logs are kept at most.
        reopen_pid: the process that reopens its log: its pid or a pid file.
        compress_after: time for which the size of an old log must stay the same, and no process have
            it open for writing, before it becomes path.1.gz, with the log's owner, mode and time.
        growth: more than this within a minute is event "log-explodes", at most once in ten minutes.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        notify: Notify,
        *,
        most: int | str = "100M",
        backups: int = 5,
        reopen_pid: int | str | os.PathLike[str] | None = None,
        compress_after: float | str = "10s",
        growth: int | str = "50M",
    ) -> None:
        whole = absolute_path(path, "log")
        self._folder, self._name = whole.parent, whole.name
        self._shown = printable(str(whole))
        self._notify = notify
        self._most = positive_size(most, "most")
        self._backups = parse_count(backups, "backups", most=MOST_BACKUPS)
        self._most_growth = positive_size(growth, "growth")
        self._reopen = None if reopen_pid is None else ProcessSignal(reopen_pid, "USR1")
        wait = parse_seconds(compress_after, "compress_after")
        self._rotated = RotatedLogs(whole, notify, self._backups, wait)
        self._growth = Growth()
        self._sizes: dict[safe_files.Identity, int] = {}
        self._asked: float | None = None  # when the server was asked to reopen its log
        self._lost = False  # whether it was reported that the server did not
        self._missing = False
        self._refused = False
        self._ask_again = -math.inf
        self._retry = -math.inf
        # A user with write access to the folder can cause any number of these.
        self._first_time_missing = Once(TEN_MINUTES)
        self._first_time_refused = Once(TEN_MINUTES)
        self._first_time_large = Once(HOUR)
        self._first_time_growth = Once(TEN_MINUTES)
        self._first_time_failure = Once(TEN_MINUTES)

    def look(self, now: float) -> None:
        """Measure the log, and rotate, report or compress what is due.

        Args:
            now: monotonic seconds.

        Raises:
            OSError: the folder cannot be read.
        """
        try:
            folder = safe_files.open_folder(self._folder)
        except FileNotFoundError:
            self._report_missing(now)
            return
        try:
            found = safe_files.look_up(self._name, folder)
            if found is not None and not stat.S_ISREG(found.st_mode):
                self._refuse(found, now)
                return
            self._refused = False
            self._measure(folder, found, now)
            self._missing = self._missing and found is None
            if found is None or not self._is_reopened(folder):
                self._await_reopening(folder, found, now)
            else:
                self._asked, self._lost = None, False
                if found.st_size > self._most:
                    self._too_large(folder, found, now)
            if self._reopen is not None:
                self._rotated.look(folder, now, reopened=self._is_reopened(folder))
        finally:
            os.close(folder)

    def _tell(self, event: str, message: str, level: int = logging.WARNING, **facts: object) -> None:
        self._notify(event, f"{self._shown}: {message}", level, path=self._shown, **facts)

    def _refuse(self, found: os.stat_result, now: float) -> None:
        reported, self._refused = self._refused, True
        if not reported and self._first_time_refused(now=now):
            kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a regular file"
            self._tell("log-refused", f"it is {kind}, so it is not rotated: name the file itself")

    def _report_missing(self, now: float) -> None:
        reported, self._missing = self._missing or self._lost, True
        if not reported and self._first_time_missing(now=now):
            self._tell("log-missing", "there is no such file yet, or no longer", logging.INFO)

    def _measure(self, folder: int, found: os.stat_result | None, now: float) -> None:
        """Measure how fast the log grows, also by its old name while the server writes there."""
        before, self._sizes = self._sizes, {}
        renamed = safe_files.look_up(f"{self._name}.1", folder)
        written = 0
        for file in (found, renamed):
            if file is None or (file is renamed and safe_files.identity(file) not in before):
                continue
            self._sizes[safe_files.identity(file)] = file.st_size
            # A file that another program put there was not written within this minute.
            start = before.get(
                safe_files.identity(file), 0 if self._asked is not None else file.st_size
            )
            written += file.st_size - start if file.st_size >= start else file.st_size
        per_minute = self._growth.add(now, written)
        if per_minute > self._most_growth and self._first_time_growth(now=now):
            size = sum(self._sizes.values())
            self._tell(
                "log-explodes",
                f"{megabytes(per_minute)} were written within a minute, and it is {megabytes(size)}: "
                "see which lines fill it",
                size=size,
                per_minute=per_minute,
            )

    def _is_reopened(self, folder: int) -> bool:
        """Whether the server has opened the new log."""
        found = safe_files.look_up(self._name, folder)
        return found is not None and (found.st_size > 0 or self._rotated.is_written_to(folder) is False)

    def _too_large(self, folder: int, found: os.stat_result, now: float) -> None:
        size = found.st_size
        if self._reopen is None:
            if self._first_time_large(now=now):
                self._tell(
                    "log-too-large",
                    f"it is {megabytes(size)}, and {megabytes(self._most)} is the most: give "
                    "--master, the server's pid or its pid file, so that it can be rotated, or use "
                    "logrotate",
                    size=size,
                )
        elif now >= self._retry:
            self._rotate(self._reopen, folder, found, now)

    def _rotate(self, reopen: ProcessSignal, folder: int, found: os.stat_result, now: float) -> None:
        size = found.st_size
        self._retry = now + MINUTE
        try:
            with (
                reopen.addressed() as send,
                safe_files.successor(self._name, found, folder) as put_in_place,
            ):
                self._rotated.make_room(folder)
                safe_files.rename(self._name, f"{self._name}.1", folder)
                try:
                    put_in_place()
                except OSError:
                    safe_files.rename(f"{self._name}.1", self._name, folder)
                    raise
                self._retry = -math.inf
                self._tell("log-rotated", f"renamed at {megabytes(size)}", logging.INFO, size=size)
                self._ask(send, now)
        except OSError as error:
            text = error_text(error)
            if self._first_time_failure(text, now=now):
                self._tell(
                    "log-not-rotated",
                    f"it is {megabytes(size)} and cannot be rotated: {text}; it is tried again in a "
                    "minute",
                    size=size,
                    error=text,
                )

    def _ask(self, send: Callable[[], int], now: float) -> None:
        self._asked = now
        try:
            send()
        except OSError as error:
            self._not_reopened(error_text(error), now)

    def _await_reopening(self, folder: int, found: os.stat_result | None, now: float) -> None:
        """The log is missing or not reopened: wait, ask the server again, or report it."""
        if self._asked is not None:
            if now - self._asked >= REOPEN_SECONDS:
                self._not_reopened("it had a minute since the signal", now)
        elif (
            self._reopen is not None and now >= self._ask_again and self._rotated.is_written_to(folder)
        ):
            # The process that renamed it, perhaps a killed monitor, sent no signal, or in vain.
            try:
                with self._reopen.addressed() as send:
                    if found is None:
                        old = os.stat(f"{self._name}.1", dir_fd=folder, follow_symlinks=False)
                        with safe_files.successor(self._name, old, folder) as put_in_place:
                            put_in_place()
                    self._ask(send, now)
            except OSError as error:
                self._not_reopened(error_text(error), now)
        elif found is None:
            self._report_missing(now)

    def _not_reopened(self, error: str, now: float) -> None:
        self._asked, self._ask_again = None, now + TEN_MINUTES
        self._lost = True
        self._tell(
            "log-not-reopened",
            f"the server has not opened it again ({error}), and may go on writing to "
            f"{printable(self._name)}.1: see that --master is the server's pid or its pid file and "
            "that it reopens its logs at USR1, or restart it; it is asked again in ten minutes",
            error=error,
        )


def positive_size(value: object, argument: str) -> int:
    """Return a size above 0 in bytes. Raises ConfigurationError."""
    size = parse_size(value, argument)
    if size == 0:
        raise ConfigurationError(
            f'{argument}: {value!r} is always exceeded: write a size above 0, such as "100M"'
        )
    return size

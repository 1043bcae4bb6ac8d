"""A probe: a request as a visitor would send it, and an action when the server does not answer."""

from __future__ import annotations

import http.client
import io
import logging
import math
import os
import socket
import threading
import time
from contextlib import closing, suppress
from typing import Any, cast
from urllib.parse import urlsplit

from guardrails.errors import ConfigurationError
from guardrails.units import number_of_text, parse_count, parse_seconds
from guardrails.watchdog.events import Commands, Notifier, Notify, command_words, printable
from guardrails.watchdog.process_signal import ProcessSignal

MOST_READ = 2**16
"""Bytes that a probe reads of a response at most, its head included."""

MOST_FAILURES = 1000

_GRACE = 1.0
_MOST_CHARACTERS = 200

Number = int | str
Length = float | str
Pid = int | str | os.PathLike[str]


class Probe:
    """Requests a page of a server, and acts when the server does not answer.

    Status 2xx and 3xx is a success; redirects are not followed. Any other status is a failure, and
    so is a response that is not complete in time. At most 64 KB of a response are read.

    Failures in a row are event "probe-failed". The probe then runs its command, or sends its signal.
    After that it counts from 0 again. The next success is event "probe-recovered", at level INFO.

    Args:
        url: an http or https URL.
        notify: is called with each event.
        every: time between two requests.
        timeout: time that the complete response may take.
        failures: how many failures in a row make the probe act.
        command: is run then, without a shell.
        signal_pid: the process that is signalled then: its pid or a pid file.
        signal_name: the signal for that process.
        cooldown: time after that in which the probe does not act again.
        commands: runs the command; by default what runs the commands of events.

    Raises:
        ConfigurationError: an argument is wrong. Nothing is raised later.
    """

    def __init__(
        self,
        url: str,
        notify: Notify,
        *,
        every: Length = "30s",
        timeout: Length = "10s",
        failures: Number = 3,
        command: str | None = None,
        signal_pid: Pid | None = None,
        signal_name: str = "HUP",
        cooldown: Length = "2m",
        commands: Commands | None = None,
    ) -> None:
        self._url = _Url(url)
        self._notify = notify
        self._every = positive_seconds(every, "every")
        self._timeout = positive_seconds(timeout, "timeout")
        self._failures = count_of(failures, "failures", MOST_FAILURES)
        self._cooldown = parse_seconds(cooldown, "cooldown")
        if command is not None and signal_pid is not None:
            raise ConfigurationError(
                f"command: {command!r} and signal_pid {signal_pid!r} are both given: a probe does one "
                "of them, so leave the other out"
            )
        self._command = None if command is None else command_words(command, "command")
        self._signal = None if signal_pid is None else ProcessSignal(signal_pid, signal_name)
        if commands is None:
            commands = notify.commands if isinstance(notify, Notifier) else Commands()
        self._commands = commands
        self._due = self._act_again_at = -math.inf
        self._failures_in_row = 0
        self._down = False
        self._requesting: threading.Thread | None = None

    def look(self, now: float) -> None:
        """Send the request, when it is due. Never raises.

        Args:
            now: monotonic seconds.
        """
        self._commands.tidy()
        if now < self._due:
            return
        self._due = now + self._every
        error = self._request()
        if error is None:
            self._failures_in_row = 0
            if self._down:
                self._down = False
                self._notify(
                    "probe-recovered",
                    f"{self._url}: it answers again",
                    logging.INFO,
                    url=str(self._url),
                )
            return
        self._failures_in_row += 1
        if self._failures_in_row >= self._failures and now >= self._act_again_at:
            self._act(error)
            self._failures_in_row = 0
            self._act_again_at = now + self._cooldown

    def _act(self, error: str) -> None:
        self._down = True
        url, failures = str(self._url), self._failures_in_row
        self._notify(
            "probe-failed",
            f"{url}: {failures} failures in a row, the last of them: {error}",
            logging.WARNING,
            url=url,
            failures=failures,
            error=error,
        )
        if self._command is not None:
            facts = {"event": "probe-failed", "url": url, "failures": str(failures), "error": error}
            self._commands.run(self._command, facts)
        elif self._signal is not None:
            try:
                self._signal.send()
            except OSError as trouble:
                text = brief(str(trouble))
                message = f"{url}: {self._signal.name} was not sent: {text}"
                self._notify("probe-not-signalled", message, logging.ERROR, url=url, error=text)

    def _request(self) -> str | None:
        """Return what is wrong, or None.

        The socket obeys the time-out. Looking up a host name does not, so a thread does both.
        """
        if self._requesting is not None and self._requesting.is_alive():
            return "the previous request has not ended yet"
        found: list[str | None] = []
        self._requesting = threading.Thread(
            target=lambda: found.append(self._problem()), name="guardrails-probe", daemon=True
        )
        try:
            self._requesting.start()
        except RuntimeError as error:
            self._requesting = None
            return brief(str(error))
        self._requesting.join(self._timeout + _GRACE)
        return found[0] if found else self._url.late(self._timeout)

    def _problem(self) -> str | None:
        try:
            status, reason = self._url.get(self._timeout)
        except TimeoutError:
            return self._url.late(self._timeout)
        except Exception as error:
            return brief(f"{type(error).__name__}: {error}")
        return None if 200 <= status < 400 else brief(f"HTTP {status} {reason}")


class _Url:
    """A checked URL that can be requested within a time."""

    def __init__(self, url: str) -> None:
        text = url if isinstance(url, str) else ""
        try:
            parts = urlsplit(text)
            host, self._port = parts.hostname, parts.port
        except ValueError:
            host, self._port = None, None
        if (
            not host
            or parts.scheme not in ("http", "https")
            or not (text.isascii() and text.isprintable())
            or " " in text
        ):
            raise ConfigurationError(
                f"probe: {url!r} cannot be requested: write an http or https URL, such as "
                "http://127.0.0.1:8000/"
            )
        if "@" in parts.netloc:
            raise ConfigurationError(
                f"probe: a user name and password for {host!r} would be in every event: name a page "
                "that needs none"
            )
        self._text = text
        self._host = host
        self._kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def __str__(self) -> str:
        return self._text

    def late(self, timeout: float) -> str:
        """What is wrong when the time is over."""
        return f"no complete answer within {timeout:g} s"

    def get(self, timeout: float) -> tuple[int, str]:
        """Return status and reason of a GET request. Raises TimeoutError and any other exception."""
        deadline = time.monotonic() + timeout
        with closing(self._kind(self._host, self._port, timeout=timeout)) as connection:
            connection.request(
                "GET", self._target, headers={"User-Agent": "guardrails-probe", "Connection": "close"}
            )
            reader = cast("socket.socket", _DeadlineReader(connection.sock, deadline))
            with closing(http.client.HTTPResponse(reader, method="GET")) as response:
                response.begin()
                while 102 <= response.status < 200:  # early hints, before the response itself
                    response.headers = cast(
                        "http.client.HTTPMessage", None
                    )  # else begin() returns at once
                    response.begin()
                with suppress(_EnoughError):
                    while response.read(2**13):
                        pass
                    if response.length:
                        raise http.client.IncompleteRead(b"", response.length)
                return response.status, response.reason


class _EnoughError(Exception):
    """A response is longer than MOST_READ."""


class _DeadlineReader(io.RawIOBase):
    """Reads from a socket until a deadline, and at most MOST_READ bytes."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._left = MOST_READ

    def makefile(self, _mode: str) -> io.BufferedReader:
        """The part of a socket that http.client uses."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left == 0:
            raise _EnoughError(f"its head is longer than {MOST_READ} bytes")
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        read = self._sock.recv_into(memoryview(buffer)[: self._left])
        self._left -= read
        return read


def brief(text: str) -> str:
    """Return a text of another program, short and printable, as it goes into an event."""
    return printable(text.strip())[:_MOST_CHARACTERS]


def positive_seconds(value: object, argument: str) -> float:
    """Return a duration above 0 in seconds. Raises ConfigurationError."""
    seconds = parse_seconds(value, argument)
    if seconds == 0:
        raise ConfigurationError(
            f'{argument}: {value!r} is not above 0: write a duration such as "10s"'
        )
    return seconds


def count_of(value: object, argument: str, most: int) -> int:
    """Return a number from 1 to `most`, also of a text. Raises ConfigurationError."""
    return parse_count(number_of_text(value), argument, most=most)

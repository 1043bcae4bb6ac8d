"""A probe: a real request, as a visitor would send it, and what is done when nobody answers."""

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
"""Bytes of a response, its head included, that a probe reads at most."""

MOST_FAILURES = 1000

_GRACE = 1.0
_MOST_SAID = 200

Number = int | str
Length = float | str
Pid = int | str | os.PathLike[str]


class Probe:
    """Asks a server for a page, and acts when it does not answer.

    url: http or https. Status 2xx and 3xx is life; redirects are not followed. Anything else is a
    failure, as is a response that is not there `timeout` (default "10s") after the request began, even
    when it comes byte by byte. Of a long response the first 64 KB are read.

    every: how often it asks (default "30s").

    failures: so many in a row (default 3) are event "probe-failed". Then `command` is run, without a
    shell, or the process of `signal_pid` (a number or a pid file) gets `signal_name` (default "HUP").
    After that it counts anew, and does nothing again before `cooldown` (default "2m") has passed.

    An answer after that is event "probe-recovered", at level INFO. Raises ConfigurationError when
    built, and nothing later.
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
        self._due = self._rested = -math.inf
        self._failed = 0
        self._down = False
        self._asking: threading.Thread | None = None

    def look(self, now: float) -> None:
        """Ask, when it is time. `now`: monotonic seconds. Never raises."""
        self._commands.tidy()
        if now < self._due:
            return
        self._due = now + self._every
        error = self._ask()
        if error is None:
            self._failed = 0
            if self._down:
                self._down = False
                self._notify(
                    "probe-recovered",
                    f"{self._url}: it answers again",
                    logging.INFO,
                    url=str(self._url),
                )
            return
        self._failed += 1
        if self._failed >= self._failures and now >= self._rested:
            self._act(error)
            self._failed = 0
            self._rested = now + self._cooldown

    def _act(self, error: str) -> None:
        self._down = True
        url, failures = str(self._url), self._failed
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

    def _ask(self) -> str | None:
        """What is wrong, or None.

        The socket keeps to the time by itself. Looking up a host's name does not, hence the thread.
        """
        if self._asking is not None and self._asking.is_alive():
            return "the request before this one has not ended yet"
        found: list[str | None] = []
        self._asking = threading.Thread(
            target=lambda: found.append(self._problem()), name="guardrails-probe", daemon=True
        )
        try:
            self._asking.start()
        except RuntimeError as error:
            self._asking = None
            return brief(str(error))
        self._asking.join(self._timeout + _GRACE)
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
    """A checked URL, and how to get it within a time."""

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
                f"probe: {url!r} cannot be asked for: write an http or https URL, such as "
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
        """What is said when the time is over."""
        return f"no complete answer within {timeout:g} s"

    def get(self, timeout: float) -> tuple[int, str]:
        """The status and reason of a GET request. Raises TimeoutError and whatever else happens."""
        deadline = time.monotonic() + timeout
        with closing(self._kind(self._host, self._port, timeout=timeout)) as connection:
            connection.request(
                "GET", self._target, headers={"User-Agent": "guardrails-probe", "Connection": "close"}
            )
            reader = cast("socket.socket", _Until(connection.sock, deadline))
            with closing(http.client.HTTPResponse(reader, method="GET")) as response:
                response.begin()
                while 102 <= response.status < 200:  # early hints, before the answer itself
                    response.headers = cast("http.client.HTTPMessage", None)  # else it does not begin
                    response.begin()
                with suppress(_EnoughError):
                    while response.read(2**13):
                        pass
                    if response.length:
                        raise http.client.IncompleteRead(b"", response.length)
                return response.status, response.reason


class _EnoughError(Exception):
    """A response is longer than is read of one."""


class _Until(io.RawIOBase):
    """Reads from a socket until a deadline, and so many bytes at most."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._left = MOST_READ

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What http.client asks of a socket."""
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
    """A text of somebody else's as it goes into an event."""
    return printable(text.strip())[:_MOST_SAID]


def positive_seconds(value: object, argument: str) -> float:
    """A duration that is not nothing, in seconds. Raises ConfigurationError."""
    seconds = parse_seconds(value, argument)
    if seconds == 0:
        raise ConfigurationError(
            f'{argument}: {value!r} is no time at all: write a duration above 0, such as "10s"'
        )
    return seconds


def count_of(value: object, argument: str, most: int) -> int:
    """A number from 1 to `most`, or a text that is one. Raises ConfigurationError."""
    return parse_count(number_of_text(value), argument, most=most)

"""The request of a probe: urllib in a thread, with a bound on its whole duration."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.error
import urllib.request
from contextlib import closing, suppress
from typing import Any, cast
from urllib.parse import urlsplit

from guardrails.errors import ConfigurationError
from guardrails.watchdog.events import brief

MOST_READ = 2**16
"""Bytes that a probe reads of a response's body at most."""


def checked_url(url: object) -> str:
    """Return a URL that can be requested.

    Raises:
        ConfigurationError: it is no http or https URL, or it has a password in it.
    """
    text = url if isinstance(url, str) else ""
    try:
        parts = urlsplit(text)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or not (text.isascii() and text.isprintable()) or " " in text:
        raise ConfigurationError(
            f"probe: {url!r} cannot be requested: write an http or https URL, such as "
            "http://127.0.0.1:8000/"
        )
    if "@" in parts.netloc:
        raise ConfigurationError(
            f"probe: a user name and password for {parts.hostname!r} would be in every event: name a "
            "page that needs none"
        )
    return text


class ProbeRequest(threading.Thread):
    """One GET request, in a thread of its own. It is over in time, whatever the server sends.

    A time-out of the socket bounds one read, and a server may send its answer byte by byte. Looking
    up a host's name has no time-out at all. So the caller waits for the thread, and then shuts the
    connection down, which ends the thread.
    """

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__(name="guardrails-probe", daemon=True)
        self._url = url
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._is_late = False
        self._found: list[str | None] = []

    def problem(self) -> str | None:
        """Send the request, and return what is wrong; None if the answer is good."""
        try:
            self.start()
        except RuntimeError as error:  # too many threads
            return brief(str(error))
        self.join(self._timeout)
        if self._found:
            return self._found[0]
        self._is_late = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        return self._late()

    def connected(self, connection: socket.socket) -> None:
        """The connection is there."""
        self._socket = connection
        if self._is_late:
            raise TimeoutError

    def run(self) -> None:
        """Send the request and read the answer: the thread itself."""
        try:
            self._found.append(self._ask())
        except TimeoutError:
            self._found.append(self._late())
        except Exception as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            is_late = isinstance(cause, TimeoutError)
            self._found.append(self._late() if is_late else brief(f"{type(cause).__name__}: {cause}"))

    def _ask(self) -> str | None:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), _AnyStatus, _Handler(self)
        )
        opener.addheaders = [("User-Agent", "guardrails-probe")]
        with closing(opener.open(self._url, timeout=self._timeout)) as response:
            read = 0
            while read < MOST_READ and (piece := response.read(2**13)):
                read += len(piece)
            if response.length and read < MOST_READ:
                raise http.client.IncompleteRead(b"", response.length)
            is_good = 200 <= response.status < 400
            return None if is_good else brief(f"HTTP {response.status} {response.reason}")

    def _late(self) -> str:
        return f"no complete answer within {self._timeout:g} s"


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Returns each response as it is: no status raises, and no redirect is followed."""

    def http_response(self, _request: Any, response: Any) -> Any:
        return response

    def https_response(self, _request: Any, response: Any) -> Any:
        return response


class _Response(http.client.HTTPResponse):
    """Skips early hints (103), which http.client takes for the response itself."""

    def begin(self) -> None:
        super().begin()
        while 102 <= self.status < 200:
            self.headers = cast("http.client.HTTPMessage", None)  # else begin() returns at once
            super().begin()


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections that tell a request of their sockets."""

    def __init__(self, request: ProbeRequest) -> None:
        super().__init__()
        self._request = request

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._kind(http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._kind(http.client.HTTPSConnection), request)

    def _kind(self, kind: Any) -> Any:
        tell = self._request.connected

        class Connection(kind):  # type: ignore[misc]
            response_class = _Response

            def connect(self) -> None:
                super().connect()
                tell(self.sock)

        return Connection

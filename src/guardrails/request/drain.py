"""The body of a refused request that the client is still sending.

Reading it lets the client see the answer, and keep its connection. But a server's `read` loops until
it has all that it was asked for, so a client that sends one byte now and then would hold the thread.
The limits are therefore set at the socket below: each single receive has what is left of a second, less
for a slow client, and of 256 KB. Where that socket is not found nothing is read, except under uWSGI.

Servers read the rest of a body themselves, before or after the answer, for as long as it lasts. So
after a body that did not come to its end within the limits, a server finds the end of the connection.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from typing import Any

MOST_DRAINED_BYTES = 256 * 1024
LONGEST_DRAIN_SECONDS = 1.0
FIRST_SECONDS = 0.25
"""How long a client is waited for that sends nothing, or next to nothing."""

LEAST_BYTES_PER_SECOND = 64 * 1024
"""How much a client must send to be waited for longer."""

_CHUNK = 16 * 1024
_TLS_OF_UWSGI = frozenset({"https-socket", "ssl-socket", "suwsgi-socket"})


class _LimitReachedError(Exception):
    """No OSError: a server's file object would take a time-out for its own, and note it."""


class LimitedSocket:
    """Stands in for a connection's socket while a server reads a body.

    Args:
        connection: the socket.

    Attributes:
        ended: whether it shows the end of the connection from now on, whatever comes.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._began = time.monotonic()
        self._received = 0
        self.ended = False

    def recv(self, size: int) -> bytes:
        """Receive once, within the limits."""
        buffer = bytearray(size)
        return bytes(buffer[: self.recv_into(buffer)])

    def recv_into(self, buffer: Any) -> int:
        """Receive once, within the limits."""
        if self.ended:
            return 0
        seconds = _seconds_left(self._began, self._received)
        most = MOST_DRAINED_BYTES - self._received
        if seconds <= 0 or most <= 0:
            raise _LimitReachedError
        self._connection.settimeout(seconds)
        try:
            received: int = self._connection.recv_into(memoryview(buffer)[:most])
        except TimeoutError:
            raise _LimitReachedError from None
        self._received += received
        return received

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def discard_body(environ: dict[str, Any], *, read: bool) -> None:
    """Read the rest of a request's body within the limits, or see to it that nobody reads it.

    Args:
        environ: of a refused request that is not answered yet.
        read: whether the body may be read at all.
    """
    size = _size(environ)
    body = environ.get("wsgi.input")
    if size and "uwsgi.version" in environ:
        if read and not environ.get("HTTP_EXPECT"):
            _read_under_uwsgi(body, size)
        return
    holder, name = _place_of_socket(body)
    connection = getattr(holder, name, None)
    if connection is None:
        return
    complete = size == 0 or _read_limited(environ, holder, name, size if read else 0)
    if not complete or _gunicorn_lingers(environ):
        _shut_for_reading(connection)


def _read_limited(environ: dict[str, Any], holder: Any, name: str, size: int) -> bool:
    """Read a body with limits on its socket; return whether it came to its end.

    Args:
        environ: of the request.
        holder: the object that has the socket.
        name: the name of its attribute.
        size: how much may be read; 0 where nothing is read.
    """
    body = environ["wsgi.input"]
    connection = getattr(holder, name)
    timeout = connection.gettimeout()
    limited = LimitedSocket(connection)
    setattr(holder, name, limited)
    complete = False
    try:
        complete = size > 0 and _is_on_its_way(environ) and _read(body, size)
    finally:
        # The answer is sent with the server's own time-out.
        connection.settimeout(timeout)
        if complete:
            setattr(holder, name, connection)
        else:
            limited.ended = True
            _forget_received(body, holder)
    return complete


def _seconds_left(began: float, received: int) -> float:
    """Return how long more of a body may be waited for.

    Args:
        began: when the reading began, in monotonic seconds.
        received: the bytes that have come since.
    """
    allowed = FIRST_SECONDS + received / LEAST_BYTES_PER_SECOND
    return began + min(allowed, LONGEST_DRAIN_SECONDS) - time.monotonic()


def _size(environ: dict[str, Any]) -> int:
    """Return how long the body is at most; 0 where there is none, or where its end cannot be known."""
    if environ.get("HTTP_TRANSFER_ENCODING") and environ.get("wsgi.input_terminated"):
        return sys.maxsize
    try:
        return max(0, int(environ.get("CONTENT_LENGTH") or 0))
    except ValueError:
        return 0


def _is_on_its_way(environ: dict[str, Any]) -> bool:
    """Return whether the client sends the body: not where it waits for "100 Continue".

    gunicorn, werkzeug and cheroot have said that before they call the app. Others say it when the body
    is read.
    """
    said_before = ("gunicorn.socket", "werkzeug.socket", "ACTUAL_SERVER_PROTOCOL")
    return not environ.get("HTTP_EXPECT") or any(key in environ for key in said_before)


def _read(body: Any, size: int) -> bool:
    """Read a body, and return whether it came to its end."""
    try:
        while size > 0:
            chunk = body.read(min(size, _CHUNK))
            if not chunk:
                break
            size -= len(chunk)
    except Exception:
        # The client is gone or too slow, or has sent no HTTP. It gets the answer in any case.
        return False
    return True


def _place_of_socket(body: Any) -> tuple[Any, str]:
    """Return the object and the name of its attribute that has the socket which `body` reads from."""
    reader = getattr(body, "reader", None)
    if reader is not None:
        # gunicorn; the reader of a chunked body finds its unreader by the request.
        request = getattr(reader, "req", None)
        return getattr(reader, "unreader", None) or getattr(request, "unreader", None), "sock"
    # cheroot and gevent; werkzeug where the body is chunked, and else; wsgiref.
    file = getattr(body, "rfile", None) or getattr(body, "_rfile", None) or body
    raw = getattr(file, "raw", None)
    return (raw if isinstance(raw, socket.SocketIO) else None), "_sock"


def _forget_received(body: Any, holder: Any) -> None:
    """Drop what the server has received and not read: it would be taken for the next request."""
    with suppress(Exception):
        if isinstance(holder, socket.SocketIO):
            (getattr(body, "rfile", None) or getattr(body, "_rfile", None) or body).read()
        else:
            holder.read()
            body.failed = True  # gunicorn closes the connection of a body that could not be read


def _gunicorn_lingers(environ: dict[str, Any]) -> bool:
    """Return whether gunicorn closes the connection, and before that waits for the client to do so."""
    if "gunicorn.socket" not in environ:
        return False
    asked_for = environ.get("HTTP_CONNECTION", "").lower()
    return (
        not environ["wsgi.multithread"]  # a worker of kind sync
        or asked_for == "close"
        or (asked_for != "keep-alive" and environ.get("SERVER_PROTOCOL") == "HTTP/1.0")
    )


def _shut_for_reading(connection: Any) -> None:
    """Let every later receive return at once. What is sent to the client stays as it is."""
    with suppress(OSError, TypeError):
        # Below TLS, whose own `shutdown` would end the encryption of what is sent.
        socket.socket.shutdown(connection, socket.SHUT_RD)


def _read_under_uwsgi(body: Any, size: int) -> None:
    """Read of a body what has come, and wait for more of it while more must come.

    uWSGI's `read` waits in C for all that it was asked for, but not for bytes that have come already.
    """
    uwsgi: Any = sys.modules["uwsgi"]
    if not _TLS_OF_UWSGI.isdisjoint(uwsgi.opt):
        return  # what comes there are not the bytes of the body
    # With the head of the request uWSGI may have received the whole of a small body.
    may_wait = size > uwsgi.buffer_size
    size = min(size, MOST_DRAINED_BYTES)
    began, received = time.monotonic(), 0
    with suppress(OSError), socket.socket(fileno=os.dup(body.fileno())) as connection:
        while received < size and (seconds := _seconds_left(began, received)) > 0:
            connection.settimeout(seconds if may_wait else 0)
            come = len(connection.recv(min(size - received, _CHUNK), socket.MSG_PEEK))
            if not come:
                return
            received += len(body.read(come))

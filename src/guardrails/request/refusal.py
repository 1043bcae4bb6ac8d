"""A refusal as an HTTP answer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any
from wsgiref.types import StartResponse

from guardrails.decision import Decision

MOST_DRAINED_BYTES = 256 * 1024
LONGEST_DRAIN_SECONDS = 1.0
_CHUNK = 16 * 1024
_REASONS = {
    403: "This client is not served here.",
    429: "Too many requests have come from this client.",
    503: "The server is busy with this kind of request.",
}


@cache
def status_line(status: int) -> str:
    """Return a status with its phrase."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Refused"


def refuse(
    decision: Decision, environ: dict[str, Any], start_response: StartResponse, *, drain: bool
) -> Iterable[bytes]:
    """Answer a refused request.

    Args:
        decision: the refusal.
        environ: of the request.
        start_response: of the server.
        drain: read the body that the client is still sending, so that the client sees the answer and
            not a reset. At most 256 KB and one second, only with a Content-Length, and never where the
            client waits to be asked for the body.

    Returns:
        The response.
    """
    if drain and environ.get("CONTENT_LENGTH"):
        _drain(environ)
    status = decision.status or 503
    line = status_line(status)
    text = f"{line}\n\n{_REASONS.get(status, 'This request was refused.')}"
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Cache-Control", "no-store"),
    ]
    if decision.retry_after is not None:
        headers.append(("Retry-After", str(decision.retry_after)))
        text += f" Try again in {decision.retry_after} s."
    body = f"{text}\nReference: {decision.id:x}\n".encode()
    headers.append(("Content-Length", str(len(body))))
    start_response(line, headers)
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


def _drain(environ: dict[str, Any]) -> None:
    if environ.get("HTTP_EXPECT"):
        return
    try:
        left = int(environ["CONTENT_LENGTH"])
    except ValueError:
        return
    left = min(left, MOST_DRAINED_BYTES)
    deadline = time.monotonic() + LONGEST_DRAIN_SECONDS
    socket = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    timeout = socket.gettimeout() if socket is not None else None
    try:
        body = environ["wsgi.input"]
        while left > 0 and (seconds := deadline - time.monotonic()) > 0:
            if socket is not None and (timeout is None or timeout > seconds):
                # A read waits until it has all: without a limit a slow client could hold the thread.
                socket.settimeout(seconds)
            chunk = body.read(min(left, _CHUNK))
            if not chunk:
                break
            left -= len(chunk)
    except Exception:  # noqa: S110 - the client is gone or too slow: the answer is sent in any case
        pass
    finally:
        if socket is not None:
            socket.settimeout(timeout)

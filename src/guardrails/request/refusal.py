"""A refusal as an HTTP answer."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from http import HTTPStatus
from typing import Any
from wsgiref.types import StartResponse

from guardrails.decision import Decision
from guardrails.request.drain import discard_body

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
        drain: whether the body may be read that the client is still sending, so that the client sees
            the answer and not a reset.

    Returns:
        The response.
    """
    with suppress(Exception):  # the client gets its answer in any case
        discard_body(environ, read=drain)
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

"""What a browser says about a request that a page makes it send.

A page of another site can make its visitors send requests. The browser marks them: a script cannot
set, change or remove these headers. A program can send any of them.
"""

from __future__ import annotations

from typing import Any

from guardrails.paths import normal_host

PREFLIGHT, CROSS_SITE = 1, 2
"""The marks of a request; a request may have both, or none (0)."""


def marks_of(environ: dict[str, Any]) -> int:
    """Return the marks of a request.

    A preflight asks whether a page of another origin may send the request that it announces, by the
    CORS protocol of the Fetch standard. A cross-site request is one that a page of another site made
    the browser send. `Sec-Fetch-Site` says so, by the Fetch Metadata standard. Browsers send that
    header only to https sites and to localhost. Without it the host in `Origin` decides.
    """
    origin = environ.get("HTTP_ORIGIN")
    marks = 0
    if (
        origin
        and environ.get("REQUEST_METHOD") == "OPTIONS"
        and environ.get("HTTP_ACCESS_CONTROL_REQUEST_METHOD")
    ):
        marks = PREFLIGHT
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site == "cross-site" or (not site and origin and _is_of_another_host(origin, environ)):
        marks |= CROSS_SITE
    return marks


def _is_of_another_host(origin: str, environ: dict[str, Any]) -> bool:
    """Return whether an origin has another host than the request; "null" hides which one it has."""
    host = environ.get("HTTP_HOST") or environ.get("SERVER_NAME", "")
    return normal_host(origin.partition("://")[2]) != normal_host(host)

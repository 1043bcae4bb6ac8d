"""Whom a guard counts by: what `by=` may say, the key it makes of a request, how keys are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from guardrails.errors import ConfigurationError
from guardrails.request import Request, normal_host

By = str | Callable[[dict[str, Any]], str | None]
LONGEST_AGENT = 512
_WORDS_OF_BY = ("client", "client+agent", "all", "host", "path", "user")
_LONGEST_SHOWN_KEY = 128


def key_function(by: By) -> Callable[[Request], bytes | None]:
    """What makes the key of a request; the key is None where the guard does not apply."""
    if callable(by):
        return partial(_chosen_key, by)
    if not isinstance(by, str):
        raise ConfigurationError(f"by: {by!r} is neither a text nor a callable: write one of them")
    kind, _, name = by.partition(":")
    if kind == "header" and name:
        variable = "HTTP_" + name.upper().replace("-", "_")
        return lambda request: _or_client(request, request.environ.get(variable))
    if kind == "cookie" and name:
        return lambda request: _or_client(request, _cookie(request.environ, name))
    keys: Mapping[str, Callable[[Request], bytes | None]] = {
        "client": lambda request: request.client.key if request.client else None,
        "client+agent": _client_and_agent,
        "all": lambda _request: b"",
        "host": lambda request: normal_host(request.host).encode("latin-1", "replace"),
        "path": lambda request: request.path.encode("latin-1", "replace"),
        "user": lambda request: _text_key(request.environ.get("REMOTE_USER") or None),
    }
    if by not in keys:
        raise ConfigurationError(
            f"by: {by!r} is unknown: use "
            + ", ".join(f'"{word}"' for word in _WORDS_OF_BY)
            + ', "header:NAME", "cookie:NAME" or a callable'
        )
    return keys[by]


def _chosen_key(by: Callable[[dict[str, Any]], str | None], request: Request) -> bytes | None:
    return _text_key(by(request.environ))


def _client_and_agent(request: Request) -> bytes | None:
    if request.client is None:
        return None
    agent = request.environ.get("HTTP_USER_AGENT", "")[:LONGEST_AGENT]
    # The address's length makes the join unambiguous.
    address = request.client.key
    key: bytes = bytes((len(address),)) + address + agent.encode("latin-1", "replace")
    return key


def _or_client(request: Request, value: str | None) -> bytes | None:
    if value:
        # Marked, so that nobody can send another client's key as a header.
        return b"\0value\0" + value.encode("latin-1", "replace")
    return request.client.key if request.client is not None else None


def _text_key(value: str | None) -> bytes | None:
    return None if value is None else str(value).encode("utf-8", "surrogateescape")


def _cookie(environ: dict[str, Any], wanted: str) -> str | None:
    cookies: str = environ.get("HTTP_COOKIE", "")
    for part in cookies.split(";"):
        name, _, value = part.partition("=")
        if name.strip() == wanted:
            return value.strip()
    return None


def shown_key(by: By, key: bytes | None, client: str) -> str | None:
    """How a key is shown to people; None for what nobody needs to read, such as a header's value."""
    if key is None or by == "client":
        return client
    if by == "all":
        return "all"
    if by in ("host", "path"):
        return ascii(key[:_LONGEST_SHOWN_KEY].decode("latin-1"))[1:-1]
    return None

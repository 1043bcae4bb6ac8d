"""Whom a guard counts by: what `by=` may say, the key it makes of a request, how keys are shown."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from guardrails.client.identity import Client
from guardrails.errors import ConfigurationError
from guardrails.paths import canonical_path, normal_host
from guardrails.store.contract import StoreRequest


class Request:
    """One request as the guards see it. `client` is None when it has no usable address."""

    __slots__ = ("client", "environ", "host", "method", "path")

    def __init__(
        self, environ: dict[str, Any], client: Client | None, method: str, host: str, path: str
    ) -> None:
        self.environ = environ
        self.client = client
        self.method = method
        self.host = host
        self.path = path


By = str | Callable[[dict[str, Any]], str | None]
LONGEST_AGENT = 512
_WORDS_OF_BY = ("client", "client+agent", "all", "host", "path", "user")
_LONGEST_SHOWN_KEY = 128
_LONGEST_KEY = 128


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
        "host": lambda request: _text_key(normal_host(request.host)),
        "path": lambda request: _text_key(canonical_path(request.path)),
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
        return b"\0value\0" + _bounded(value.encode("utf-8", "surrogatepass"))
    return request.client.key if request.client is not None else None


def _text_key(value: str | None) -> bytes | None:
    return None if value is None else _bounded(str(value).encode("utf-8", "surrogatepass"))


def _bounded(key: bytes) -> bytes:
    """A key of any length as one that may be remembered."""
    return key if len(key) <= _LONGEST_KEY else hashlib.blake2b(key, digest_size=32).digest()


def _cookie(environ: dict[str, Any], wanted: str) -> str | None:
    cookies: str = environ.get("HTTP_COOKIE", "")
    for part in cookies.split(";"):
        name, _, value = part.partition("=")
        if name.strip() == wanted:
            return value.strip()
    return None


def shown_key(by: By, key: bytes | None, open_request: StoreRequest) -> str | None:
    """How a key is shown to people; None for what nobody needs to read, such as a header's value."""
    if key is None or by == "client":
        return open_request.client
    if by == "all":
        return "all"
    if by in ("host", "path"):
        text = open_request.host if by == "host" else canonical_path(open_request.path)
        return ascii(text[:_LONGEST_SHOWN_KEY])[1:-1]
    return None

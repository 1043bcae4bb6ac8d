"""What a guard counts by: the words of `by`, the key of a request, and how logs show keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args

from guardrails.client.identity import Client
from guardrails.errors import ConfigurationError
from guardrails.paths import canonical_path, normal_host
from guardrails.store.contract import StoreRequest


class Request:
    """One request as guards see it. `client` is None if the request has no usable address."""

    __slots__ = ("client", "environ", "host", "method", "path")

    def __init__(
        self, environ: dict[str, Any], client: Client | None, method: str, host: str, path: str
    ) -> None:
        self.environ = environ
        self.client = client
        self.method = method
        self.host = host
        self.path = path


ByWord = Literal["client", "client+agent", "all", "host", "path", "user"]
"""The words that `by` takes besides "header:NAME" and "cookie:NAME"."""

By = ByWord | str | Callable[[dict[str, Any]], str | None]
"""What `by` takes."""

LONGEST_AGENT = 512
"""How many characters of a User-Agent header count."""

_LONGEST_SHOWN_KEY = 128
_LONGEST_KEY = 128


def key_function(by: By) -> Callable[[Request], bytes | None]:
    """Return the function that makes the key of a request, for a `by` option.

    The key is None if the guard does not apply to the request.

    Raises:
        ConfigurationError: `by` is unknown.
    """
    if callable(by):
        return partial(_key_of_callable, by)
    if not isinstance(by, str):
        raise ConfigurationError(f"by: {by!r} is neither a text nor a callable: give one of these")
    kind, _, name = by.partition(":")
    if kind == "header" and name:
        variable = "HTTP_" + name.upper().replace("-", "_")
        return lambda request: _value_or_client(request, request.environ.get(variable))
    if kind == "cookie" and name:
        return lambda request: _value_or_client(request, _cookie(request.environ, name))
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
            + ", ".join(f'"{word}"' for word in get_args(ByWord))
            + ', "header:NAME", "cookie:NAME" or a callable'
        )
    return keys[by]


def _key_of_callable(by: Callable[[dict[str, Any]], str | None], request: Request) -> bytes | None:
    return _text_key(by(request.environ))


def _client_and_agent(request: Request) -> bytes | None:
    if request.client is None:
        return None
    agent = request.environ.get("HTTP_USER_AGENT", "")[:LONGEST_AGENT]
    # With the length of the address, no two pairs of address and agent make the same key.
    address = request.client.key
    key: bytes = bytes((len(address),)) + address + agent.encode("latin-1", "replace")
    return key


def _value_or_client(request: Request, value: str | None) -> bytes | None:
    if value:
        # The mark keeps a client from sending another client's key as its header.
        return b"\0value\0" + _bounded(value.encode("utf-8", "surrogatepass"))
    return request.client.key if request.client is not None else None


def _text_key(value: str | None) -> bytes | None:
    return None if value is None else _bounded(str(value).encode("utf-8", "surrogatepass"))


def _bounded(key: bytes) -> bytes:
    """Return a key of limited length: a long one is hashed."""
    return key if len(key) <= _LONGEST_KEY else hashlib.blake2b(key, digest_size=32).digest()


def _cookie(environ: dict[str, Any], wanted: str) -> str | None:
    cookies: str = environ.get("HTTP_COOKIE", "")
    for part in cookies.split(";"):
        name, _, value = part.partition("=")
        if name.strip() == wanted:
            return value.strip()
    return None


def shown_key(by: By, key: bytes | None, open_request: StoreRequest) -> str | None:
    """Return a key as logs and decisions show it.

    Args:
        by: what the guard counts by.
        key: the key, if the request has one of its own.
        open_request: the request.

    Returns:
        A text, or None for a key that is not shown, such as the value of a header.
    """
    if key is None or by == "client":
        return open_request.client
    if by == "all":
        return "all"
    if by in ("host", "path"):
        text = open_request.host if by == "host" else canonical_path(open_request.path)
        return ascii(text[:_LONGEST_SHOWN_KEY])[1:-1]
    return None

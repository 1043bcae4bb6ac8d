"""What a guard counts by: the words of `by`, the key of a request, and how logs show keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
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

ByOne = ByWord | str | Callable[[dict[str, Any]], str | None]
"""What `by` takes, alone or in a list."""

By = ByOne | Sequence[ByOne]
"""What `by` takes. Of a list, the first that has a value counts."""

LONGEST_AGENT = 512
"""How many characters of a User-Agent header count."""

_ALWAYS = ("all", "host", "path")
"""The words that always have a value, so that nothing after them in a list is ever reached."""

_LONGEST_SHOWN_KEY = 128
_LONGEST_KEY = 128

Key = Callable[[Request], bytes | None]
"""Returns the key of a request; None if the request has no such key."""


def checked_by(by: Any) -> By:
    """Return a `by` option as guards keep it: a list as a tuple, and a list of one as that one.

    Raises:
        ConfigurationError: it is unknown, or a part of a list can never count.
    """
    several = tuple(by) if isinstance(by, list | tuple) and by else (by,)
    for number, one in enumerate(several):
        if not isinstance(one, str) and not callable(one):
            raise ConfigurationError(
                f"by: {one!r} is neither a text nor a callable, nor a list of these: give one of these"
            )
        _key_of(one, number)
        if one in several[:number]:
            raise ConfigurationError(f"by: {one!r} is in the list twice: leave one out")
        if one in _ALWAYS and number < len(several) - 1:
            raise ConfigurationError(
                f"by: {one!r} always has a value, so what comes after it in the list is never counted "
                "by: write it last"
            )
    checked: By = several if len(several) > 1 else several[0]
    return checked


def sources(by: By) -> tuple[ByOne, ...]:
    """Return what a checked `by` counts by, in order.

    A header or a cookie at the end is followed by the client. Otherwise clients that leave it out
    would be counted by nothing.
    """
    several = by if isinstance(by, tuple) else (by,)
    last = several[-1]
    if isinstance(last, str) and last.startswith(("header:", "cookie:")) and "client" not in several:
        return (*several, "client")
    return several


def by_name(by: By) -> str:
    """Return how a guard's name shows its `by`: "user,client"."""
    return ",".join(
        one if isinstance(one, str) else getattr(one, "__name__", "callable")
        for one in (by if isinstance(by, tuple) else (by,))
    )


def shown_by(by: By) -> str:
    """Return a `by` option as messages show it: as it is written in a program."""
    if isinstance(by, str):
        return f'"{by}"'
    if callable(by):
        return getattr(by, "__name__", "callable")
    return f"[{', '.join(map(shown_by, by))}]"


def counts_by_client(by: By) -> bool:
    """Return whether the client's address is the key of some requests, or a part of it."""
    return not {"client", "client+agent"}.isdisjoint(one for one in sources(by) if isinstance(one, str))


def key_function(by: By) -> Key:
    """Return the function that makes the key of a request, for a checked `by`.

    Each key but the client's own is marked by its source. So no client can send a header that makes
    the key of another client, or of a user.
    """
    several = sources(by)
    if len(several) == 1:
        return _key_of(several[0], None)
    keys = [_key_of(one, number) for number, one in enumerate(several)]

    def first_key(request: Request) -> bytes | None:
        for key in keys:
            found = key(request)
            if found is not None:
                return found
        return None

    return first_key


def _key_of(by: ByOne, number: int | None) -> Key:
    """Return the key function of one source. `number` is its place in a list, None if it is alone."""
    if callable(by):
        if number is None:
            return _marked("callable", lambda request: by(request.environ))
        # In a list an empty text is no value, so that the next source counts.
        return _marked(f"callable {number}", lambda request: by(request.environ) or None)
    kind, _, name = by.partition(":")
    if kind == "header" and name:
        variable = "HTTP_" + name.upper().replace("-", "_")
        return _marked(f"header {variable}", lambda request: request.environ.get(variable) or None)
    if kind == "cookie" and name:
        return _marked(f"cookie {name}", lambda request: _cookie(request.environ, name) or None)
    keys: dict[str, Key] = {
        "client": lambda request: request.client.key if request.client else None,
        "client+agent": _client_and_agent,
        "all": lambda _request: _ALL,
        "host": _marked("host", lambda request: normal_host(request.host)),
        "path": _marked("path", lambda request: canonical_path(request.path)),
        "user": _marked("user", lambda request: request.environ.get("REMOTE_USER") or None),
    }
    if by not in keys:
        raise ConfigurationError(
            f"by: {by!r} is unknown: use "
            + ", ".join(f'"{word}"' for word in get_args(ByWord))
            + ', "header:NAME", "cookie:NAME", a callable, or a list of these'
        )
    return keys[by]


def _mark(source: str) -> bytes:
    """Return what the keys of a source begin with. It is longer than an address, so it is never one."""
    return f"\0requests by {source}\0".encode()


_ALL, _HOST, _PATH = map(_mark, ("all", "host", "path"))


def _marked(source: str, value_of: Callable[[Request], str | None]) -> Key:
    """Return a key function whose keys are marked by their source."""
    mark = _mark(source)

    def key(request: Request) -> bytes | None:
        value = value_of(request)
        if value is None:
            return None
        return mark + _bounded(str(value).encode("utf-8", "surrogatepass"))

    return key


def _client_and_agent(request: Request) -> bytes | None:
    if request.client is None:
        return None
    agent = request.environ.get("HTTP_USER_AGENT", "")[:LONGEST_AGENT]
    # With the length of the address, no two pairs of address and agent make the same key.
    address = request.client.key
    key: bytes = bytes((len(address),)) + address + agent.encode("latin-1", "replace")
    return _mark("client+agent") + key


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
    if by == "all" or key == _ALL:
        return "all"
    if key is None or by == "client" or key == open_request.key:
        return open_request.client
    if key.startswith(_HOST):
        return ascii(open_request.host[:_LONGEST_SHOWN_KEY])[1:-1]
    if key.startswith(_PATH):
        return ascii(canonical_path(open_request.path)[:_LONGEST_SHOWN_KEY])[1:-1]
    return None

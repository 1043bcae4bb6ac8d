"""Notices that nearly all requests have one client, though they have many user agents.

That client is most likely a proxy that was not declared: its visitors share one count, and are refused
together. Of each 1,024 requests of a process, 1,000 in a row are looked at. Where clients differ, the
look ends after some dozen requests, and costs the others nothing: `read` is then the reader's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from guardrails.client.identity import Client

REQUESTS = 1000
FEWEST_OF_ONE = 990
MANY_AGENTS = 20
"""Of so many requests in a row, so many have one client, and so many different agents."""

_MOST_CLIENTS = REQUESTS - FEWEST_OF_ONE + 1

ReadClient = Callable[[dict[str, Any]], Client | None]


@dataclass(slots=True)
class _Seen:
    """The requests of one client."""

    text: str
    requests: int = 0
    agents: set[int] = field(default_factory=set)


class OneClientCheck:
    """Reads clients, and looks at some of them on the way.

    Args:
        read: reads the client of a request.
        warn: reports a set-up that looks wrong, as `SetupChecks.warn` does.

    Attributes:
        read: reads the client of the next request.
    """

    def __init__(self, read: ReadClient, warn: Callable[..., object]) -> None:
        self.read = self._read = read
        self._warn = warn
        self._requests = 0
        self._clients: dict[bytes, _Seen] = {}

    def begin(self) -> None:
        """Look at the next 1,000 requests."""
        self._requests = 0
        self._clients = {}
        self.read = self._read_and_look

    def _read_and_look(self, environ: dict[str, Any]) -> Client | None:
        client = self._read(environ)
        # A client that is watched, or has no address, is another check's matter.
        key, text = (client.key, client.text) if client and not client.watched else (b"", "")
        seen = self._clients.get(key)
        if seen is None:
            seen = self._clients[key] = _Seen(text)
        seen.requests += 1
        if len(seen.agents) < MANY_AGENTS:
            # The hash alone: an agent may be long.
            seen.agents.add(hash(environ.get("HTTP_USER_AGENT")))
        self._requests += 1
        if len(self._clients) > _MOST_CLIENTS:
            self.read = self._read
        elif self._requests >= REQUESTS:
            self.read = self._read
            self._judge(max(self._clients.values(), key=lambda seen: seen.requests))
        return client

    def _judge(self, seen: _Seen) -> None:
        if seen.text and seen.requests >= FEWEST_OF_ONE and len(seen.agents) >= MANY_AGENTS:
            self._warn(
                "one-client",
                seen.text,
                "%s is the client of %d of %d requests in a row, with %d or more different user "
                "agents: if that is a proxy or a CDN, all its visitors count as one, and are refused "
                "as one, until it is named in trusted_proxies=[...]; if that is one visitor, nothing "
                "is wrong",
                seen.text,
                seen.requests,
                REQUESTS,
                MANY_AGENTS,
            )

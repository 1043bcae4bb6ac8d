"""The client of a request: the options for finding it, and the key that stores count it by."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from guardrails.client.forwarded import MOST_HOPS, header_variable
from guardrails.client.networks import Networks, listed
from guardrails.errors import ConfigurationError

DEFAULT_FORWARDED = "x-forwarded-for"
DEFAULT_IPV6_PREFIX = 64

UNIX = "unix"
"""What `trusted_proxies` calls a proxy on a unix socket, which has no address."""

NO_ADDRESS = b""
"""Stands for the address of a proxy on a unix socket, where the client behind it is not known."""


@dataclass(frozen=True)
class Identity:
    """How the client of a request is found: arguments of `throttle()`, checked.

    Args:
        trusted_proxies: networks, "loopback", "private", or "unix" for a peer without an address;
            None if the user did not say.
        proxy_hops: how many proxies each request passes, where their networks are not known.
        forwarded: the header that the proxies write.
        client: a callable environ -> address | None, instead of the three above.
        ipv6_prefix: how many bits of an IPv6 address make one client, 16 to 128.

    Raises:
        ConfigurationError: an argument is wrong, or two contradict each other.
    """

    trusted_proxies: Any = None
    proxy_hops: int | None = None
    forwarded: str = DEFAULT_FORWARDED
    client: Callable[[dict[str, Any]], str | None] | None = None
    ipv6_prefix: int = DEFAULT_IPV6_PREFIX

    def __post_init__(self) -> None:
        given = self.trusted_proxies
        if given is not None:
            texts = listed(given, "trusted_proxies")
            Networks([text for text in texts if text != UNIX], "trusted_proxies")
            object.__setattr__(self, "trusted_proxies", texts)
        header_variable(self.forwarded)
        hops = self.proxy_hops
        if hops is not None and (type(hops) is not int or not 1 <= hops <= MOST_HOPS):
            raise ConfigurationError(
                f"proxy_hops: {hops!r} is not a number of proxies from 1 to {MOST_HOPS}: write how "
                "many proxies each request passes, or leave it out"
            )
        if given is not None and hops is not None:
            raise ConfigurationError(
                f"proxy_hops: {hops} and trusted_proxies were both given, and each alone says who the "
                "client is: write the proxies' networks, or their number if those are not known"
            )
        if self.client is not None:
            if not callable(self.client):
                raise ConfigurationError(
                    f"client: {self.client!r} is not callable: give a function of the environ that "
                    "returns an address as a text, or None"
                )
            if given is not None or hops is not None or self.forwarded != DEFAULT_FORWARDED:
                raise ConfigurationError(
                    "client: a callable replaces trusted_proxies, proxy_hops and forwarded, and one of "
                    "these was given too: leave them out, or leave client out"
                )
        bits = self.ipv6_prefix
        if type(bits) is not int or not 16 <= bits <= 128:
            raise ConfigurationError(
                f"ipv6_prefix: {bits!r} is not a number of bits from 16 to 128: write 64, the "
                "smallest network that providers give a customer, or 56 or 48"
            )

    @property
    def proxies_declared(self) -> bool:
        """Whether the user said which proxies there are."""
        return self.trusted_proxies is not None or self.proxy_hops is not None


class Standing(Enum):
    """How much is known of who sent a request; the value marks the client's key.

    A key with a mark is longer than an address, so it is never the key of a known client.
    """

    KNOWN = b""
    """The address is the client's own. Only a known client is exempt or banned by its address."""

    ITSELF = b"this host itself   "
    """A program on the host of a trusted proxy sent the request: it counts as this host."""

    SPOILT = b"a spoilt header    "
    """The client itself spoilt its forwarding header, since others behind its proxy are known. All such
    clients behind one proxy count as one client, so that spoiling a header evades no limit."""

    NOBODY = b"nobody one can know"
    """Any visitor may have sent the request: guards that count by client only watch it."""


class Client:
    """The client of a request.

    Args:
        address: 4 or 16 bytes, or NO_ADDRESS. Where the client is not known, it is the address of the
            last proxy that is.
        standing: how much is known of it.
        ipv6_prefix: how many bits of an IPv6 address are kept in the key.

    Attributes:
        known: whether the address is its own.
        watched: whether guards that count by client only watch it.
        key: what stores count by. For a known client it is 4 bytes for IPv4 and at least 8 for IPv6, so
            it needs no mark of the kind of address.
        text: what logs show.
        exempt: the numbers of the guards that do not apply to it; 0 stands for the whole throttle.
    """

    __slots__ = ("address", "exempt", "key", "known", "standing", "text", "watched")

    def __init__(
        self,
        address: bytes,
        standing: Standing = Standing.KNOWN,
        *,
        ipv6_prefix: int = DEFAULT_IPV6_PREFIX,
    ) -> None:
        self.address = address
        self.standing = standing
        self.known = standing is Standing.KNOWN
        self.watched = standing is Standing.NOBODY
        self.exempt: frozenset[int] = frozenset()
        if address == NO_ADDRESS:
            self.key = b""
            self.text = "an unreadable header"
        elif len(address) == 4:
            self.key = address
            self.text = socket.inet_ntop(socket.AF_INET, address)
        else:
            mask = (1 << 128) - (1 << (128 - ipv6_prefix))
            network = (int.from_bytes(address, "big") & mask).to_bytes(16, "big")
            # At least 8 bytes, so that it differs from a key of IPv4.
            self.key = network[: max(8, -(-ipv6_prefix // 8))]
            self.text = f"{socket.inet_ntop(socket.AF_INET6, network)}/{ipv6_prefix}"
        self.key = standing.value + self.key

    def __repr__(self) -> str:
        return f"<Client {self.text}>"

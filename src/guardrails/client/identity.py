"""The client of a request: the options for finding it, and the key that stores count it by."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from guardrails.client.forwarded import MOST_HOPS, header_variable
from guardrails.client.networks import Networks, listed
from guardrails.errors import ConfigurationError

DEFAULT_FORWARDED = "x-forwarded-for"
DEFAULT_IPV6_PREFIX = 64

UNIX = "unix"
"""What `trusted_proxies` calls a proxy on a unix socket, which has no address."""

NO_ADDRESS = b""
"""Stands for the address of a proxy on a unix socket, where the client behind it is unreadable."""


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


class Client:
    """The client of a request.

    Args:
        address: 4 or 16 bytes, or NO_ADDRESS.
        undeclared_proxy: whether the peer is on this host or network and sent a forwarding header,
            though no proxies were declared. All clients of a site may then have this address.
        unreadable: whether a forwarding header could not be read, so that `address` is that of the
            proxy which sent it. Such a client has its own count, no exemption, and is never banned.
        ipv6_prefix: how many bits of an IPv6 address are kept in the key.

    Attributes:
        key: what stores count by. It is 4 bytes for IPv4 and at least 8 for IPv6, so the key needs no
            mark of the kind of address.
        text: what logs show.
        exempt: the numbers of the guards that do not apply to it; 0 stands for the whole throttle.
    """

    __slots__ = ("address", "exempt", "key", "text", "undeclared_proxy", "unreadable")

    def __init__(
        self,
        address: bytes,
        *,
        undeclared_proxy: bool = False,
        unreadable: bool = False,
        ipv6_prefix: int = DEFAULT_IPV6_PREFIX,
    ) -> None:
        self.address = address
        self.undeclared_proxy = undeclared_proxy
        self.unreadable = unreadable
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
        if unreadable:
            self.key = b"unreadable" + self.key

    def __repr__(self) -> str:
        return f"<Client {self.text}>"

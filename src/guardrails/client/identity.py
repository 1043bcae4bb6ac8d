"""Who a client is: how it is recognised, and the key that stands for it."""

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
"""Stands for the address of a proxy that has none, where a client behind it is unreadable."""


@dataclass(frozen=True)
class Identity:
    """How a client is recognised; the arguments of `throttle()`, checked.

    trusted_proxies: networks, "loopback", "private", or "unix" for whoever comes without an address;
    None when nobody said.   proxy_hops: how many proxies there are, where their networks are not
    known.   forwarded: the header that they write.   client: environ -> address, instead of all that.
    ipv6_prefix: the bits of an IPv6 address that make a client.
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
                "many of them each request passes, or leave it out"
            )
        if given is not None and hops is not None:
            raise ConfigurationError(
                f"proxy_hops: {hops} was given beside trusted_proxies, and each of them says who the "
                "client is: write the proxies' networks, or their number where those are not known"
            )
        if self.client is not None:
            if not callable(self.client):
                raise ConfigurationError(
                    f"client: {self.client!r} is not callable: give a function of the environ that "
                    "returns an address as a text, or None"
                )
            if given is not None or hops is not None or self.forwarded != DEFAULT_FORWARDED:
                raise ConfigurationError(
                    "client: a callable was given beside trusted_proxies, proxy_hops or forwarded, "
                    "which it stands in for: give one of them"
                )
        bits = self.ipv6_prefix
        if type(bits) is not int or not 16 <= bits <= 128:
            raise ConfigurationError(
                f"ipv6_prefix: {bits!r} is not a number of bits from 16 to 128: write 64, which is "
                "what one customer has at the least, or 56 or 48"
            )

    @property
    def proxies_declared(self) -> bool:
        """Whether anybody said which proxies there are."""
        return self.trusted_proxies is not None or self.proxy_hops is not None


class Client:
    """Who asks: `key` for the stores, `text` for people, `address` for networks.

    undeclared_proxy: the peer is on this host or network and sent a forwarding header, and nobody
    said which proxies to trust, so the address may be everybody's.   unreadable: its header says
    nothing, so that the address is the proxy's who handed it on: it shares neither that one's count
    nor its exemptions, and is not banned.   exempt: which guards, by number, do not apply to it.
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
            # Never 4 bytes, so that it is nobody's IPv4 address.
            self.key = network[: max(8, -(-ipv6_prefix // 8))]
            self.text = f"{socket.inet_ntop(socket.AF_INET6, network)}/{ipv6_prefix}"
        if unreadable:
            self.key = b"unreadable" + self.key

    def __repr__(self) -> str:
        return f"<Client {self.text}>"

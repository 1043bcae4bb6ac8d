"""Addresses, and sets of networks as ranges of numbers: IPv6 first, IPv4 after it.

One rule holds for peers, headers, networks and exemptions. IPv4-mapped addresses (::ffff:0:0/96) are
IPv4, and so are IPv4-compatible ones (::/96), except :: and ::1. The range of an address decides this,
so the spelling does not matter.
"""

import ipaddress
import re
import socket
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from guardrails.errors import ConfigurationError

_MAPPED_BEGINS = 0xFFFF << 32
_COMPATIBLE_BEGINS = 0
_IPV6_LOOPBACK = 1
_PORT = re.compile(r":(?:\d{1,5}|_[A-Za-z0-9._-]+)", re.ASCII)  # RFC 7239, section 6.2
_IPV4_BEGINS = 1 << 128
_IPV4_EVERYWHERE = (_IPV4_BEGINS, _IPV4_BEGINS + 0xFFFFFFFF)
_IPV6_GLOBAL = (0x2 << 124, (0x4 << 124) - 1)
_NAMED = {
    "loopback": ("127.0.0.0/8", "::1/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "169.254.0.0/16"),
}


def parse_address(text: str) -> bytes | None:
    """Return the 4 or 16 bytes of an address.

    None stands for any other text, and for the unspecified address (0.0.0.0 and ::), which no client
    has.
    """
    try:
        if ":" not in text:
            packed = socket.inet_pton(socket.AF_INET, text)
        else:
            number = int.from_bytes(socket.inet_pton(socket.AF_INET6, text), "big")
            begins = _ipv4_begins(number, number)
            packed = (
                number.to_bytes(16, "big") if begins is None else (number - begins).to_bytes(4, "big")
            )
    except (OSError, ValueError):
        return None
    return packed if any(packed) else None


def parse_node(text: str) -> bytes | None:
    """Return the address in a text that may have a port, brackets or a zone; None for any other text.

    Servers and proxies write 198.51.100.7:1234, [2001:db8::1], [2001:db8::1]:443 and fe80::1%eth0.
    """
    if text.startswith("["):
        text, closed, port = text[1:].partition("]")
        if not closed or ":" not in text or (port and _PORT.fullmatch(port) is None):
            return None
    elif "." in text and text.count(":") == 1:
        text, _, port = text.partition(":")
        if _PORT.fullmatch(f":{port}") is None:
            return None
    if ":" in text:
        text = text.partition("%")[0]
    return parse_address(text)


class Networks:
    """A set of networks; `in` looks an address up by bisection.

    Args:
        networks: addresses, networks, "loopback", "private".
        argument: what a message calls the option.

    Raises:
        ConfigurationError: an item is not a network.
    """

    def __init__(self, networks: Iterable[str], argument: str) -> None:
        ranges = sorted(_ranges(networks, argument))
        merged: list[list[int]] = []
        for first, last in ranges:
            if merged and first <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], last)
            else:
                merged.append([first, last])
        self._first = [first for first, _ in merged]
        self._last = [last for _, last in merged]

    def __contains__(self, address: bytes) -> bool:
        number = _position(address)
        index = bisect_right(self._first, number) - 1
        return index >= 0 and number <= self._last[index]

    def __bool__(self) -> bool:
        return bool(self._first)

    def has_everything(self) -> bool:
        """Whether it holds all of IPv4, or all global addresses of IPv6."""
        return any(
            first <= everywhere[0] and everywhere[1] <= last
            for first, last in zip(self._first, self._last, strict=True)
            for everywhere in (_IPV4_EVERYWHERE, _IPV6_GLOBAL)
        )


def listed(value: Any, argument: str) -> tuple[Any, ...]:
    """Return one network or callable, or several, as a tuple.

    Args:
        value: what the user gave.
        argument: what a message calls the option.

    Raises:
        ConfigurationError: this is not a list.
    """
    if isinstance(value, str) or callable(value):
        return (value,)
    if not isinstance(value, Iterable):
        raise ConfigurationError(
            f'{argument}: {value!r} is not a list: give a list of networks, such as ["192.0.2.0/24"]'
        )
    return tuple(value)


def _ranges(networks: Iterable[str], argument: str) -> Iterable[tuple[int, int]]:
    for text in networks:
        for name in _NAMED.get(text, (text,)) if isinstance(text, str) else (text,):
            yield from _range(_network(name, argument))


def _network(text: object, argument: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return the network that a text names. Raises ConfigurationError if it names none."""
    try:
        if not isinstance(text, str):
            raise ValueError("it is not a text")  # noqa: TRY301, TRY004
        address, slash, prefix = text.partition("/")
        if ":" in address:
            address = address.partition("%")[0]
        written = address + slash + prefix
        network = ipaddress.ip_network(written, strict=False)
    except ValueError as error:
        raise ConfigurationError(
            f"{argument}: {text!r} is not a network ({error}): write an address such as "
            '"192.0.2.7", a network such as "192.0.2.0/24" or "2001:db8::/32", '
            '"loopback" or "private"'
        ) from None
    written_address = ipaddress.ip_interface(written).ip
    if written_address != network.network_address:
        raise ConfigurationError(
            f'{argument}: {text!r} has bits beyond its prefix: write "{network}" for the network, or '
            f'"{written_address}" for the address alone'
        )
    if network.num_addresses == 1 and parse_address(str(written_address)) is None:
        raise ConfigurationError(
            f"{argument}: {text!r} is the unspecified address, which no client has: leave it out; for "
            'a proxy on a unix socket write trusted_proxies=["unix"]'
        )
    return network


def _range(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Iterable[tuple[int, int]]:
    first, last = int(network.network_address), int(network.broadcast_address)
    begins: int | None = 0
    if isinstance(network, ipaddress.IPv6Network):
        begins = _ipv4_begins(first, last)
        if begins is None or first <= _IPV6_LOOPBACK:
            yield first, last if begins is None else _IPV6_LOOPBACK
    if begins is not None:
        yield _IPV4_BEGINS + first - begins, _IPV4_BEGINS + last - begins


def _ipv4_begins(first: int, last: int) -> int | None:
    """Return the number at which the IPv6 addresses begin that stand for all of IPv4.

    Args:
        first: the number of the first IPv6 address of a range.
        last: the number of its last one.

    Returns:
        None if the range is not one of IPv4 addresses: it is wider, or it is :: and ::1.
    """
    if last <= _IPV6_LOOPBACK:
        return None
    for begins in (_MAPPED_BEGINS, _COMPATIBLE_BEGINS):
        if begins <= first and last <= begins + 0xFFFFFFFF:
            return begins
    return None


def _position(packed: bytes) -> int:
    """Return the number of an address; those of IPv4 come after all of IPv6."""
    return int.from_bytes(packed, "big") + (_IPV4_BEGINS if len(packed) == 4 else 0)

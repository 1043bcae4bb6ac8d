"""Addresses, and sets of networks as ranges of numbers: IPv6 first, IPv4 after it.

An IPv4-mapped IPv6 address is an IPv4 address. The range of an address decides this, so the spelling
does not matter.
"""

import ipaddress
import re
import socket
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from guardrails.errors import ConfigurationError

_MAPPED = bytes(10) + b"\xff\xff"
_COMPATIBLE = bytes(12)
_UNSPECIFIED_AND_LOOPBACK = (bytes(4), b"\0\0\0\1")
_PORT = re.compile(r":(?:\d{1,5}|_[A-Za-z0-9._-]+)", re.ASCII)  # RFC 7239, section 6.2
_IPV4_BEGINS = 1 << 128
_IPV4_EVERYWHERE = (_IPV4_BEGINS, _IPV4_BEGINS + 0xFFFFFFFF)
_ALL_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_IPV6_GLOBAL = (0x2 << 124, (0x4 << 124) - 1)
_NAMED = {
    "loopback": ("127.0.0.0/8", "::1/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "169.254.0.0/16"),
}


def parse_address(text: str) -> bytes | None:
    """Return the 4 or 16 bytes of an address; None for any other text.

    IPv4-mapped addresses (::ffff:0:0/96) are IPv4. So are IPv4-compatible ones (::/96), except ::
    and ::1.
    """
    try:
        if ":" not in text:
            return socket.inet_pton(socket.AF_INET, text)
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return None
    if packed.startswith(_MAPPED) or (
        packed.startswith(_COMPATIBLE) and packed[12:] not in _UNSPECIFIED_AND_LOOPBACK
    ):
        return packed[12:]
    return packed


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
        try:
            if not isinstance(text, str):
                raise ValueError("it is not a text")  # noqa: TRY301, TRY004
            for name in _NAMED.get(text, (text,)):
                network = ipaddress.ip_network(name, strict=False)
                mapped = isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_ALL_MAPPED)
                first, last = network.network_address.packed, network.broadcast_address.packed
                yield (
                    _position(first[-4:] if mapped else first),
                    _position(last[-4:] if mapped else last),
                )
        except ValueError as error:
            raise ConfigurationError(
                f"{argument}: {text!r} is not a network ({error}): write an address such as "
                '"192.0.2.7", a network such as "192.0.2.0/24" or "2001:db8::/32", '
                '"loopback" or "private"'
            ) from None


def _position(packed: bytes) -> int:
    """Return the number of an address; those of IPv4 come after all of IPv6."""
    return int.from_bytes(packed, "big") + (_IPV4_BEGINS if len(packed) == 4 else 0)

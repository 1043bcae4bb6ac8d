"""Who is asking: the client behind trusted proxies, as a key that cannot be chosen freely.

A client is a key, not a text: an IPv4 address as it is, an IPv6 address by its /64, an IPv4-mapped
address folded to IPv4 first. Forwarding headers count only from a trusted proxy; they are read from
the right, and the first address that is not a trusted proxy's is the client. What does not parse
ends the reading at the last trusted hop: it is never somebody's key.
"""

import ipaddress
import logging
import socket
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from guardrails.errors import ConfigurationError

log = logging.getLogger("guardrails")

IPV6_PREFIX_BYTES = 8
LONGEST_HEADER = 1024
MOST_HOPS = 32
_MEMO_SIZE = 65536
_MAPPED = bytes(10) + b"\xff\xff"
_UNIX = "unix"
_ANYBODY = ("0.0.0.0", "::")  # noqa: S104 - what some servers say of a unix socket
_NAMED = {
    "loopback": ("127.0.0.0/8", "::1/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "169.254.0.0/16"),
}


def parse_address(text: str) -> bytes | None:
    """The 4 or 16 bytes of an address, IPv4-mapped ones folded; None for anything else."""
    try:
        if ":" not in text:
            return socket.inet_pton(socket.AF_INET, text)
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return None
    return packed[12:] if packed.startswith(_MAPPED) else packed


class Networks:
    """A set of networks, asked by bisection."""

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
        number = _number(address)
        index = bisect_right(self._first, number) - 1
        return index >= 0 and number <= self._last[index]

    def __bool__(self) -> bool:
        return bool(self._first)


class Client:
    """Who asks: `key` for the stores, `text` for people, `address` for networks.

    undeclared_proxy: the peer is on this host or network and sent a forwarding header, and nobody
    said which proxies to trust, so the address may be everybody's. exempt: which guards, by number,
    do not apply to it.
    """

    __slots__ = ("address", "exempt", "key", "text", "undeclared_proxy")

    def __init__(self, address: bytes, *, undeclared_proxy: bool = False) -> None:
        self.address = address
        self.undeclared_proxy = undeclared_proxy
        self.exempt: frozenset[int] = frozenset()
        if len(address) == 4:
            self.key = address
            self.text = socket.inet_ntop(socket.AF_INET, address)
        else:
            self.key = address[:IPV6_PREFIX_BYTES]
            self.text = socket.inet_ntop(socket.AF_INET6, self.key + bytes(8)) + "/64"

    def __repr__(self) -> str:
        return f"<Client {self.text}>"


class ClientReader:
    """Reads the client of a request, and remembers the last 65,536.

    trusted_proxies: networks of the proxies in front, "loopback", "private", or "unix" for whoever
    comes without an address; None when nobody said.
    exemptions: for each guard by its number, the networks that it leaves alone.
    """

    def __init__(
        self, trusted_proxies: Iterable[str] | None, exemptions: list[Networks] | None = None
    ) -> None:
        self._trusts_unix = False
        self._trusted: Networks | None = None
        if trusted_proxies is not None:
            if not isinstance(trusted_proxies, str) and isinstance(trusted_proxies, Iterable):
                trusted_proxies = list(trusted_proxies)
                self._trusts_unix = _UNIX in trusted_proxies
                trusted_proxies = [each for each in trusted_proxies if each != _UNIX]
            self._trusted = Networks(trusted_proxies, "trusted_proxies")
        self._reads_header = self._trusted is None or bool(self._trusted) or self._trusts_unix
        self._exemptions = exemptions or []
        self._memo: OrderedDict[tuple[str, str | None], Client | None] = OrderedDict()
        self._same: OrderedDict[tuple[bytes, bool], Client] = OrderedDict()
        self._near = Networks(("loopback", "private"), "trusted_proxies")
        self._said: set[str] = set()

    def read(self, environ: dict[str, Any]) -> Client | None:
        """The client, or None when the request has no usable address."""
        peer = environ.get("REMOTE_ADDR", "")
        forwarded = environ.get("HTTP_X_FORWARDED_FOR") if self._reads_header else None
        try:
            return self._memo[peer, forwarded]
        except (KeyError, TypeError):  # not seen yet, or no text at all
            pass
        client = self._read(peer, forwarded)
        if isinstance(peer, str) and (forwarded is None or len(forwarded) <= LONGEST_HEADER):
            self._remember((peer, forwarded), client)
        return client

    def same(self, client: Client) -> Client:
        """The same client with this reader's own exemptions."""
        known = (client.address, client.undeclared_proxy)
        found = self._same.get(known)
        if found is None:
            found = self._known(client.address, undeclared=client.undeclared_proxy)
            if len(self._same) >= _MEMO_SIZE:
                self._same.popitem(last=False)
            self._same[known] = found
        return found

    def _remember(self, asked: tuple[str, str | None], client: Client | None) -> None:
        if len(self._memo) >= _MEMO_SIZE:
            self._memo.popitem(last=False)
        self._memo[asked] = client

    def _read(self, peer: str, forwarded: str | None) -> Client | None:
        address = _peer_address(peer)
        if address is None and self._trusts_unix and forwarded is not None:
            address = self._behind(None, forwarded)
            if address is not None:
                return self._known(address, undeclared=False)
        if address is None:
            self._say_once(
                "no address",
                "REMOTE_ADDR is %r, which is no address: guards that count by client do not apply "
                "to such requests; if that is a proxy on a unix socket that sends X-Forwarded-For "
                'write trusted_proxies=["unix"], else bind the server to a TCP port',
                str(peer)[:64],
            )
            return None
        undeclared = False
        if forwarded is not None:
            if self._trusted is None:
                undeclared = address in self._near
            elif address in self._trusted:
                address = self._behind(address, forwarded) or address
        if undeclared:
            self._say_once(
                "undeclared proxy",
                "%s sends X-Forwarded-For and trusted_proxies was never given: guards that count "
                "by client only watch until you say whom to trust, as in "
                'throttle(..., trusted_proxies=["%s"]), or trusted_proxies=() if it is a client',
                peer[:64],
                peer[:64],
            )
        return self._known(address, undeclared=undeclared)

    def _known(self, address: bytes, *, undeclared: bool) -> Client:
        client = Client(address, undeclared_proxy=undeclared)
        if self._exemptions:
            client.exempt = frozenset(
                number
                for number, networks in enumerate(self._exemptions)
                if networks and address in networks
            )
        return client

    def _behind(self, proxy: bytes | None, forwarded: str) -> bytes | None:
        """The right-most address that no trusted proxy has."""
        assert self._trusted is not None  # noqa: S101 - asked only where proxies are trusted
        entries = forwarded[-LONGEST_HEADER:].split(",")
        if len(forwarded) > LONGEST_HEADER:
            del entries[0]
        hop = proxy
        for entry in reversed(entries[-MOST_HOPS:]):
            address = parse_address(entry.strip(" \t"))
            if address is None:
                break
            hop = address
            if address not in self._trusted:
                break
        return hop

    def _say_once(self, what: str, message: str, *values: object) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning(message, *values)


def _peer_address(peer: object) -> bytes | None:
    """The address of REMOTE_ADDR, without a zone; None for what says nothing of who it is."""
    if not isinstance(peer, str) or peer in _ANYBODY:
        return None
    return parse_address(peer.partition("%")[0])


def _ranges(networks: Iterable[str], argument: str) -> Iterable[tuple[int, int]]:
    if isinstance(networks, str) or not isinstance(networks, Iterable):
        what = "one text" if isinstance(networks, str) else "no list"
        raise ConfigurationError(
            f'{argument}: {networks!r} is {what}: give a list of networks, such as ["192.0.2.0/24"]'
        )
    for text in networks:
        for name in _NAMED.get(text, (text,)):
            try:
                if not isinstance(name, str):
                    raise ValueError("it is not a text")  # noqa: TRY301, TRY004
                network = ipaddress.ip_network(name, strict=False)
            except ValueError as error:
                raise ConfigurationError(
                    f"{argument}: {text!r} is not a network ({error}): write an address such as "
                    '"192.0.2.7", a network such as "192.0.2.0/24" or "2001:db8::/32", '
                    '"loopback" or "private"'
                ) from None
            yield (
                _number(network.network_address.packed),
                _number(network.broadcast_address.packed),
            )


def _number(packed: bytes) -> int:
    """One number line for both families: IPv4 lies where its IPv4-mapped addresses do."""
    return int.from_bytes(packed if len(packed) == 16 else _MAPPED + packed, "big")

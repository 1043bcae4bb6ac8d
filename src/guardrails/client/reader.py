"""Finds the client of a request, behind trusted proxies too.

A client is a key: an IPv4 address, or the network of an IPv6 address; IPv4-mapped addresses are IPv4.
Forwarding headers count only if a trusted proxy sent them. They are read from the right, and the
first address that is not a trusted proxy's is the client. Reading ends at an entry that does not
parse, and such an entry never becomes a key. All requests with such a header that come through one
proxy count as one client. That client is not the proxy itself, and has none of its exemptions.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import Any

from guardrails.client.forwarded import (
    FORWARDING_VARIABLES,
    header_reader,
    header_variable,
)
from guardrails.client.identity import DEFAULT_IPV6_PREFIX, NO_ADDRESS, UNIX, Client, Identity
from guardrails.client.networks import Networks, parse_node
from guardrails.memo import Memo

MOST_CLIENTS = 32768
"""How many clients a throttle remembers."""

_LONGEST_REMEMBERED = 128
_UNSPECIFIED = ("0.0.0.0", "::")  # noqa: S104 - what some servers write for a unix socket
_PROXY_FIX = "werkzeug.proxy_fix.orig"
_LONGEST_SHOWN = 64
_LIKELY_PROXIES = ("loopback", "private", "100.64.0.0/10", "fe80::/10")
"""Where a site's own proxies usually are: this host, private networks, a provider's network."""

_ABSENT, _REPLACED, _KEPT, _KEPT_THIS_ONCE = range(4)
"""What werkzeug's ProxyFix did with REMOTE_ADDR: it did not run, replaced the address, kept it, or
kept it though it replaced those of other requests."""

ForwardedValue = str | bool | None
"""What forwarding headers say: the text of the header that is read; True if there is a header, but none
is read; None if there is none."""


class ClientReader:
    """Finds the client of a request, and remembers the last `MOST_CLIENTS`.

    Args:
        identity: how clients are found.
        exemptions: the exempt networks, by the number of the guard; number 0 is the throttle.
        warn: reports a set-up that looks wrong, as `Checks.warn` does.
        callable_failed: called with the exception if the user's `client` callable raises.
    """

    def __init__(
        self,
        identity: Identity,
        exemptions: list[Networks],
        warn: Callable[..., object],
        callable_failed: Callable[[Exception], object],
    ) -> None:
        self._identity = identity
        self._callable = identity.client
        self._callable_failed = callable_failed
        self._exemptions = exemptions if any(exemptions) else []
        self._warn = warn
        texts = identity.trusted_proxies or ()
        self._trusted = Networks([text for text in texts if text != UNIX], "trusted_proxies")
        self._hops = identity.proxy_hops
        self._trusts_unix = UNIX in texts
        variable = header_variable(identity.forwarded)
        self._addresses = header_reader(variable)
        reads = self._trusted or self._trusts_unix or self._hops
        self._variable = variable if reads else ""
        # If no proxies were declared, only the presence of such a header counts.
        self._proxy_hint_headers = (
            frozenset() if identity.proxies_declared else {variable, *FORWARDING_VARIABLES}
        )
        self._likely_proxies = Networks(_LIKELY_PROXIES, "trusted_proxies")
        # A plain OrderedDict, the oldest entry gives way: it is looked up for every request, and a
        # lookup in a cache of cachetools is several times slower.
        self._memo: OrderedDict[tuple[str, ForwardedValue, int], Client | None] = OrderedDict()
        self._same: Memo[Client] = Memo(MOST_CLIENTS)
        self._proxy_fix_works = False
        if self._trusted.has_everything():
            warn(
                "everything-trusted",
                "",
                "trusted_proxies=%r trusts every address, so each client can claim any address: name "
                "only the networks of your proxies, or say how many there are with proxy_hops=1",
                list(texts),
            )

    def read(self, environ: dict[str, Any]) -> Client | None:
        """Return the client; None if the request has no usable address."""
        if self._callable is not None:
            return self._read_by_callable(environ)
        peer = environ.get("REMOTE_ADDR", "")
        forwarded_value: ForwardedValue = environ.get(self._variable)
        proxy_fix = _ABSENT
        if forwarded_value is not None:
            if _PROXY_FIX in environ:
                proxy_fix = _what_proxy_fix_did(environ, peer)
        elif self._proxy_hint_headers and not environ.keys().isdisjoint(self._proxy_hint_headers):
            forwarded_value = True
            if _PROXY_FIX in environ:
                # ProxyFix never reads this header, or could not read what this client sent. Other
                # requests tell which.
                proxy_fix = _what_proxy_fix_did(environ, peer)
                if proxy_fix == _KEPT and self._proxy_fix_works:
                    proxy_fix = _KEPT_THIS_ONCE
        try:
            return self._memo[peer, forwarded_value, proxy_fix]
        except (KeyError, TypeError):  # not seen yet, or not hashable
            pass
        client = self._read(peer, forwarded_value, proxy_fix)
        if (
            isinstance(peer, str)
            and _is_short(peer)
            and (forwarded_value is True or _is_short(forwarded_value or ""))
        ):
            self._remember((peer, forwarded_value, proxy_fix), client)
        return client

    def _remember(self, key: tuple[str, ForwardedValue, int], client: Client | None) -> None:
        if len(self._memo) >= MOST_CLIENTS:
            self._memo.popitem(last=False)
        self._memo[key] = client

    def same(self, client: Client) -> Client:
        """Return an outer throttle's client with the exemptions, and the prefix, of this throttle."""

        def make() -> Client:
            found = self._make_client(
                client.address, undeclared=client.undeclared_proxy, unreadable=client.unreadable
            )
            if self._identity.ipv6_prefix == DEFAULT_IPV6_PREFIX:
                found.key, found.text = client.key, client.text
            return found

        return self._same.get((client.address, client.key, client.undeclared_proxy), make)

    def _read_by_callable(self, environ: dict[str, Any]) -> Client | None:
        """Return the client that the user's callable names."""
        assert self._callable is not None  # noqa: S101 - asked only where there is one
        try:
            text = self._callable(environ)
        except Exception as error:
            self._callable_failed(error)
            return None
        if text is None:
            return None
        asked = (text, None, _ABSENT)
        try:
            return self._memo[asked]
        except (KeyError, TypeError):  # not seen yet, or not hashable
            pass
        address = _peer_address(text)
        if address is None:
            self._warn(
                "no-client-address",
                "client",
                "client: the callable returned %r, which is not an address: guards that count by "
                "client do not apply to such requests; return an address as a text, or count by "
                "something else with by=",
                _shown(text),
            )
            return None
        client = self._make_client(address)
        if _is_short(text):
            self._remember(asked, client)
        return client

    def _read(self, peer: str, forwarded_value: ForwardedValue, proxy_fix: int) -> Client | None:
        address = _peer_address(peer)
        if proxy_fix == _REPLACED:
            self._proxy_fix_works = True
        elif forwarded_value is True:
            if proxy_fix == _KEPT_THIS_ONCE:
                # ProxyFix reads the headers of others, so this client sent one that it cannot read.
                return self._unreadable(address)
            if address is not None and self._looks_like_a_proxy(address):
                return self._make_client(address, undeclared=True)
        elif forwarded_value is not None and self._trusts(address):
            return self._read_header(address, str(forwarded_value))
        if address is None:
            self._warn_of_no_address(peer)
            return None
        return self._make_client(address)

    def _trusts(self, peer: bytes | None) -> bool:
        if self._hops:
            return True
        return self._trusts_unix if peer is None else peer in self._trusted

    def _read_header(self, proxy: bytes | None, header: str) -> Client:
        """Return the client behind a trusted proxy; an unreadable one if the header does not parse."""
        addresses = self._addresses(header)
        if self._hops:
            chosen = next(islice(addresses, self._hops - 1, None), None)
            return self._unreadable(proxy) if chosen is None else self._make_client(chosen)
        hop: bytes | None = None
        for address in addresses:
            if address is None:
                return self._unreadable(hop or proxy)
            hop = address
            if address not in self._trusted:
                break
        return self._unreadable(proxy) if hop is None else self._make_client(hop)

    def _unreadable(self, hop: bytes | None) -> Client:
        return self._make_client(NO_ADDRESS if hop is None else hop, unreadable=True)

    def _looks_like_a_proxy(self, address: bytes) -> bool:
        """Whether a peer whose forwarding header is not read is probably a proxy; warn of it."""
        peer = _address_text(address)
        if address in self._likely_proxies:
            self._warn(
                "undeclared-proxy",
                peer,
                "%s sends a forwarding header and trusted_proxies was not given: guards that count by "
                "client refuse nothing until the proxy is named, as in "
                'throttle(..., trusted_proxies=["%s"]); if that is a client, write trusted_proxies=()',
                peer,
                peer,
            )
            return True
        self._warn(
            "ignored-forwarding-header",
            peer,
            "%s sends a forwarding header, which is not read since trusted_proxies was not given: "
            "if that is a proxy or a CDN, all its clients count as one until it is named, as in "
            "throttle(..., trusted_proxies=[...]); if that is a client, write trusted_proxies=()",
            peer,
        )
        return False

    def _warn_of_no_address(self, peer: object) -> None:
        remedy = (
            "if that is a proxy on a unix socket that sends X-Forwarded-For, write "
            'trusted_proxies=["unix"]; otherwise bind the server to a TCP port'
        )
        if self._trusts_unix or self._hops:
            remedy = f"configure the proxy to send {self._identity.forwarded}"
        self._warn(
            "no-client-address",
            "peer",
            "REMOTE_ADDR is %r, which is not an address: guards that count by client do not apply "
            "to such requests; %s",
            _shown(peer),
            remedy,
        )

    def _make_client(
        self, address: bytes, *, undeclared: bool = False, unreadable: bool = False
    ) -> Client:
        client = Client(
            address,
            undeclared_proxy=undeclared,
            unreadable=unreadable,
            ipv6_prefix=self._identity.ipv6_prefix,
        )
        if self._exemptions and not undeclared and not unreadable:
            # Number 0 is the whole throttle; number n is the guard whose number is n.
            client.exempt = frozenset(
                number
                for number, networks in enumerate(self._exemptions)
                if networks and address in networks
            )
        return client


def _what_proxy_fix_did(environ: dict[str, Any], peer: object) -> int:
    return _KEPT if environ[_PROXY_FIX].get("REMOTE_ADDR") == peer else _REPLACED


def _peer_address(peer: object) -> bytes | None:
    """Return the address of a peer; None if the server wrote none."""
    if not isinstance(peer, str) or peer in _UNSPECIFIED:
        return None
    return parse_node(peer)


def _address_text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _is_short(text: str) -> bool:
    """Whether a text of the client's may be remembered: long ones would fill the memory."""
    return len(text) <= _LONGEST_REMEMBERED


def _shown(text: object) -> str:
    return str(text)[:_LONGEST_SHOWN]

"""Who is asking: the client behind trusted proxies, as a key that cannot be chosen freely.

A client is a key, not a text: an IPv4 address as it is, an IPv6 address by its network, an
IPv4-mapped address folded to IPv4 first. Forwarding headers count only from a trusted proxy; they
are read from the right, and the first address that is not a trusted proxy's is the client. What does
not parse ends the reading at the last trusted hop: it is never somebody's key. All who send such a
header through that hop count as one, apart from the hop itself and without its exemptions.
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

_MEMO_SIZE = 32768
_LONGEST_REMEMBERED = 128
_ANYBODY = ("0.0.0.0", "::")  # noqa: S104 - what some servers say of a unix socket
_PROXY_FIX = "werkzeug.proxy_fix.orig"
_LONGEST_SHOWN = 64
_LIKELY_PROXIES = ("loopback", "private", "100.64.0.0/10", "fe80::/10")
"""Where proxies of one's own are: this host, its networks, a provider's shared ones."""

_NONE, _REPLACED, _LEFT, _LEFT_BUT_WORKS = range(4)
"""What werkzeug's ProxyFix did with REMOTE_ADDR, where it ran before."""

ForwardedValue = str | bool | None
"""What a request says of its client besides its peer: a header's text; whether there is one, where
that is all that counts; None for nothing."""


class ClientReader:
    """Reads the client of a request, and remembers the last 32,768.

    exemptions: for each guard by its number, the networks that it leaves alone.
    callable_failed: told of an exception of the callable's.
    """

    def __init__(
        self,
        identity: Identity,
        exemptions: list[Networks],
        warn: Callable[..., object],
        callable_failed: Callable[[Exception], object],
    ) -> None:
        self._identity = identity
        self._choose = identity.client
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
        # Where nobody said, only whether there is such a header counts.
        self._proxy_hint_headers = (
            frozenset() if identity.proxies_declared else {variable, *FORWARDING_VARIABLES}
        )
        self._likely_proxies = Networks(_LIKELY_PROXIES, "trusted_proxies")
        self._memo: OrderedDict[tuple[str, ForwardedValue, int], Client | None] = OrderedDict()
        self._same: OrderedDict[tuple[bytes, bytes, bool], Client] = OrderedDict()
        self._proxy_fix_works = False
        if self._trusted.has_everything():
            warn(
                "everything-trusted",
                "",
                "trusted_proxies=%r trusts everybody, so each client can say who it is: name the "
                "networks of your proxies alone, or say how many there are with proxy_hops=1",
                list(texts),
            )

    def read(self, environ: dict[str, Any]) -> Client | None:
        """The client, or None when the request has no usable address."""
        if self._choose is not None:
            return self._chosen(environ)
        peer = environ.get("REMOTE_ADDR", "")
        forwarded_value: ForwardedValue = environ.get(self._variable)
        proxy_fix = _NONE
        if forwarded_value is not None:
            if _PROXY_FIX in environ:
                proxy_fix = _what_proxy_fix_did(environ, peer)
        elif self._proxy_hint_headers and not environ.keys().isdisjoint(self._proxy_hint_headers):
            forwarded_value = True
            if _PROXY_FIX in environ:
                # It never reads the header, or this client spoilt it: what it did for others tells.
                proxy_fix = _what_proxy_fix_did(environ, peer)
                if proxy_fix == _LEFT and self._proxy_fix_works:
                    proxy_fix = _LEFT_BUT_WORKS
        try:
            return self._memo[peer, forwarded_value, proxy_fix]
        except (KeyError, TypeError):  # not seen yet, or no text at all
            pass
        client = self._read(peer, forwarded_value, proxy_fix)
        if (
            isinstance(peer, str)
            and _is_short(peer)
            and (forwarded_value is True or _is_short(forwarded_value or ""))
        ):
            _remember(self._memo, (peer, forwarded_value, proxy_fix), client)
        return client

    def same(self, client: Client) -> Client:
        """The same client with this reader's own exemptions, and its prefix where it was given one."""
        asked = (client.address, client.key, client.undeclared_proxy)
        found = self._same.get(asked)
        if found is None:
            found = self._known(
                client.address, undeclared=client.undeclared_proxy, unreadable=client.unreadable
            )
            if self._identity.ipv6_prefix == DEFAULT_IPV6_PREFIX:
                found.key, found.text = client.key, client.text
            _remember(self._same, asked, found)
        return found

    def _chosen(self, environ: dict[str, Any]) -> Client | None:
        """The client that a callable of the user's names."""
        assert self._choose is not None  # noqa: S101 - asked only where there is one
        try:
            text = self._choose(environ)
        except Exception as error:
            self._callable_failed(error)
            return None
        if text is None:
            return None
        asked = (text, None, _NONE)
        try:
            return self._memo[asked]
        except (KeyError, TypeError):  # not seen yet, or no text at all
            pass
        address = _peer_address(text)
        if address is None:
            self._warn(
                "no-client-address",
                "client",
                "client: the callable says %r, which is no address: guards that count by client do "
                "not apply to such requests; return an address as a text, or count by something "
                "else with by=",
                _shown(text),
            )
            return None
        client = self._known(address)
        if _is_short(text):
            _remember(self._memo, asked, client)
        return client

    def _read(self, peer: str, forwarded_value: ForwardedValue, proxy_fix: int) -> Client | None:
        address = _peer_address(peer)
        if proxy_fix == _REPLACED:
            self._proxy_fix_works = True
        elif forwarded_value is True:
            if proxy_fix == _LEFT_BUT_WORKS:
                # It reads what others send, so this client made a header that it cannot read.
                return self._unreadable(address)
            if address is not None and self._looks_like_a_proxy(address):
                return self._known(address, undeclared=True)
        elif forwarded_value is not None and self._trusts(address):
            return self._behind(address, str(forwarded_value))
        if address is None:
            self._say_that_nobody_is_there(peer)
            return None
        return self._known(address)

    def _trusts(self, peer: bytes | None) -> bool:
        if self._hops:
            return True
        return self._trusts_unix if peer is None else peer in self._trusted

    def _behind(self, proxy: bytes | None, header: str) -> Client:
        """The client behind a trusted proxy; an unreadable one where the header does not say."""
        addresses = self._addresses(header)
        if self._hops:
            chosen = next(islice(addresses, self._hops - 1, None), None)
            return self._unreadable(proxy) if chosen is None else self._known(chosen)
        hop: bytes | None = None
        for address in addresses:
            if address is None:
                return self._unreadable(hop or proxy)
            hop = address
            if address not in self._trusted:
                break
        return self._unreadable(proxy) if hop is None else self._known(hop)

    def _unreadable(self, hop: bytes | None) -> Client:
        return self._known(NO_ADDRESS if hop is None else hop, unreadable=True)

    def _looks_like_a_proxy(self, address: bytes) -> bool:
        """Whether a peer that sends a forwarding header nobody reads may speak for many clients."""
        peer = _address_text(address)
        if address in self._likely_proxies:
            self._warn(
                "undeclared-proxy",
                peer,
                "%s sends a forwarding header and trusted_proxies was never given: guards that count "
                "by client only watch until you say whom to trust, as in "
                'throttle(..., trusted_proxies=["%s"]), or trusted_proxies=() if it is a client',
                peer,
                peer,
            )
            return True
        self._warn(
            "ignored-forwarding-header",
            peer,
            "%s sends a forwarding header, which is not read since trusted_proxies was never "
            "given: if that is a proxy or a CDN, all its clients count as one until it is named, "
            "as in throttle(..., trusted_proxies=[...]); if clients send it, write "
            "trusted_proxies=()",
            peer,
        )
        return False

    def _say_that_nobody_is_there(self, peer: object) -> None:
        remedy = (
            "if that is a proxy on a unix socket that sends X-Forwarded-For write "
            'trusted_proxies=["unix"], else bind the server to a TCP port'
        )
        if self._trusts_unix or self._hops:
            remedy = f"let the proxy there send {self._identity.forwarded}"
        self._warn(
            "no-client-address",
            "peer",
            "REMOTE_ADDR is %r, which is no address: guards that count by client do not apply "
            "to such requests; %s",
            _shown(peer),
            remedy,
        )

    def _known(self, address: bytes, *, undeclared: bool = False, unreadable: bool = False) -> Client:
        client = Client(
            address,
            undeclared_proxy=undeclared,
            unreadable=unreadable,
            ipv6_prefix=self._identity.ipv6_prefix,
        )
        if self._exemptions and not undeclared and not unreadable:
            client.exempt = frozenset(
                number
                for number, networks in enumerate(self._exemptions)
                if networks and address in networks
            )
        return client


def _what_proxy_fix_did(environ: dict[str, Any], peer: object) -> int:
    return _LEFT if environ[_PROXY_FIX].get("REMOTE_ADDR") == peer else _REPLACED


def _peer_address(peer: object) -> bytes | None:
    """The address of a peer; None for what says nothing of who it is."""
    if not isinstance(peer, str) or peer in _ANYBODY:
        return None
    return parse_node(peer)


def _address_text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _is_short(text: str) -> bool:
    """Whether a text of the client's is worth remembering: nobody shall fill the memory with it."""
    return len(text) <= _LONGEST_REMEMBERED


def _shown(text: object) -> str:
    return str(text)[:_LONGEST_SHOWN]


def _remember(memo: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    if len(memo) >= _MEMO_SIZE:
        memo.popitem(last=False)
    memo[key] = value

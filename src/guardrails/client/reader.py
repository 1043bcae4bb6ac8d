"""Finds the client of a request, behind trusted proxies too.

A client is a key: an IPv4 address, or the network of an IPv6 address; IPv4-mapped addresses are IPv4.
Forwarding headers count only if a trusted proxy sent them. They are read from the right, and the
first address that is not a trusted proxy's is the client. Reading ends at an entry that does not
parse, and such an entry never becomes a key.

Where no such address is found, the client is nobody one can know: guards that count by client only
watch the request, since all visitors may look so while a proxy is declared wrongly. Two kinds of
request are told from that by those which the same throttle has read. An entry that does not parse is
the client's own work if clients behind that proxy are known otherwise. A request from this host
without a forwarding header is that of a program here, such as a health check, if visitors have one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from guardrails.client.forwarded import (
    FORWARDING_VARIABLES,
    header_reader,
    header_variable,
)
from guardrails.client.identity import (
    DEFAULT_IPV6_PREFIX,
    NO_ADDRESS,
    UNIX,
    Client,
    Identity,
    Standing,
)
from guardrails.client.networks import Networks, parse_node
from guardrails.client.one_client import MANY_AGENTS
from guardrails.client.proxy_checks import ProxyChecks
from guardrails.memo import Memo

MOST_CLIENTS = 32768
"""How many clients a throttle remembers."""

_LONGEST_REMEMBERED = 128
_MOST_PROXIES = 256
_PROXY_FIX = "werkzeug.proxy_fix.orig"
_LOOPBACK = Networks(["loopback"], "trusted_proxies")

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
        self._checks = ProxyChecks(identity, warn)
        texts = identity.trusted_proxies or ()
        self._trusted = Networks([text for text in texts if text != UNIX], "trusted_proxies")
        self._hops = identity.proxy_hops or 0
        self._trusts_unix = UNIX in texts
        variable = header_variable(identity.forwarded)
        self._addresses = header_reader(variable)
        reads = self._trusted or self._trusts_unix or self._hops
        self._variable = variable if reads else ""
        self._declared = identity.proxies_declared
        # Of these, only the presence counts. With trusted_proxies=() there are no proxies.
        self._proxy_hint_headers = (
            {variable, *FORWARDING_VARIABLES} if reads or not self._declared else frozenset()
        )
        # A plain OrderedDict, the oldest entry gives way: it is looked up for every request, and a
        # lookup in a cache of cachetools is several times slower.
        self._memo: OrderedDict[tuple[str, ForwardedValue, int], Client | None] = OrderedDict()
        self._same: Memo[Client] = Memo(MOST_CLIENTS)
        self._proxy_fix_works = False
        # The proxies behind which clients are known, and the agents of programs on this host.
        self._working_proxies: set[bytes | None] = set()
        self._own_agents: set[int] = set()
        if self._trusted.has_everything():
            self._checks.everything_trusted()

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
        client = self._read(environ, peer, forwarded_value, proxy_fix)
        if (
            # What other requests decide is decided anew for each.
            (client is None or client.known or not self._declared)
            and isinstance(peer, str)
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
            found = self._make_client(client.address, client.standing)
            if self._identity.ipv6_prefix == DEFAULT_IPV6_PREFIX:
                found.key, found.text = client.key, client.text
            return found

        return self._same.get((client.address, client.key), make)

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
            self._checks.no_address_from_callable(text)
            return None
        client = self._make_client(address)
        if _is_short(text):
            self._remember(asked, client)
        return client

    def _read(
        self,
        environ: dict[str, Any],
        peer: object,
        forwarded_value: ForwardedValue,
        proxy_fix: int,
    ) -> Client | None:
        address = _peer_address(peer)
        standing = Standing.KNOWN
        if proxy_fix == _REPLACED:
            self._proxy_fix_works = True
            if address is not None and address in self._trusted:
                self._checks.proxy_fix(address)
                standing = Standing.NOBODY
        elif proxy_fix == _KEPT_THIS_ONCE:
            # ProxyFix reads the headers of others, so this client sent one that it cannot read.
            return self._make_client(address, Standing.SPOILT)
        elif self._trusts(address):
            if isinstance(forwarded_value, str):
                return self._read_header(address, forwarded_value)
            if address is not None:
                return self._read_without_header(address, environ, has_another=bool(forwarded_value))
        elif forwarded_value is not None and address is not None:
            is_likely_proxy = self._checks.undeclared(address)
            if is_likely_proxy and not self._declared:
                standing = Standing.NOBODY
        if address is None:
            self._checks.no_address(environ)
            return None
        return self._make_client(address, standing)

    def _trusts(self, peer: bytes | None) -> bool:
        if self._hops:
            return True
        return self._trusts_unix if peer is None else peer in self._trusted

    def _read_header(self, proxy: bytes | None, header: str) -> Client:
        """Return the client behind a trusted proxy."""
        hop, number = proxy, 0
        for number, address in enumerate(self._addresses(header), 1):
            if number < self._hops:
                continue
            if address is None:
                return self._read_junk(proxy, hop, header)
            hop = address
            if address not in self._trusted:
                if len(self._working_proxies) < _MOST_PROXIES:
                    self._working_proxies.add(proxy)
                return self._make_client(address)
        if not number:
            return self._read_junk(proxy, hop, header)
        self._checks.no_client(proxy, header)
        return self._make_client(hop, Standing.NOBODY)

    def _read_junk(self, proxy: bytes | None, hop: bytes | None, header: str) -> Client:
        """Return the client whose entry in the header is no address, or is not there."""
        if proxy in self._working_proxies:
            return self._make_client(hop, Standing.SPOILT)
        self._checks.junk(proxy, header)
        return self._make_client(hop, Standing.NOBODY)

    def _read_without_header(
        self, proxy: bytes, environ: dict[str, Any], *, has_another: bool
    ) -> Client:
        """Return who asks from the address of a trusted proxy: a program there, or nobody one can know.

        Visitors have no header either behind a proxy that does not send it, and one of them may send it
        itself. Visitors are told from programs by their many user agents.
        """
        if self._working_proxies and not has_another and proxy in _LOOPBACK:
            if len(self._own_agents) < MANY_AGENTS:
                self._own_agents.add(hash(environ.get("HTTP_USER_AGENT")))
            if len(self._own_agents) < MANY_AGENTS:
                return self._make_client(proxy, Standing.ITSELF)
        self._checks.no_header(proxy, environ)
        return self._make_client(proxy, Standing.NOBODY)

    def _make_client(self, address: bytes | None, standing: Standing = Standing.KNOWN) -> Client:
        client = Client(
            NO_ADDRESS if address is None else address,
            standing,
            ipv6_prefix=self._identity.ipv6_prefix,
        )
        if self._exemptions and client.known:
            # Number 0 is the whole throttle; number n is the guard whose number is n.
            client.exempt = frozenset(
                number
                for number, networks in enumerate(self._exemptions)
                if networks and client.address in networks
            )
        return client


def _what_proxy_fix_did(environ: dict[str, Any], peer: object) -> int:
    return _KEPT if environ[_PROXY_FIX].get("REMOTE_ADDR") == peer else _REPLACED


def _peer_address(peer: object) -> bytes | None:
    """Return the address of a peer; None if the server wrote none."""
    return parse_node(peer) if isinstance(peer, str) else None


def _is_short(text: str) -> bool:
    """Whether a text of the client's may be remembered: long ones would fill the memory."""
    return len(text) <= _LONGEST_REMEMBERED

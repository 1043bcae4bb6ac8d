"""What the log says of proxies that are declared wrongly, or not at all: docs/errors.md explains it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from guardrails.client.forwarded import FORWARDING_VARIABLES, header_name, header_variable
from guardrails.client.identity import UNIX, Identity
from guardrails.client.networks import Networks

_LIKELY_PROXIES = Networks(("loopback", "private", "100.64.0.0/10", "fe80::/10"), "trusted_proxies")
"""Where a site's own proxies usually are: this host, private networks, a provider's network."""

_LONGEST_SHOWN = 64


class ProxyChecks:
    """The sentences about the proxies of one throttle.

    Args:
        identity: how clients are found.
        warn: reports a set-up that looks wrong, as `SetupChecks.warn` does.
    """

    def __init__(self, identity: Identity, warn: Callable[..., object]) -> None:
        self._identity = identity
        self._header = header_name(header_variable(identity.forwarded))
        self._warn = warn

    def everything_trusted(self) -> None:
        """All addresses are those of trusted proxies."""
        self._warn(
            "everything-trusted",
            "",
            "trusted_proxies=%r trusts every address, so each client can claim any address: name "
            "only the networks of your proxies, or say how many there are with proxy_hops=1",
            list(self._identity.trusted_proxies),
        )

    def undeclared(self, address: bytes) -> bool:
        """A peer sends a forwarding header that is not read. Return whether it is probably a proxy."""
        peer = address_text(address)
        likely = address in _LIKELY_PROXIES
        declared = self._identity.proxies_declared
        if likely and declared:
            self._warn(
                "undeclared-proxy",
                peer,
                "%s sends a forwarding header and is not in trusted_proxies=%r: all its clients count "
                "as one, and are refused as one, until the proxy is named too, as in "
                'trusted_proxies=[..., "%s"]; if that is a client, nothing is wrong',
                peer,
                list(self._identity.trusted_proxies),
                peer,
            )
        elif likely:
            self._warn(
                "undeclared-proxy",
                peer,
                "%s sends a forwarding header and trusted_proxies was not given: guards that count by "
                "client refuse nothing until the proxy is named, as in "
                'throttle(..., trusted_proxies=["%s"]); if that is a client, write trusted_proxies=()',
                peer,
                peer,
            )
        else:
            self._warn(
                "ignored-forwarding-header",
                peer,
                "%s sends a forwarding header, which is not read since %s: if that is a proxy or a "
                "CDN, all its clients count as one until it is named, as in "
                "throttle(..., trusted_proxies=[...]); if that is a client, %s",
                peer,
                "trusted_proxies does not have it" if declared else "trusted_proxies was not given",
                "nothing is wrong" if declared else "write trusted_proxies=()",
            )
        return likely

    def no_header(self, proxy: bytes | None, environ: dict[str, Any]) -> None:
        """A trusted proxy did not send the header that is read."""
        for variable in FORWARDING_VARIABLES:
            if variable in environ:
                other = header_name(variable)
                self._client_is_proxy(
                    proxy,
                    f"its request has {other} {_shown(environ[variable])} and no {self._header}",
                    f'write forwarded="{other}" if that is the header of your proxy, or let the proxy '
                    f"send {self._header}",
                )
                return
        self._client_is_proxy(
            proxy,
            f"its request has no {self._header}",
            "let the proxy send that header and the server pass it on, or write forwarded= with the "
            "header that the proxy sends; if the request is of a program on that host, such as a "
            "health check, nothing is wrong",
        )

    def no_client(self, proxy: bytes | None, header: str) -> None:
        """The header of a trusted proxy has no entry for the client."""
        hops = self._identity.proxy_hops
        if hops:
            self._client_is_proxy(
                proxy,
                f"its {self._header} {_shown(header)} has fewer entries than proxy_hops={hops}",
                "write how many proxies each request passes, and let each of them add its entry",
            )
        else:
            self._client_is_proxy(
                proxy,
                f"its {self._header} {_shown(header)} names no address but those of trusted proxies",
                "name the proxies alone in trusted_proxies, without the networks of clients; if a "
                "program on such a host sent it through the proxy, such as curl, nothing is wrong",
            )

    def junk(self, proxy: bytes | None, header: str) -> None:
        """The header of a trusted proxy has something else where the client's address should be."""
        self._client_is_proxy(
            proxy,
            f"its {self._header} {_shown(header)} has no address where the client's should be",
            "let the proxy append the address of its peer, or write forwarded= with another header",
        )

    def proxy_fix(self, proxy: bytes) -> None:
        """ProxyFix put the address of a trusted proxy in the place of the client's."""
        self._client_is_proxy(
            proxy,
            "werkzeug's ProxyFix took its address for the client's",
            "give ProxyFix the number of all proxies, as in x_for=2, or leave it out",
        )

    def no_address(self, environ: dict[str, Any]) -> None:
        """The server did not say which address the peer has."""
        remedy = (
            "if that is a proxy on a unix socket that sends X-Forwarded-For, write "
            'trusted_proxies=["unix"]; otherwise bind the server to a TCP port'
        )
        if UNIX in (self._identity.trusted_proxies or ()) or self._identity.proxy_hops:
            remedy = f"configure the proxy to send {self._header}"
        what = "absent"
        if "REMOTE_ADDR" in environ:
            what = f"{_shown(environ['REMOTE_ADDR'])}, which is not an address"
        self._warn(
            "no-client-address",
            "peer",
            "REMOTE_ADDR is %s: guards that count by client do not apply to such requests; %s",
            what,
            remedy,
        )

    def no_address_from_callable(self, answer: object) -> None:
        """The user's `client` callable returned something else than an address."""
        self._warn(
            "no-client-address",
            "client",
            "client: the callable returned %s, which is not an address: guards that count by "
            "client do not apply to such requests; return an address as a text, or count by "
            "something else with by=",
            _shown(answer),
        )

    def _client_is_proxy(self, proxy: bytes | None, what: str, remedy: str) -> None:
        peer = "the peer on a unix socket" if proxy is None else address_text(proxy)
        self._warn(
            "client-is-proxy",
            peer,
            "%s is a trusted proxy, and %s: guards that count by client refuse nothing for such "
            "requests, and no exemption of an address holds; %s",
            peer,
            what,
            remedy,
        )


def address_text(address: bytes) -> str:
    """Return how an address is written."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _shown(text: object) -> str:
    """Return the right end of a text in quotes: headers are read from there."""
    return ascii(str(text)[-_LONGEST_SHOWN:])

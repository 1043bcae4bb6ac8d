"""Names of hosts, as the option `host` takes them."""

import re

from guardrails.errors import ConfigurationError
from guardrails.paths import ascii_host

_NAME = re.compile(r"(?:[a-z0-9_-]+\.)*[a-z0-9_-]+\.?(?::\d+)?|\[[0-9a-f:.]+\](?::\d+)?", re.IGNORECASE)
_ADDRESS_6 = re.compile(r"[0-9a-f]*:[0-9a-f]*:[0-9a-f:.]*", re.IGNORECASE)
_AROUND = re.compile(r"\A[a-z][a-z0-9+.-]*://(?:[^/@]*@)?|[/?#].*\Z", re.IGNORECASE | re.DOTALL)


def checked_host(host: str) -> str:
    """Return a host in the form in which clients send it.

    Args:
        host: a name such as "example.org" or "münchen.example", or an address.

    Raises:
        ConfigurationError: no request can have such a host.
    """
    try:
        name = ascii_host(host)
    except UnicodeError:
        raise ConfigurationError(f"host: {host!r} cannot be a name of a host: correct it") from None
    if _NAME.fullmatch(name):
        return name
    raise ConfigurationError(
        f"host: {host!r} is not the name of a host, so it would never match: {_remedy(host)}"
    )


def _remedy(host: str) -> str:
    meant = _AROUND.sub("", host.strip())
    if _ADDRESS_6.fullmatch(meant):
        meant = f"[{meant}]"
    if meant.startswith(("*.", ".")):
        domain = meant.lstrip("*.")
        return f'write each host in full, as in ["{domain}", "www.{domain}"]'
    if meant != host and meant:
        return f'write "{meant}"'
    return 'write each host as clients request it, such as "example.org"'

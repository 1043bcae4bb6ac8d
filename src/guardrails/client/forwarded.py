"""Forwarding headers: the addresses that proxies append, read from the right.

Each proxy appends the address of its peer. So only the right end of a header can be trusted: the
client itself may have sent all entries left of the first one that no trusted proxy wrote. Entries are
read from the right and parsed strictly. Reading ends at the first entry that does not parse. Empty
entries are skipped, as the grammar of lists has it (RFC 9110, section 5.6.1).

Two kinds of header are known: lists of addresses (X-Forwarded-For; X-Real-IP is a list of one), and
`Forwarded` of RFC 7239.
"""

import re
from collections.abc import Callable, Iterator

from guardrails.client.networks import parse_node
from guardrails.errors import ConfigurationError

LONGEST_HEADER = 1024
"""How many characters of a header are read, from the right."""

MOST_HOPS = 32
"""How many entries of a header are read, from the right."""

FORWARDING_VARIABLES = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP")
"""The environ keys of the headers that proxies usually send."""

_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
# RFC 7239 requires quotes and brackets; nginx writes this form for `for=$remote_addr`.
_BARE_IPV6 = r"\[?[0-9A-Fa-f:.]{2,45}\]?(?::[0-9]{1,5})?(?=[ \t;]|\Z)"
_PAIR = re.compile(rf"({_WORD})=({_BARE_IPV6}|{_WORD}|{_QUOTED})")
_SEPARATOR = re.compile(r"[ \t]*;[ \t]*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)

Addresses = Iterator[bytes | None]


def header_variable(name: object) -> str:
    """Return the environ key of a header.

    Raises:
        ConfigurationError: this is not the name of a header, or it is written as in an environ.
    """
    if isinstance(name, str) and "_" in name:
        meant = header_name(name.upper().removeprefix("HTTP_"))
        raise ConfigurationError(
            f"forwarded: {name!r} is written with underscores, as in a WSGI environ: write the name of "
            f'the header, "{meant}"'
        )
    if not isinstance(name, str) or re.fullmatch(_WORD, name) is None:
        raise ConfigurationError(
            f'forwarded: {name!r} is not the name of a header: write "x-forwarded-for", "forwarded", '
            'or the one that your proxy sets, such as "x-real-ip"'
        )
    return "HTTP_" + name.upper().replace("-", "_")


def header_name(variable: str) -> str:
    """Return the name of a header, as `forwarded` takes it, for its environ key."""
    return variable.removeprefix("HTTP_").replace("_", "-").lower()


def header_reader(variable: str) -> Callable[[str], Addresses]:
    """Return the function that reads the header of an environ key.

    The function yields the address of each hop from the right. It yields None for an entry that
    does not parse, and for the part of a long header that is not read.
    """
    return _forwarded_addresses if variable == "HTTP_FORWARDED" else _listed_addresses


def _listed_addresses(header: str) -> Addresses:
    entries = header[-LONGEST_HEADER:].split(",")
    if len(header) > LONGEST_HEADER:
        del entries[0]
    for entry in reversed(entries[-MOST_HOPS:]):
        if node := entry.strip(" \t"):
            yield parse_node(node)
    if len(header) > LONGEST_HEADER or len(entries) > MOST_HOPS:
        yield None


def _forwarded_addresses(header: str) -> Addresses:
    """Yield the `for` address of each element; None if an element has none."""
    for hops, element in enumerate(forwarded_elements(header)):
        if hops >= MOST_HOPS:
            yield None
            return
        yield None if element is None else parse_node(element.get("for", ""))


def forwarded_elements(header: str) -> Iterator[dict[str, str] | None]:
    """Yield the elements of a `Forwarded` header (RFC 7239, section 4) from the right, but empty ones.

    A comma separates elements only outside of quoted strings. In a well-formed element each quote is
    escaped or begins or ends a quoted string, so quoted strings can be found from the right as well.
    An unbalanced quote further left does not change the elements that are right of it.

    Yields:
        The parameters of an element by their names in lower case; None for a malformed element.
    """
    text = header[-LONGEST_HEADER:]
    end = len(text)
    quoted = False
    for position in range(end - 1, -1, -1):
        character = text[position]
        if character == '"':
            before = text[:position]
            escaped = quoted and (len(before) - len(before.rstrip("\\"))) % 2
            quoted = quoted if escaped else not quoted
        elif character == "," and not quoted:
            element = _element(text[position + 1 : end], last=end == len(text))
            if element != {}:
                yield element
            end = position
    if len(header) > LONGEST_HEADER:
        yield None
        return
    element = _element(text[:end], first=True, last=end == len(text))
    if element != {}:
        yield element


def _element(text: str, *, first: bool = False, last: bool = False) -> dict[str, str] | None:
    """Parse one element. A pair may be empty, and an element without any pair is {}.

    Args:
        text: the text between two commas. White space is allowed beside a comma only.
        first: whether the element is the first of the header: no comma is left of it.
        last: whether it is the last: no comma is right of it.
    """
    text = text if first else text.lstrip(" \t")
    text = text if last else text.rstrip(" \t")
    element: dict[str, str] = {}
    position = 0
    while True:
        pair = _PAIR.match(text, position)
        if pair is not None:
            name, value = pair[1].lower(), pair[2]
            if name in element:
                return None
            element[name] = _ESCAPED.sub(r"\1", value[1:-1]) if value[0] == '"' else value
            position = pair.end()
        if position == len(text):
            return element
        separator = _SEPARATOR.match(text, position)
        if separator is None:
            return None
        position = separator.end()

"""Forwarding headers: what proxies say of who asked them, read from the right.

Each proxy appends what it saw, so only the right end can be trusted, and whatever stands left of the
first entry that no trusted proxy wrote was sent by the client. Entries are therefore taken from the
right one by one, each parsed strictly, and the first that does not parse ends the reading.

Two kinds of header are known: lists of addresses (X-Forwarded-For; X-Real-IP and the like are lists
of one), and `Forwarded` as RFC 7239 has it.
"""

import re
from collections.abc import Callable, Iterator

from guardrails.client.networks import parse_node
from guardrails.errors import ConfigurationError

LONGEST_HEADER = 1024
"""Characters that are read of a header, from the right."""

MOST_HOPS = 32
"""Entries that are read of a header, from the right."""

FORWARDING_VARIABLES = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP")
"""Where the environ has the headers by which an undeclared proxy shows itself."""

_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
# Not RFC 7239, which wants it quoted and in brackets, but what `for=$remote_addr` writes in nginx.
_BARE_IPV6 = r"\[?[0-9A-Fa-f:.]{2,45}\]?(?::[0-9]{1,5})?(?=[ \t;]|\Z)"
_PAIR = re.compile(rf"({_WORD})=({_BARE_IPV6}|{_WORD}|{_QUOTED})")
_SEPARATOR = re.compile(r"[ \t]*;[ \t]*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)

Addresses = Iterator[bytes | None]


def header_variable(name: object) -> str:
    """Where the environ has a header. Raises ConfigurationError for what is no header's name."""
    if not isinstance(name, str) or re.fullmatch(_WORD, name) is None:
        raise ConfigurationError(
            f'forwarded: {name!r} is not the name of a header: write "x-forwarded-for", "forwarded", '
            'or the one that your proxy sets, such as "x-real-ip"'
        )
    return "HTTP_" + name.upper().replace("-", "_")


def header_reader(variable: str) -> Callable[[str], Addresses]:
    """What reads the header there: the address of each hop from the right; None where it is junk.

    None too where there is more than is read.
    """
    return _forwarded_addresses if variable == "HTTP_FORWARDED" else _listed_addresses


def _listed_addresses(header: str) -> Addresses:
    entries = header[-LONGEST_HEADER:].split(",")
    if len(header) > LONGEST_HEADER:
        del entries[0]
    for entry in reversed(entries[-MOST_HOPS:]):
        yield parse_node(entry.strip(" \t"))
    if len(header) > LONGEST_HEADER or len(entries) > MOST_HOPS:
        yield None


def _forwarded_addresses(header: str) -> Addresses:
    """The `for` of each element; an element that does not say it is as good as junk."""
    for hops, element in enumerate(forwarded_elements(header)):
        if hops >= MOST_HOPS:
            yield None
            return
        yield None if element is None else parse_node(element.get("for", ""))


def forwarded_elements(header: str) -> Iterator[dict[str, str] | None]:
    """The elements of a `Forwarded` header (RFC 7239, section 4) from the right; None for a broken one.

    A comma separates only outside of a quoted text. From the right that can be told too: in a
    well-formed element a quote is either escaped or an end of a quoted text, so what somebody else
    left unbalanced further left changes nothing.
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
            yield _element(text[position + 1 : end], last=end == len(text))
            end = position
    if len(header) > LONGEST_HEADER:
        yield None
    else:
        yield _element(text[:end], first=True, last=end == len(text))


def _element(text: str, *, first: bool = False, last: bool = False) -> dict[str, str] | None:
    """One element; optional white space belongs to the commas, not to the header's own ends."""
    text = text if first else text.lstrip(" \t")
    text = text if last else text.rstrip(" \t")
    element: dict[str, str] = {}
    position = 0
    while True:
        pair = _PAIR.match(text, position)
        if pair is None or pair[1].lower() in element:
            return None
        value = pair[2]
        element[pair[1].lower()] = _ESCAPED.sub(r"\1", value[1:-1]) if value[0] == '"' else value
        position = pair.end()
        if position == len(text):
            return element
        separator = _SEPARATOR.match(text, position)
        if separator is None:
            return None
        position = separator.end()

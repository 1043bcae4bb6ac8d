"""The readings of a path, and how paths and hosts are compared.

The same resource can be spelled in many ways. Servers and frameworks disagree about which spellings
are equal, so a path has several readings. A guard covers a request if *any* reading falls under its
prefixes. An exemption holds only if *every* reading does. The readings are:

    as delivered     SCRIPT_NAME + PATH_INFO
    as UTF-8         without bytes that are not UTF-8, which Bottle drops
    cleaned          without scheme and host, with repeated slashes collapsed; also cut at ? and #,
                     without ;params, and without the text before the first slash
    resolved         each of these with . and .. resolved, or only . dropped
    without marks    without a last newline, which `$` in a router's pattern ignores, and without the
                     @@ by which Pyramid marks a view

Two more readings count for guards only: a path decoded twice, and PATH_INFO by itself if a header set
SCRIPT_NAME, which gunicorn lets proxies do.

A path in normal form has one reading. Nearly all paths are in normal form.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

_ABNORMAL = re.compile(r"//|;|\?|#|/\.{1,2}(?:/|\Z)|\A(?!/)|\0|\n\Z|/@@|[^\x00-\x7f]")
_SCHEME_AND_HOST = re.compile(r"\A[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_PARAMETERS = re.compile(r";[^/]*")
_SLASHES = re.compile(r"//+")
_END = re.compile("[?#\0]")
_KEPT_SINCE_2008 = re.compile("[\u00df\u03c2\u200c\u200d]")


class Readings(NamedTuple):
    """The readings of one path.

    Attributes:
        paths: the readings that count for guards and exemptions; the first is the path as delivered.
        more: readings that count for guards only.
        sent_script: the SCRIPT_NAME that a header set. An exempt prefix must be longer than this:
            otherwise a client could mount any page under an exempt prefix.
    """

    paths: tuple[str, ...]
    more: tuple[str, ...] = ()
    sent_script: str = ""

    def any(self, covers: Callable[[str], object]) -> bool:
        """Whether `covers` holds for one of the readings."""
        return any(map(covers, self.paths)) or any(map(covers, self.more))

    def all_under(self, prefixes: tuple[str, ...]) -> bool:
        """Whether each reading falls under one of the prefixes."""
        script = self.sent_script
        if script and (falls_under(script, prefixes) or self.paths[0][len(script) :][:1] != "/"):
            return False
        return all(falls_under(path, prefixes) for path in self.paths)


def path_readings(path: str, sent_script: str = "") -> Readings:
    """Return the readings of a path.

    Args:
        path: the path as WSGI delivers it: SCRIPT_NAME + PATH_INFO.
        sent_script: the SCRIPT_NAME, if a header set it.
    """
    if _ABNORMAL.search(path) is None and not sent_script:
        return Readings((path,))
    texts = {path: None, _decoded(path): None}
    paths = {path: None} | dict.fromkeys(_readings(texts))
    twice = {_decoded(_characters(text)) for text in texts}
    more = dict.fromkeys(_readings(twice - texts.keys()))
    if sent_script:
        inner = path_readings(path[len(sent_script) :])
        more.update(dict.fromkeys(inner.paths + inner.more))
    return Readings(tuple(paths), tuple(more), sent_script)


def canonical_path(path: str) -> str:
    """Return one path for all spellings: cleaned, cut, resolved, without a last slash."""
    if _ABNORMAL.search(path) is not None:
        cut = _END.split(_SCHEME_AND_HOST.sub("", _decoded(path), count=1), maxsplit=1)[0]
        path = _resolve_dots(_SLASHES.sub("/", "/" + _PARAMETERS.sub("", cut)))
        path = path.removesuffix("\n").replace("/@@", "/")
    return path.rstrip("/") or "/"


def _readings(texts: Iterable[str]) -> Iterator[str]:
    """Yield the readings of texts. Equal intermediate texts are processed once: paths may be long."""
    started = dict.fromkeys(texts)
    started.update((f"/{text.partition('/')[2]}", None) for text in texts if text[:1] != "/")
    whole = dict.fromkeys(_SCHEME_AND_HOST.sub("", text, count=1) for text in started)
    cut = dict.fromkeys(_END.split(text, maxsplit=1)[0] for text in whole)
    kept = cut | whole | started
    kept |= dict.fromkeys(_PARAMETERS.sub("", text) for text in kept)
    cleaned = dict.fromkeys(_SLASHES.sub("/", f"/{text}") for text in kept)
    undotted = dict.fromkeys(map(_without_dots, kept))
    resolved = dict.fromkeys(map(_resolve_dots, kept | cleaned))
    for reading in cleaned | undotted | resolved:
        yield reading
        yield reading.removesuffix("\n").replace("/@@", "/")


def _decoded(path: str) -> str:
    """Return a path as WSGI delivers it, without the bytes that are not UTF-8."""
    return path if path.isascii() else wsgi_text(_characters(path))


def _characters(path: str) -> str:
    return path.encode("latin-1", "ignore").decode("utf-8", "ignore")


def wsgi_text(text: str) -> str:
    """Return a text as WSGI delivers it: each byte of its UTF-8 form is one character."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def plain_text(text: str) -> str:
    """Return a path of the environ as people write it, for patterns."""
    return text if text.isascii() else text.encode("latin-1", "replace").decode("utf-8", "replace")


def falls_under(path: str, prefixes: Iterable[str]) -> bool:
    """Whether one of the prefixes covers the path: /foo covers /foo, /foo/ and /foo/x, not /foobar."""
    return any(prefix == "/" or path == prefix or path.startswith(prefix + "/") for prefix in prefixes)


def normal_host(host: str) -> str:
    """Return a host of the environ without port and last dot, in lower case and in ASCII."""
    if not host.isascii():
        with suppress(UnicodeError):
            host = ascii_host(plain_text(host))
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].rstrip(".").lower()


def ascii_host(host: str) -> str:
    """Return a host in the form in which clients send it.

    This is IDNA: "xn--mnchen-3ya.example" for "münchen.example". The encoding of the standard library
    is the edition of 2003, which writes four characters as others. The present edition, which browsers
    follow, keeps them.

    Raises:
        UnicodeError: the host has no such form.
    """
    if host.isascii():
        return host
    labels = re.split("[.\u3002\uff0e\uff61]", unicodedata.normalize("NFC", host.lower()))
    return ".".join(
        f"xn--{label.encode('punycode').decode()}"
        if _KEPT_SINCE_2008.search(label)
        else label.encode("idna").decode()
        for label in labels
    )


def _without_dots(path: str) -> str:
    return "/" + "/".join(segment for segment in path.split("/") if segment not in ("", "."))


def _resolve_dots(path: str) -> str:
    resolved: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if resolved:
                resolved.pop()
        elif segment != ".":
            resolved.append(segment)
    if path.endswith(("/.", "/..")):
        resolved.append("")
    text = "/".join(resolved)
    return text if text.startswith("/") else "/" + text

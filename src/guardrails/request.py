"""What a guard may know of a request, and the readings of its path.

The same resource can be spelled in many ways, and servers and frameworks disagree about which of
them mean the same. So a path has several readings, and a guard covers a request if *any* of them
falls under it, while an exemption holds only if *every* one does:

    as delivered     SCRIPT_NAME + PATH_INFO
    cleaned          scheme and host dropped, repeated slashes collapsed; cut at ? and # or not,
                     ;params removed or not
    resolved         each of these with . and .. resolved too
    without an end   a last newline dropped, which a router's `$` does not see

A path in normal form, which is nearly every one, has just one reading.
"""

import re
from collections.abc import Iterable
from typing import Any

from guardrails.address import Client

_ABNORMAL = re.compile(r"//|;|\?|#|/\.{1,2}(?:/|\Z)|\A(?!/)|\0|\n\Z")
_SCHEME_AND_HOST = re.compile(r"\A[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_PARAMETERS = re.compile(r";[^/]*")
_SLASHES = re.compile(r"//+")


class Request:
    """One request as the guards see it. `client` is None when it has no usable address."""

    __slots__ = ("client", "environ", "host", "method", "path")

    def __init__(
        self, environ: dict[str, Any], client: Client | None, method: str, host: str, path: str
    ) -> None:
        self.environ = environ
        self.client = client
        self.method = method
        self.host = host
        self.path = path


def path_readings(path: str) -> tuple[str, ...]:
    """Every way to read a path, the delivered one first, without repetition."""
    if _ABNORMAL.search(path) is None:
        return (path,)
    whole = _SCHEME_AND_HOST.sub("", path, count=1)
    cut = re.split("[?#\0]", whole, maxsplit=1)[0]
    readings = [path]
    for text in (cut, whole):
        for kept in (_PARAMETERS.sub("", text), text):
            cleaned = _SLASHES.sub("/", "/" + kept)
            readings += (cleaned, _resolve_dots(cleaned), _resolve_dots(kept))
    readings += [reading.removesuffix("\n") for reading in readings]
    return tuple(dict.fromkeys(readings))


def canonical_path(path: str) -> str:
    """The one path that stands for all spellings: cleaned, cut, resolved, without a last slash."""
    if _ABNORMAL.search(path) is not None:
        cut = re.split("[?#\0]", _SCHEME_AND_HOST.sub("", path, count=1), maxsplit=1)[0]
        path = _resolve_dots(_SLASHES.sub("/", "/" + _PARAMETERS.sub("", cut))).removesuffix("\n")
    return path.rstrip("/") or "/"


def wsgi_text(text: str) -> str:
    """A path of the user's as WSGI delivers it: its UTF-8 bytes, each as a character."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def plain_text(text: str) -> str:
    """A path from the environ as people write it, for patterns."""
    return text if text.isascii() else text.encode("latin-1", "replace").decode("utf-8", "replace")


def falls_under(path: str, prefixes: Iterable[str]) -> bool:
    """Whether one of the prefixes covers the path, on segment borders: /foo, /foo/ and /foo/x."""
    return any(prefix == "/" or path == prefix or path.startswith(prefix + "/") for prefix in prefixes)


def normal_host(host: str) -> str:
    """A host without port and last dot, in lower case."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].rstrip(".").lower()


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

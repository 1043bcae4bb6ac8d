"""Prefixes of paths, as `path` and `exempt_paths` take them.

Other tools write paths with stars ("/login/*"), with placeholders ("/user/<int:id>", "/user/{id}",
"/user/:id"), as URLs, or as regular expressions. Here such a text would never match, so it is refused,
and the message names the prefix that was meant.
"""

import re
from collections.abc import Callable
from urllib.parse import unquote

from guardrails.errors import ConfigurationError

_METHOD = re.compile(r"[A-Z]+\s+(?=/)")
_SCHEME_AND_HOST = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
_SEVERAL = re.compile(r"(?<=.)[|,;\s]\s*(?=/)")
_EMPTY_SEGMENTS = re.compile(r"//+")
_SPECIAL = re.compile(r"\.?[*]|[][<>{}\\^|]|\(\?|(?<=/):|\$\Z")
"""What makes a text no prefix: stars, placeholders, and what only regular expressions have."""

_REGULAR = re.compile(r"\\|\A\^|\$\Z|\.\*|\[|\||\(\?")
"""What makes such a text a regular expression, rather than a path with stars or placeholders."""

_PLACEHOLDER = re.compile(r"<[^/>]*>|\{[^/}]*\}|(?<=/):\w+|\*+")
_NUMBER = re.compile(r"<int:\w+>|\{\w+:int\}")
_NEVER_AT_THE_START = re.compile(r"\^?(?:[A-Za-z0-9_-]|\\\.)(?![*?{])")


def checked_prefix(text: str, argument: str, *, takes_patterns: bool) -> str:
    """Return a prefix without a last slash.

    Args:
        text: what was given.
        argument: what the message calls the option.
        takes_patterns: whether the option also takes a compiled pattern.

    Raises:
        ConfigurationError: the text is no prefix. The message names the one that was meant.
    """
    stripped = _SCHEME_AND_HOST.sub("", text.strip())
    parts = _SEVERAL.split(_METHOD.sub("", stripped))
    if len(parts) > 1:
        listed = ", ".join(f'"{part.strip()}"' for part in parts)
        raise ConfigurationError(f"{argument}: {text!r} has several paths: write a list, [{listed}]")
    special = _SPECIAL.search(stripped)
    if special:
        raise ConfigurationError(
            f"{argument}: {text!r} is no prefix: {special[0]!r} has no special meaning here, so it "
            f"would never match: {_remedy(stripped, takes_patterns)}"
        )
    meant, problem = _meant(text)
    if problem:
        raise ConfigurationError(
            f'{argument}: {text!r} {problem}: write the path as clients request it, such as "{meant}"'
        )
    return text.rstrip("/") or "/"


def checked_pattern(pattern: re.Pattern[str], argument: str) -> re.Pattern[str]:
    """Return a compiled pattern that can match a path from its start.

    Raises:
        ConfigurationError: it is a pattern of bytes, or no path starts as it does.
    """
    text = pattern.pattern
    if not isinstance(text, str):
        raise ConfigurationError(
            f'{argument}: {text!r} is a pattern of bytes, and paths are texts: write re.compile(r"...")'
        )
    if "|" not in text and _NEVER_AT_THE_START.match(text):
        raise ConfigurationError(
            f"{argument}: {text!r} would never match: a pattern is tried from the start of the path, "
            f'and each path starts with a slash: write re.compile(r"{_anchored(text)}")'
        )
    return pattern


def _meant(text: str) -> tuple[str, str]:
    """Return the prefix that a text without special characters means, and what is wrong with it."""
    path, first_problem = text, ""
    for change, problem in _CORRECTIONS:
        changed = change(path)
        if changed != path:
            path, first_problem = changed, first_problem or problem
    return path, first_problem


def _decoded(path: str) -> str:
    return unquote(path, errors="replace") if _ENCODED.search(path) else path


def _resolved(path: str) -> str:
    """Resolve empty segments and those of one or two dots. A last slash stays."""
    resolved: list[str] = []
    for segment in _EMPTY_SEGMENTS.sub("/", path).split("/")[1:]:
        if segment == "..":
            del resolved[-1:]
        elif segment != ".":
            resolved.append(segment)
    return "/" + "/".join(resolved)


_CORRECTIONS: tuple[tuple[Callable[[str], str], str], ...] = (
    (str.strip, "has white space around it"),
    (lambda path: _METHOD.sub("", path), "names a method, which belongs into methods="),
    (lambda path: _SCHEME_AND_HOST.sub("", path), "is a URL, and host= names a host"),
    (lambda path: _QUERY.sub("", path), "has a query or a fragment, which is no part of a path"),
    (_decoded, "is percent-encoded, and paths are compared decoded"),
    (lambda path: path if path[:1] == "/" else f"/{path}", "does not start with a slash"),
    (_resolved, "has empty segments, or dots, which no path has in its usual spelling"),
)
"""How to correct a text, step by step, with what is wrong with a text that a step changes."""


def _remedy(text: str, takes_patterns: bool) -> str:
    if text.strip("/*") == "":
        return "leave it out for all paths"
    prefix = _literal_prefix(text)
    named = f'write "{prefix}", which covers all below it' if prefix else ""
    if takes_patterns:
        pattern = _pattern_for(text)
        return f'{named}, or re.compile(r"{pattern}")' if named else f'write re.compile(r"{pattern}")'
    if named:
        return named
    return (
        "this option takes prefixes alone: name them one by one, or let a callable in the option "
        "exempt of a guard or of throttle() decide by PATH_INFO"
    )


def _literal_prefix(text: str) -> str:
    """Return the prefix before the first special character; empty if that would be all paths."""
    text = text.removeprefix("^")
    special = _SPECIAL.search(text)
    literal = text if special is None else text[: special.start()]
    if special is not None and special[0] not in ("*", ".*", "$"):
        literal = literal[: literal.rfind("/") + 1]
    meant, _ = _meant(literal.rstrip("/")) if literal.strip("/") else ("", "")
    return meant


def _pattern_for(text: str) -> str:
    """Return a regular expression for what a text with special characters means."""
    if _REGULAR.search(text):
        return _anchored(text)
    parts = []
    place = 0
    for found in _PLACEHOLDER.finditer(text):
        parts.append(_escaped(text[place : found.start()]))
        if found[0].startswith("*"):
            parts.append(".*")
        else:
            parts.append(r"\d+" if _NUMBER.fullmatch(found[0]) else "[^/]+")
        place = found.end()
    return _anchored("".join((*parts, _escaped(text[place:]))))


def _anchored(pattern: str) -> str:
    """Return a pattern that starts with a slash, as each path does."""
    pattern = pattern.removeprefix("^")
    if pattern.startswith(("/", "(", "[")):
        return pattern
    return f"/.*{pattern.removeprefix('.*')}" if not pattern[:1].isalnum() else f"/{pattern}"


def _escaped(text: str) -> str:
    return re.sub(r"[.+?^$(){}|\\\[\]]", r"\\\g<0>", text)

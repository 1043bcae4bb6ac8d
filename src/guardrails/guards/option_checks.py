"""Checks of the options that all guards have.

Each function returns the option in the form that guards keep, or raises ConfigurationError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPMethod
from typing import Any

from guardrails.errors import ConfigurationError
from guardrails.guards.hosts import checked_host
from guardrails.guards.prefixes import checked_pattern, checked_prefix

_WEBDAV_METHODS = frozenset(
    [
        "PROPFIND",
        "PROPPATCH",
        "MKCOL",
        "COPY",
        "MOVE",
        "LOCK",
        "UNLOCK",
        "REPORT",
        "SEARCH",
        "MKCALENDAR",
        "PURGE",
    ]
)


def text_tuple(value: Any, argument: str) -> tuple[str, ...]:
    """Return one text, or several, as a tuple.

    Args:
        value: a text or an iterable of texts.
        argument: what the message calls the option.
    """
    texts = _as_tuple(value)
    for text in texts:
        if not isinstance(text, str):
            raise ConfigurationError(
                f"{argument}: {text!r} is not a text: give one text, or a list of texts"
            )
    return texts


def some_texts(value: Any, argument: str) -> tuple[str, ...]:
    """Return one text, or several, as a tuple that is not empty: with none, a guard covers nothing."""
    texts = text_tuple(value, argument)
    if not texts:
        raise ConfigurationError(
            f"{argument}: {value!r} is empty, so the guard would cover nothing: leave it out for all"
        )
    return texts


def path_prefixes(value: Any, argument: str) -> tuple[str, ...] | re.Pattern[str] | None:
    """Return the prefixes without a last slash; a pattern and None are returned as they are.

    Args:
        value: a prefix, several prefixes, a compiled pattern, or None for all paths.
        argument: what the message calls the option.
    """
    if value is None:
        return None
    if isinstance(value, re.Pattern):
        return checked_pattern(value, argument)
    prefixes = some_texts(value, argument)
    return tuple(checked_prefix(prefix, argument, takes_patterns=True) for prefix in prefixes)


def exempt_path_prefixes(value: Any) -> tuple[str, ...]:
    """Return the prefixes of an `exempt_paths` option, which takes no pattern."""
    if isinstance(value, re.Pattern):
        raise ConfigurationError(
            f"exempt_paths: {value.pattern!r} is a pattern: give prefixes, such as "
            '["/static/", "/healthz"]'
        )
    prefixes = text_tuple(value, "exempt_paths")
    return tuple(checked_prefix(prefix, "exempt_paths", takes_patterns=False) for prefix in prefixes)


def host_names(value: Any) -> tuple[str, ...] | None:
    """Return hosts in the form in which clients send them; None stands for all hosts."""
    if value is None:
        return None
    return tuple(checked_host(host) for host in some_texts(value, "host"))


def method_names(value: Any) -> tuple[str, ...] | None:
    """Return HTTP methods in capitals, HEAD with GET; None stands for all methods."""
    if value is None:
        return None
    methods = []
    for method in _as_tuple(value) or some_texts(value, "methods"):
        name = method.upper() if isinstance(method, str) else method
        if name not in HTTPMethod.__members__ and name not in _WEBDAV_METHODS:
            raise ConfigurationError(
                f"methods: {method!r} is not an HTTP method: use "
                + ", ".join(HTTPMethod.__members__)
                + " or a WebDAV method"
            )
        methods.append(name)
    if "GET" in methods and "HEAD" not in methods:
        methods.append("HEAD")
    return tuple(methods)


def check_status(status: object) -> int:
    """Return the HTTP status of a refusal: an integer from 400 to 599."""
    if isinstance(status, bool) or not isinstance(status, int) or not 400 <= status <= 599:
        raise ConfigurationError(
            f"status: {status!r} is not an HTTP status of a refusal: write one from 400 to 599, "
            "such as 429 or 503"
        )
    return status


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)

"""How options are checked: unknown keywords, words from a list, and options that were renamed."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, ParamSpec, TypeVar, get_args

from guardrails.errors import ConfigurationError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def check_keywords(caller: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a keyword that nobody knows.

    Args:
        caller: what was called, as the message names it.
        given: the keywords of the call.
        known: the keywords that there are.

    Raises:
        ConfigurationError: names the keyword, and the known one that is nearest to it.
    """
    known = list(known)
    for name in given:
        if name not in known:
            by_folded_name = {word.casefold(): word for word in known}
            nearest = get_close_matches(name.casefold(), by_folded_name, n=1, cutoff=0.5)
            remedy = f"write {by_folded_name[nearest[0]]}" if nearest else "leave it out"
            raise ConfigurationError(
                f"{caller}: {name!r} is not an option: {remedy}; the options are "
                + ", ".join(sorted(known))
            )


def keyword_options(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a function refuse unknown keywords in a sentence; its signature stays as it is."""
    known = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]

    @functools.wraps(function)
    def checked(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        check_keywords(function.__name__, options, known)
        return function(*arguments, **options)

    return checked


def check_word(value: object, words: Any, argument: str) -> Any:
    """Return a word that an option knows.

    Args:
        value: what was given.
        words: the `Literal` type with the words.
        argument: what the message calls the option.

    Raises:
        ConfigurationError: for anything else.
    """
    known = get_args(words)
    if value not in known or isinstance(value, bool):
        *others, last = (f'"{word}"' for word in known)
        listed = f"{', '.join(others)} or {last}"
        raise ConfigurationError(f"{argument}: {value!r} is unknown: write {listed}")
    return value


def renamed_word(value: object, renamed: Mapping[str, str], argument: str, *, stacklevel: int) -> Any:
    """Return the present word for one of an earlier version, with a DeprecationWarning."""
    if isinstance(value, str) and value in renamed:
        _warn(f'{argument}="{value}"', f'{argument}="{renamed[value]}"', stacklevel + 1)
        return renamed[value]
    return value


def renamed_option(old: str, new: str, *, stacklevel: int) -> None:
    """Warn that an option was given by its name of an earlier version."""
    _warn(old, new, stacklevel + 1)


def _warn(old: str, new: str, stacklevel: int) -> None:
    warnings.warn(
        f"{old} is now {new}; the next minor version no longer takes it",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )

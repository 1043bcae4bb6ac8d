"""How options are checked: unknown keywords, words, True and False, and options that were renamed."""

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
    """Refuse an unknown keyword.

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


def keyword_options(
    function: Callable[Parameters, Result],
    *,
    caller: str = "",
    options_of: Callable[..., object] | None = None,
) -> Callable[Parameters, Result]:
    """Let a function refuse unknown keywords in a sentence; its signature stays as it is.

    Args:
        function: the function.
        caller: what the message calls the function; its name by default.
        options_of: a function whose keyword-only parameters are the `**options` of the first one.
            `help()` and completion show them in the place of `**options`.
    """
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if options_of is not None and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        parameters[-1:] = [
            parameter
            for parameter in inspect.signature(options_of).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        ]
    known = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.name != "self"
    ]

    @functools.wraps(function)
    def checked(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        check_keywords(caller or function.__name__, options, known)
        return function(*arguments, **options)

    vars(checked)["__signature__"] = signature.replace(parameters=parameters)
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


def check_bool(value: object, argument: str) -> bool:
    """Return True or False. A text such as "no" would count as true, so it is refused.

    Args:
        value: what was given.
        argument: what the message calls the option.

    Raises:
        ConfigurationError: for anything else.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{argument}: {value!r} is neither True nor False: write one of them")
    return value


def renamed_word(value: object, renamed: Mapping[str, str], argument: str) -> Any:
    """Return the present word for one of an earlier version, with a DeprecationWarning.

    Args:
        value: what was given.
        renamed: the present words by the earlier ones.
        argument: what the message calls the option.
    """
    if isinstance(value, str) and value in renamed:
        warn_renamed(f'{argument}="{value}"', f'{argument}="{renamed[value]}"')
        return renamed[value]
    return value


def warn_renamed(old: str, new: str) -> None:
    """Warn at the user's line that an option has another name or word by now."""
    warnings.warn(
        f"{old} is now {new}; the next minor version no longer takes it",
        DeprecationWarning,
        stacklevel=_level_of_user(),
    )


def _level_of_user() -> int:
    """Return the stacklevel for which the caller warns at the nearest line outside of guardrails."""
    level = 0
    frame = inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] == "guardrails":
        level += 1
        frame = frame.f_back
    return level


def renamed_keywords(
    renamed: Mapping[str, str],
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Let a function take keywords by their names of an earlier version, with a DeprecationWarning.

    Args:
        renamed: the present name of each earlier one.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def renaming(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
            for old in [name for name in renamed if name in options]:
                new = renamed[old]
                if new in options:
                    raise ConfigurationError(
                        f"{function.__name__}: {old} and {new} are the same option: leave {old} out"
                    )
                warn_renamed(old, new)
                options[new] = options.pop(old)
            return function(*arguments, **options)

        return renaming

    return decorate


def removed_keywords(
    removed: Mapping[str, str],
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Let a function refuse keywords of an earlier version, with what to write in their place.

    Args:
        removed: what to do now, for each keyword that is gone.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def refusing(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
            for name in options:
                if name in removed:
                    raise ConfigurationError(
                        f"{function.__name__}: {name} is no longer an option: {removed[name]}"
                    )
            return function(*arguments, **options)

        return refusing

    return decorate

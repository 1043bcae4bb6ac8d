"""How the options of a function are written on a command line.

The function is the one source. Its signature has the names, the types and the defaults; the "Args"
of its docstring have the words that `--help` shows.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, get_args, get_type_hints


class Metavar(NamedTuple):
    """Part of an `Annotated` type: what stands for the value in `--help`, such as TIME."""

    text: str


class Option(NamedTuple):
    """One option, as Python and the command line know it.

    Args:
        name: the keyword in Python.
        default: its default. False: a flag without a value. A tuple: it may be given several times.
        metavar: what stands for its value in `--help`.
        help: one sentence, the first of its entry in the docstring.
    """

    name: str
    default: Any
    metavar: str
    help: str

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return flag_of(self.name)

    @property
    def is_flag(self) -> bool:
        """Whether it takes no value."""
        return isinstance(self.default, bool)

    @property
    def is_repeated(self) -> bool:
        """Whether it may be given several times."""
        return isinstance(self.default, tuple)


def flag_of(name: str) -> str:
    """The name of a keyword on the command line."""
    return "--" + name.replace("_", "-")


def options_of(function: Callable[..., Any]) -> tuple[Option, ...]:
    """Read the options of a function, in the order of its signature."""
    hints = get_type_hints(function, include_extras=True)
    texts = _help_texts(inspect.getdoc(function) or "")  # empty under python -OO
    return tuple(
        Option(name, parameter.default, _metavar(hints[name]), texts.get(name, ""))
        for name, parameter in inspect.signature(function).parameters.items()
    )


def arguments_for(options: Iterable[Option], given: Mapping[str, Any]) -> list[str]:
    """Write option values as arguments of a command; defaults are left out.

    Args:
        options: the options of the command.
        given: a value for each of them, by name.
    """
    words = []
    for option in options:
        value = given[option.name]
        if value == option.default:
            continue
        if option.is_flag:
            words.append(option.flag)
        elif option.is_repeated:
            words += [f"{option.flag}={each}" for each in value]
        else:
            words.append(f"{option.flag}={value}")
    return words


def watch_command(arguments: Iterable[str]) -> list[str]:
    """The command line that runs `guardrails watch` with this Python."""
    # -P keeps the modules of the working directory, such as an app's own queue.py, out of sys.path.
    return [sys.executable, "-P", "-m", "guardrails", "watch", *arguments]


def _metavar(hint: Any) -> str:
    """Find the Metavar in a type, which may be one part of a union."""
    for metadata in getattr(hint, "__metadata__", ()):
        if isinstance(metadata, Metavar):
            return metadata.text
    return next(filter(None, map(_metavar, get_args(hint))), "")


def _help_texts(docstring: str) -> dict[str, str]:
    """The first sentence of each entry in the "Args" of a docstring, by name."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n|\n)*)", docstring + "\n", re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1], re.MULTILINE) if section else []
    return {name: _as_help(text) for name, text in entries}


def _as_help(text: str) -> str:
    sentence = re.split(r"\.(?:\s|$)", " ".join(text.split()))[0]
    text = re.sub(r"`(\w+)`", lambda match: flag_of(match[1]), sentence)
    return text[:1].lower() + text[1:]

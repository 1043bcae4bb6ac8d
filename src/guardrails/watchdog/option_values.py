"""What several options of the watchdog have in common: paths, programs, and figures above 0."""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress
from pathlib import Path

from guardrails.errors import ConfigurationError
from guardrails.units import parse_seconds, parse_size


def absolute_path(path: object, argument: str) -> Path:
    """Return the path of a file, independent of the working directory. Raises ConfigurationError."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text or Path(text).name in {"", ".."}:
        raise ConfigurationError(
            f"{argument}: {path!r} is not the path of a file: write one, such as /var/log/app/error.log"
        )
    return Path(text).absolute()


def check_program(words: tuple[str, ...], argument: str) -> None:
    """Refuse a command whose program cannot be found.

    Args:
        words: the program and its arguments.
        argument: what errors call the command.

    Raises:
        ConfigurationError: there is no such program that this user may run.
    """
    if shutil.which(words[0]) is None:
        raise ConfigurationError(
            f"{argument}: there is no program {words[0]!r} that uid {os.geteuid()} may run: write its "
            "whole path"
        )


def positive_seconds(value: object, argument: str) -> float:
    """Return a duration above 0 in seconds. Raises ConfigurationError."""
    seconds = parse_seconds(value, argument)
    if seconds == 0:
        raise ConfigurationError(
            f'{argument}: {value!r} is not above 0: write a duration such as "10s"'
        )
    return seconds


def positive_size(value: object, argument: str) -> int:
    """Return a size above 0 in bytes. Raises ConfigurationError."""
    size = parse_size(value, argument)
    if size == 0:
        raise ConfigurationError(
            f'{argument}: {value!r} is always exceeded: write a size above 0, such as "100M"'
        )
    return size


def positive_number(value: object, argument: str) -> float:
    """Return a number above 0, also of a text. Raises ConfigurationError."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
            if math.isfinite(number) and number > 0:
                return number
    raise ConfigurationError(f"{argument}: {value!r} is not a number above 0: write one, such as 1.5")

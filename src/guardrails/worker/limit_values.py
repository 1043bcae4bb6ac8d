"""How limits are written: their names, their values, and the variables of the environment."""

from __future__ import annotations

import os

from guardrails.errors import ConfigurationError
from guardrails.store.processes import limit_numbers
from guardrails.units import number_of_text, parse_count, parse_duration, parse_size
from guardrails.worker.limit import (
    UNLIMITED,
    Limit,
    is_above,
)

ENVIRONMENT = "GUARDRAILS_RLIMIT_"


_SIZES = (
    "AS",
    "CORE",
    "DATA",
    "FSIZE",
    "MEMLOCK",
    "MSGQUEUE",
    "RSS",
    "SBSIZE",
    "STACK",
    "SWAP",
    "VMEM",
)
_LARGEST = 2**62


_ON, _OFF = ("1", "on", "yes", "true"), ("0", "off", "no", "false", "")


def limits_from_environment() -> dict[str, str]:
    """Return the limits that the environment names, by name."""
    return {
        name.removeprefix(ENVIRONMENT): value
        for name, value in sorted(os.environ.items())
        if name.startswith(ENVIRONMENT) and name != f"{ENVIRONMENT}DEFAULTS"
    }


def defaults_from_environment() -> bool:
    """Return whether the environment asks for the defaults."""
    word = os.environ.get(f"{ENVIRONMENT}DEFAULTS", "off").strip().lower()
    if word not in (*_ON, *_OFF):
        raise ConfigurationError(
            f"{ENVIRONMENT}DEFAULTS: {word!r} in the environment is neither on nor off: write one"
        )
    return word in _ON


def parse_limit(name: str, value: object, origin: str, argument: str) -> Limit:
    """Read one limit."""
    known = limit_numbers()
    if name not in known:
        raise ConfigurationError(
            f"{argument}: {value!r} is for no limit: there is none of this name; they are written in "
            f"capitals: {', '.join(known) or 'this system has none'}"
        )
    if not isinstance(value, str) or ":" not in value:
        both = _parse_value(name, value, argument)
        return Limit(name, both, both, origin)
    soft_text, _, hard_text = value.partition(":")
    if not soft_text and not hard_text:
        raise ConfigurationError(
            f'{argument}: {value!r} says nothing: write "SOFT:HARD", "SOFT:" or ":HARD"'
        )
    soft = _parse_value(name, soft_text, argument) if soft_text else None
    hard = _parse_value(name, hard_text, argument) if hard_text else None
    if soft is not None and hard is not None and is_above(soft, hard):
        raise ConfigurationError(
            f"{argument}: {value!r} has a soft limit above the hard one: write the smaller one first"
        )
    return Limit(name, soft, hard, origin)


def _parse_value(name: str, value: object, argument: str) -> int:
    if isinstance(value, str) and value.strip().lower() == "unlimited":
        return UNLIMITED
    number = _parse_number(name, value, argument)
    if number > _LARGEST:
        raise ConfigurationError(
            f'{argument}: {value!r} is more than the system can count: write less, or "unlimited"'
        )
    return number


def _parse_number(name: str, value: object, argument: str) -> int:
    if name in _SIZES:
        return parse_size(value, argument)
    if name == "CPU":
        return whole_seconds(value, argument)
    if name == "RTTIME":
        return parse_duration(value, argument)
    return parse_count(
        number_of_text(value), argument, least=0, most=_LARGEST, instead=' or "unlimited"'
    )


def whole_seconds(value: object, argument: str) -> int:
    """Read a duration of whole seconds."""
    microseconds = parse_duration(value, argument)
    if microseconds % 1_000_000:
        raise ConfigurationError(
            f"{argument}: {value!r} is not whole seconds, and the kernel counts no smaller ones: "
            'write such as 2 or "2s"'
        )
    return microseconds // 1_000_000

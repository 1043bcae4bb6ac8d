"""How limits are written: their names and values, as arguments, in a mapping or in the environment."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TypedDict

from guardrails.errors import ConfigurationError
from guardrails.options import check_keywords
from guardrails.store.processes import limit_numbers
from guardrails.units import number_of_text, parse_count, parse_duration, parse_size
from guardrails.worker.limit import UNLIMITED, Limit, is_above

LimitValue = str | float
"""One value for the soft and the hard limit, or a text "SOFT:HARD", "SOFT:" or ":HARD"."""


class LimitOptions(TypedDict, total=False):
    """The limits by their names. Each system has some of them. `rlimits()` explains their units."""

    AS: LimitValue
    CORE: LimitValue
    CPU: LimitValue
    DATA: LimitValue
    FSIZE: LimitValue
    KQUEUES: LimitValue
    MEMLOCK: LimitValue
    MSGQUEUE: LimitValue
    NICE: LimitValue
    NOFILE: LimitValue
    NPROC: LimitValue
    NPTS: LimitValue
    NTHR: LimitValue
    OFILE: LimitValue
    PIPEBUF: LimitValue
    RSS: LimitValue
    RTPRIO: LimitValue
    RTTIME: LimitValue
    SBSIZE: LimitValue
    SIGPENDING: LimitValue
    STACK: LimitValue
    SWAP: LimitValue
    UMTXP: LimitValue
    VMEM: LimitValue


OTHER_OPTIONS = ("cpu_per_request", "defaults", "nice")
"""The keywords of `rlimits()` that are not limits."""

ENVIRONMENT = "GUARDRAILS_RLIMIT_"
_DEFAULTS = "DEFAULTS"
_PREFIX = "RLIMIT_"
_BYTES = frozenset(
    (
        "AS",
        "CORE",
        "DATA",
        "FSIZE",
        "MEMLOCK",
        "MSGQUEUE",
        "PIPEBUF",
        "RSS",
        "SBSIZE",
        "STACK",
        "SWAP",
        "VMEM",
    )
)
_LARGEST = 2**62
_ON, _OFF = ("1", "on", "yes", "true"), ("0", "off", "no", "false", "")


def parse_limits(
    mapping: Mapping[str, LimitValue] | None, arguments: Mapping[str, object]
) -> tuple[Limit, ...]:
    """Read the limits of all three sources.

    Args:
        mapping: values by name. They override the environment.
        arguments: values by name. They override the mapping.

    Raises:
        ConfigurationError: a name or a value is wrong.
    """
    if mapping is not None and not isinstance(mapping, Mapping):
        raise ConfigurationError(
            f'rlimits: {mapping!r} is not a mapping: write {{"CPU": "600:"}}, or CPU="600:"'
        )
    from_mapping = {str(name): value for name, value in (mapping or {}).items()}
    environment = _limits_from_environment()
    _check_names(f"{ENVIRONMENT} in the environment", environment, (_DEFAULTS,))
    _check_names("rlimits, in the mapping", from_mapping)
    _check_names("rlimits", arguments, OTHER_OPTIONS)
    limits: dict[str, Limit] = {}
    for name, text in environment.items():
        limits[name] = _parse_limit(name, text, "environment", ENVIRONMENT + name)
    for name, value in from_mapping.items():
        limits[name] = _parse_limit(name, value, "mapping", name)
    for name, argument in arguments.items():
        limits[name] = _parse_limit(name, argument, "argument", name)
    return tuple(limits.values())


def defaults_from_environment() -> bool:
    """Return whether GUARDRAILS_RLIMIT_DEFAULTS asks for the defaults.

    Raises:
        ConfigurationError: its value is neither on nor off.
    """
    word = os.environ.get(ENVIRONMENT + _DEFAULTS, "off").strip().lower()
    if word not in (*_ON, *_OFF):
        raise ConfigurationError(
            f"{ENVIRONMENT}{_DEFAULTS}: {word!r} in the environment is neither on nor off: write one"
        )
    return word in _ON


def parse_whole_seconds(value: object, argument: str) -> int:
    """Read a duration of whole seconds, such as 2, "2s" or "10m".

    Args:
        value: what was given.
        argument: what the message calls it.

    Raises:
        ConfigurationError: it is no duration, or has a fraction of a second.
    """
    microseconds = parse_duration(value, argument)
    if microseconds % 1_000_000:
        raise ConfigurationError(
            f"{argument}: {value!r} is not whole seconds, and the kernel counts only those: "
            'write such as 2 or "2s"'
        )
    return microseconds // 1_000_000


def _limits_from_environment() -> dict[str, str]:
    return {
        name.removeprefix(ENVIRONMENT): value
        for name, value in sorted(os.environ.items())
        # An empty value is no value: a compose file writes one for a variable that is not set.
        if name.startswith(ENVIRONMENT) and name != ENVIRONMENT + _DEFAULTS and value.strip()
    }


def _check_names(source: str, names: Iterable[str], others: Iterable[str] = ()) -> None:
    """Refuse a name that this system has no limit for.

    Args:
        source: where the names were given, for the message.
        names: the names.
        others: what else may be given there.
    """
    here = limit_numbers()
    for name in names:
        if name in LimitOptions.__annotations__ and name not in here:
            raise ConfigurationError(
                f"{source}: {name!r} is a limit of other systems: leave it out; this one has "
                + (", ".join(here) or "no limits")
            )
        bare = name.upper().removeprefix(_PREFIX)
        if name not in here and bare in here:
            raise ConfigurationError(f"{source}: {name!r} is not an option: write {bare}")
        check_keywords(source, (name,), (*here, *others))


def _parse_limit(name: str, value: object, origin: str, argument: str) -> Limit:
    if not isinstance(value, str) or ":" not in value:
        both = _parse_value(name, value, argument)
        return Limit(name, both, both, origin)
    soft_text, _, hard_text = value.partition(":")
    if not soft_text and not hard_text:
        raise ConfigurationError(
            f"{argument}: {value!r} has neither a soft nor a hard limit: "
            'write "SOFT:HARD", "SOFT:" or ":HARD"'
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
            f"{argument}: {value!r} is more than the system can count: write at most {_LARGEST}, "
            'or "unlimited"'
        )
    return number


def _parse_number(name: str, value: object, argument: str) -> int:
    if name in _BYTES:
        return parse_size(value, argument)
    if name == "CPU":
        return parse_whole_seconds(value, argument)
    if name == "RTTIME":
        return parse_duration(value, argument)  # the kernel counts microseconds, too
    return parse_count(
        number_of_text(value), argument, least=0, most=_LARGEST, instead=' or "unlimited"'
    )

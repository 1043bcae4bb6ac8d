"""A guard in one throttle: under its final name, with everything computed once."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from guardrails.client.exemptions import Exemptions
from guardrails.errors import ConfigurationError
from guardrails.guards.base import Guard
from guardrails.paths import Readings, falls_under, normal_host, plain_text, wsgi_text
from guardrails.store.contract import Meter, Requirement
from guardrails.units import parse_duration

_MOST_TIERS = 256


class BoundGuard:
    """A guard on duty: its final name, which requests it covers, what it demands.

    met: whether a request that it covers has come.
    """

    __slots__ = (
        "ban",
        "ban_for",
        "ban_only",
        "by_client",
        "exempt",
        "exempt_paths",
        "failure",
        "fixed_key",
        "guard",
        "hosts",
        "met",
        "methods",
        "name",
        "nothing",
        "number",
        "own_key",
        "path",
        "refusal",
        "shadow_ban",
        "tiers",
        "usual_requirement",
        "varies",
        "wait",
    )

    def __init__(self, guard: Guard, name: str, number: int) -> None:
        self.guard = guard
        self.name = name
        self.number = number
        path: Any = guard.path
        self.path = tuple(map(wsgi_text, path)) if isinstance(path, tuple) else path
        self.methods = guard.methods
        self.hosts = guard.host and tuple(map(normal_host, guard.host))
        self.exempt = Exemptions(guard.exempt)
        self.exempt_paths = tuple(map(wsgi_text, guard.exempt_paths))
        self.met = False
        self.wait = parse_duration(getattr(guard, "wait", 0), "wait")
        self.ban_for = parse_duration(guard.ban, "ban") if guard.ban is not None else 0
        self.ban = self.shadow_ban = None
        if self.ban_for:
            self.ban = _ban_meter(f"{name} ban", self.ban_for)
            self.shadow_ban = _ban_meter(f"{name} ban dry-run", self.ban_for)
        self.ban_only = self.make_requirement(ban_only=True)
        self.nothing = self.make_requirement()
        self.refusal = self.make_requirement(refused=True)
        # A callable that fails is no fault of the client's, so nobody is banned for it.
        self.failure = Requirement(name, refused=True)
        self.tiers: OrderedDict[object, Requirement] = OrderedDict()
        self.by_client = guard.counts_by_client()
        self.own_key = getattr(guard, "by", None) == "client"
        self.fixed_key = guard.fixed_key()
        self.varies = guard.varies()
        self.usual_requirement = guard.usual_requirement(self)

    def make_requirement(self, **parts: Any) -> Requirement:
        """A demand in this post's name, with its ban."""
        return Requirement(
            guard=self.name,
            ban=self.ban,
            shadow_ban=self.shadow_ban,
            ban_for=self.ban_for,
            wait=self.wait,
            **parts,
        )

    def tier(self, figures: object, make: Callable[[], Requirement]) -> Requirement:
        """The demand with these figures of a callable's, made once; the last 256 are kept."""
        requirement = self.tiers.get(figures)
        if requirement is None:
            requirement = make()
            if len(self.tiers) >= _MOST_TIERS:
                self.tiers.popitem(last=False)
            self.tiers[figures] = requirement
        return requirement

    def covers(self, method: str, host: str, readings: Readings) -> bool:
        """Whether the guard is about such a request, by any reading of its path."""
        if self.methods is not None and method.upper() not in self.methods:
            return False
        if self.hosts is not None and normal_host(host) not in self.hosts:
            return False
        if readings.all_under(self.exempt_paths):
            return False
        path = self.path
        if path is None:
            return True
        if isinstance(path, re.Pattern):
            return readings.any(lambda reading: path.match(plain_text(reading)))
        return readings.any(lambda reading: falls_under(reading, path))


def unique_names(
    guards: Iterable[Guard], taken: Mapping[str, Guard] = MappingProxyType({})
) -> list[str]:
    """A name for each guard: given ones must differ, made ones get a number when alike.

    taken: names that outer throttles have; only an equal guard may have the same.
    """
    guards = list(guards)
    given = [guard.name for guard in guards if guard.name is not None]
    for name in given:
        if given.count(name) > 1:
            raise ConfigurationError(
                f"name: {name!r} is given to {given.count(name)} guards, and each keeps its state "
                "under its name: give each its own, or leave the names out"
            )
    used = {name for name in given if name not in taken}
    names = []
    for guard in guards:
        base = guard.name or guard.default_name()
        name, number = base, 1
        while (name in used and name != guard.name) or taken.get(name, guard) != guard:
            number += 1
            name = f"{base} {number}"
        used.add(name)
        names.append(name)
    return names


def _ban_meter(name: str, ban_for: int) -> Meter:
    return Meter(name, need=0, cost=0, limit=0, resume=0, horizon=ban_for)

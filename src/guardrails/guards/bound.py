"""A guard in one throttle: its final name, the requests that it covers, its requirements."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from guardrails.client.browser import CROSS_SITE, PREFLIGHT
from guardrails.client.exemptions import Exemptions
from guardrails.errors import ConfigurationError, FigureOfNothingError
from guardrails.guards.base import Guard
from guardrails.memo import Memo
from guardrails.paths import Readings, falls_under, normal_host, plain_text, wsgi_text
from guardrails.store.contract import Meter, Requirement
from guardrails.units import parse_duration

HAS_HAD_A_KEY = -1
"""The `without_key` of a guard from its first request with a key on."""

_MOST_TIERS = 256


class BoundGuard:
    """A guard in one throttle, with everything that can be computed before the first request.

    Args:
        guard: the guard.
        name: its final name.
        number: its place in the throttle, from 1.

    Attributes:
        admit: the requirement that is always met.
        refuse: the requirement that is never met.
        failure: the same after a user's callable raised; it bans nobody.
        ban_only: the requirement that the client is not banned.
        ban_for: how long a refused client is banned, in microseconds; 0 for no ban.
        by_client: whether the client's address is the key, or a part of the key.
        own_key: whether the client's key is the key.
        fixed_key: the key, if all requests have the same one.
        met: whether this process has had a request that the guard covers.
        path_met: the same, whatever the request's method and host.
        tiers: the requirements that were made of the figures of a user's callable.
        marked: the requirements that were made for requests with a browser's marks.
        varies: whether the requirement depends on the request.
        usual_requirement: the requirement of most requests, if there is one.
        wait: how long a request may be delayed, in microseconds.
        waits_briefly: whether a request may wait a few milliseconds for a slot of its own client's.
        without_key: how many requests in a row, from the first one on, had no key for the guard.
    """

    __slots__ = (
        "admit",
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
        "marked",
        "met",
        "methods",
        "name",
        "number",
        "own_key",
        "path",
        "path_met",
        "refuse",
        "shadow_ban",
        "tiers",
        "usual_requirement",
        "varies",
        "wait",
        "waits_briefly",
        "without_key",
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
        self.met = self.path_met = False
        self.without_key = 0
        self.wait = parse_duration(getattr(guard, "wait", 0), "wait")
        self.waits_briefly = guard.caps_by_client()
        self.ban_for = parse_duration(guard.ban, "ban") if guard.ban is not None else 0
        self.ban = self.shadow_ban = None
        if self.ban_for:
            self.ban = _ban_meter(f"{name} ban", self.ban_for)
            self.shadow_ban = _ban_meter(f"{name} ban dry-run", self.ban_for)
        self.ban_only = self.make_requirement(ban_only=True)
        self.admit = self.make_requirement()
        self.refuse = self.make_requirement(refused=True)
        # The client is not to blame for a callable that raises, so this requirement has no ban.
        self.failure = Requirement(name, refused=True)
        self.tiers: Memo[Requirement] = Memo(_MOST_TIERS)
        self.marked: Memo[Requirement] = Memo(_MOST_TIERS)
        self.by_client = guard.counts_by_client()
        self.own_key = getattr(guard, "by", None) == "client"
        self.fixed_key = guard.fixed_key()
        self.varies = guard.varies()
        self.usual_requirement = guard.usual_requirement(self)

    def make_requirement(self, **parts: Any) -> Requirement:
        """Return a requirement in the name of this guard, with its ban."""
        return Requirement(
            guard=self.name,
            ban=self.ban,
            shadow_ban=self.shadow_ban,
            ban_for=self.ban_for,
            wait=self.wait,
            waits_briefly=self.waits_briefly,
            **parts,
        )

    def as_marked(self, requirement: Requirement, marks: int) -> Requirement:
        """Return what the guard requires instead for a request with a browser's marks.

        Each rate has another meter for preflights, unless the guard names OPTIONS. A page of another
        site cannot have its visitors banned.
        """
        if not marks:
            return requirement
        return self.marked.get((requirement, marks), lambda: self._make_marked(requirement, marks))

    def _make_marked(self, requirement: Requirement, marks: int) -> Requirement:
        if marks & CROSS_SITE:
            requirement = replace(requirement, ban_for=0)
        if marks & PREFLIGHT and not requirement.cpu and not self._names_options():
            meters = tuple(
                replace(meter, name=f"{meter.name} preflight") for meter in requirement.meters
            )
            requirement = replace(requirement, meters=meters)
        return requirement

    def _names_options(self) -> bool:
        return self.methods is not None and "OPTIONS" in self.methods

    def tier(self, figures: Hashable, make: Callable[[], Requirement]) -> Requirement:
        """Return the requirement for what a callable of the user's said.

        Args:
            figures: what it said.
            make: makes the requirement. With a figure of nothing there is none: the guard refuses.
        """

        def made() -> Requirement:
            try:
                return make()
            except FigureOfNothingError:
                return self.refuse

        return self.tiers.get(figures, made)

    def covers(self, method: str, host: str, readings: Readings) -> bool:
        """Whether the guard covers such a request, by any reading of its path."""
        if not self._covers_path(readings):
            return False
        self.path_met = True
        if self.methods is not None and method.upper() not in self.methods:
            return False
        return self.hosts is None or normal_host(host) in self.hosts

    def _covers_path(self, readings: Readings) -> bool:
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
    """Return a name for each guard. Default names that are equal get a number.

    Args:
        guards: the guards of one throttle.
        taken: the guards of outer throttles by their names. Only an equal guard may have the same
            name.

    Raises:
        ConfigurationError: two guards were given one name.
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

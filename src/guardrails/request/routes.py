"""What is asked of the store for a request: worked out once per method, host and path.

Most guards ask the same for every request that they cover, so a plan holds their asks ready; only
what differs from request to request (an agent, a header's value, a tier) is looked at each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from guardrails.client.identity import Client
from guardrails.client.keys import Request
from guardrails.guards.base import Guard
from guardrails.guards.bound import BoundGuard
from guardrails.paths import canonical_path, path_readings, wsgi_text
from guardrails.store.contract import KeyedRequirement, Requirement, RouteRequirements

NEVER_REFUSED = "/robots.txt"
"""A refused robots.txt tells crawlers that all is forbidden, or that all is allowed."""

_MOST_ROUTES = 4096
_LONGEST_REMEMBERED = 512
NO_REQUIREMENTS = RouteRequirements()
"""What is asked for an exempt request."""


class Duty(NamedTuple):
    """A guard to ask about a request, and whether only its ban counts for it."""

    bound: BoundGuard
    ban_only: bool


class Route:
    """What is known of every request with this method, host and path.

    exempt: nothing may refuse it.   duties: who is asked.   varying: those of them whose demand has
    to be asked for each time.   asks: what is asked for a client that no guard exempts, as long as
    the varying ones say the usual; None where it is never the same.   watched: the same with the
    per-client guards running dry.   resource: the path that stands for all its spellings.
    """

    __slots__ = (
        "duties",
        "exempt",
        "host",
        "method",
        "path",
        "requirements",
        "resource",
        "varying",
        "watched",
    )

    def __init__(self, method: str, host: str, path: str, duties: tuple[Duty, ...] | None) -> None:
        self.method, self.host, self.path = method, host, path
        self.resource = canonical_path(path)
        self.exempt = duties is None
        self.duties = duties or ()
        self.varying = tuple(
            duty.bound for duty in self.duties if duty.bound.varies and not duty.ban_only
        )
        self.requirements: RouteRequirements | None = None
        self.watched: RouteRequirements | None = None


class RouteTable:
    """Makes plans for one throttle, and keeps the last 4,096."""

    def __init__(
        self,
        bound_guards: Sequence[BoundGuard],
        exempt_paths: tuple[str, ...],
        *,
        dry_run: bool,
        callable_failed: Callable[[BoundGuard, Exception], tuple[bytes | None, Requirement | None]],
        exempt_failed: Callable[[Exception], object],
        met_twice: Callable[[BoundGuard], object],
    ) -> None:
        self._bound_guards = bound_guards
        self.names = tuple(bound.name for bound in bound_guards)
        self._exempt_paths = tuple(map(wsgi_text, exempt_paths))
        self._dry_run = dry_run
        self._callable_failed = callable_failed
        self._exempt_failed = exempt_failed
        self._met_twice = met_twice
        self._routes: OrderedDict[tuple[str, str, str, str], Route] = OrderedDict()

    def route(self, method: str, host: str, path: str, sent_script: str = "") -> Route:
        """The plan of such a request. `sent_script`: the SCRIPT_NAME that a header set."""
        known = self._routes.get((method, host, path, sent_script))
        if known is not None:
            return known
        route = Route(method, host, path, self._duties(method, host, path, sent_script))
        route.requirements = self._usual_asks(route, watched=False)
        route.watched = self._usual_asks(route, watched=True)
        if len(method) + len(host) + len(path) <= _LONGEST_REMEMBERED:
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.popitem(last=False)
            self._routes[method, host, path, sent_script] = route
        return route

    def requirements(
        self,
        route: Route,
        client: Client | None,
        environ: dict[str, Any],
        met: tuple[Guard, ...] = (),
        *,
        as_usual: bool = True,
    ) -> Sequence[KeyedRequirement]:
        """What is asked for one request. `met`: guards that an outer throttle asks already.

        as_usual: whether asks without a key of their own will do, which mean the visit's client.
        """
        if client is not None and not client.exempt and as_usual:
            requirements = route.watched if client.undeclared_proxy else route.requirements
            if requirements is not None:
                for bound in route.varying:
                    if self._requirement(bound, environ)[1] is not bound.usual_requirement:
                        break
                else:
                    return requirements
        return self._asks_one_by_one(route, client, environ, met)

    def _duties(self, method: str, host: str, path: str, sent_script: str) -> tuple[Duty, ...] | None:
        readings = path_readings(path, sent_script)
        if readings.all_under(self._exempt_paths, besides=NEVER_REFUSED):
            return None
        covered = [(bound, bound.covers(method, host, readings)) for bound in self._bound_guards]
        for bound, covers in covered:
            bound.met = bound.met or covers
        return tuple(
            Duty(bound, ban_only=not covers) for bound, covers in covered if covers or bound.ban_for
        )

    def _usual_asks(self, route: Route, *, watched: bool) -> RouteRequirements | None:
        requirements = []
        for bound, ban_only in route.duties:
            if bound.exempt.callables:
                return None
            dry_run = self._runs_dry(bound, watched=watched)
            if ban_only:
                requirements.append(KeyedRequirement(bound.ban_only, b"", dry_run))
            elif bound.usual_requirement is None or not (bound.own_key or bound.fixed_key is not None):
                return None
            else:
                requirements.append(KeyedRequirement(bound.usual_requirement, bound.fixed_key, dry_run))
        return RouteRequirements(requirements)

    def _asks_one_by_one(
        self,
        route: Route,
        client: Client | None,
        environ: dict[str, Any],
        met: tuple[Guard, ...],
    ) -> Sequence[KeyedRequirement]:
        request = Request(environ, client, route.method, route.host, route.path)
        watched = client is not None and client.undeclared_proxy
        requirements = []
        for bound, ban_only in route.duties:
            if client is not None and bound.number in client.exempt:
                continue
            if bound.guard in met:
                self._met_twice(bound)
                continue
            if bound.exempt.callables and bound.exempt.chosen(environ, self._exempt_failed):
                continue
            dry_run = self._runs_dry(bound, watched=watched)
            if ban_only:
                requirements.append(KeyedRequirement(bound.ban_only, b"", dry_run))
                continue
            key, requirement = self._key(bound, request)
            if key is not None and requirement is None:
                failed_key, requirement = self._requirement(bound, environ)
                key = failed_key or key
            if key is not None and requirement is not None:
                requirements.append(KeyedRequirement(requirement, key, dry_run))
        return requirements

    def _runs_dry(self, bound: BoundGuard, *, watched: bool) -> bool:
        return self._dry_run or bound.guard.dry_run or (watched and bound.by_client)

    def _key(self, bound: BoundGuard, request: Request) -> tuple[bytes | None, Requirement | None]:
        """Whom a demand is for; with a demand only where a callable of the user's failed."""
        if bound.fixed_key is not None:
            return bound.fixed_key, None
        try:
            return bound.guard.key(request), None
        except Exception as error:
            return self._callable_failed(bound, error)

    def _requirement(
        self, bound: BoundGuard, environ: dict[str, Any]
    ) -> tuple[bytes | None, Requirement | None]:
        """What a guard demands; with a key only where a callable of the user's failed."""
        if not bound.varies:
            return None, bound.usual_requirement
        try:
            return None, bound.guard.requirement(bound, environ)
        except Exception as error:
            return self._callable_failed(bound, error)

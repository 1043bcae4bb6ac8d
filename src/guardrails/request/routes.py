"""What the guards require for a request: worked out once per method, host and path.

Most guards require the same for every request that they cover, so a route holds their requirements
ready. Only what differs from request to request (an agent, a header's value, a tier) is looked at each
time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from guardrails.client.browser import marks_of
from guardrails.client.exemptions import Exemptions
from guardrails.client.identity import Client
from guardrails.client.keys import Request
from guardrails.errors import is_failure
from guardrails.guards.base import Guard
from guardrails.guards.bound import HAS_HAD_A_KEY, BoundGuard
from guardrails.paths import canonical_path, path_readings, wsgi_text
from guardrails.request.robots import ROBOTS_TXT, BeyondAllowance
from guardrails.store.contract import KeyedRequirement, Requirement, RouteRequirements

NO_REQUIREMENTS = RouteRequirements()
"""The requirements for an exempt request."""

MOST_WITHOUT_KEY = 1000
"""How many covered requests in a row, from the first one on, may have no key."""

_MOST_ROUTES = 4096
_LONGEST_REMEMBERED = 512


class Route:
    """What is known of every request with this method, host and path, and these marks of a browser's.

    Attributes:
        marks: PREFLIGHT, CROSS_SITE, both or none (client/browser.py).
        is_robots_txt: whether such a request without a query has the allowance of robots.txt.
        exempt: nothing may refuse such a request.
        guards: the guards to ask, each with whether only its ban counts here.
        varying: those of them whose requirement has to be worked out for each request.
        requirements: what they require for a client that no guard exempts, while the varying ones
            require the usual; None where that is never the same.
        dry_requirements: the same with the per-client guards running dry.
        resource: the path that stands for all its spellings.
    """

    __slots__ = (
        "dry_requirements",
        "exempt",
        "guards",
        "host",
        "is_robots_txt",
        "marks",
        "method",
        "path",
        "requirements",
        "resource",
        "varying",
    )

    def __init__(
        self,
        method: str,
        host: str,
        path: str,
        marks: int,
        guards: tuple[tuple[BoundGuard, bool], ...] | None,
    ) -> None:
        self.method, self.host, self.path, self.marks = method, host, path, marks
        self.is_robots_txt = False
        self.resource = canonical_path(path)
        self.exempt = guards is None
        self.guards = guards or ()
        self.varying = tuple(bound for bound, ban_only in self.guards if bound.varies and not ban_only)
        self.requirements: RouteRequirements | None = None
        self.dry_requirements: RouteRequirements | None = None


class RouteTable:
    """Makes the routes of one throttle, and keeps the last 4,096.

    Args:
        guards: the guards of the throttle.
        exempt: which clients no guard refuses.
        exempt_paths: prefixes of paths that no guard refuses.
        dry_run: whether all guards run dry.
        callable_failed: called when a callable of the user's raises; it returns the key and the
            requirement that the guard has then, None for none.
        exempt_failed: called when an exempting callable raises.
        met_twice: called when an outer throttle has asked a guard already.
        gives_nothing: called when the first MOST_WITHOUT_KEY requests had no key for a guard.
    """

    def __init__(
        self,
        guards: Sequence[BoundGuard],
        exempt: Exemptions,
        exempt_paths: tuple[str, ...],
        *,
        dry_run: bool,
        callable_failed: Callable[[BoundGuard, Exception], tuple[bytes | None, Requirement | None]],
        exempt_failed: Callable[[Exception], object],
        met_twice: Callable[[BoundGuard], object],
        gives_nothing: Callable[[BoundGuard], object],
    ) -> None:
        self._guards = guards
        self.names = tuple(bound.name for bound in guards)
        self._bans = any(bound.ban_for for bound in guards)
        self._exempt = exempt
        self._exempts = bool(exempt)
        self._exempt_paths = tuple(map(wsgi_text, exempt_paths))
        self._dry_run = dry_run
        self._callable_failed = callable_failed
        self._exempt_failed = exempt_failed
        self._met_twice = met_twice
        self._gives_nothing = gives_nothing
        # On the hot path, where an OrderedDict costs half of what cachetools does.
        self._routes: OrderedDict[tuple[str, str, str, str, int], Route] = OrderedDict()

    def find(self, environ: dict[str, Any]) -> Route:
        """Return the route of a request."""
        get = environ.get
        script = get("SCRIPT_NAME", "")
        method = get("REQUEST_METHOD", "GET")
        marks = 0
        if method == "OPTIONS" or (
            self._bans and ("HTTP_ORIGIN" in environ or get("HTTP_SEC_FETCH_SITE") == "cross-site")
        ):
            marks = marks_of(environ)
        key = (
            method,
            get("HTTP_HOST") or get("SERVER_NAME", ""),
            script + get("PATH_INFO", ""),
            # A SCRIPT_NAME that a header set, as gunicorn lets proxies do.
            script if script and "HTTP_SCRIPT_NAME" in environ else "",
            marks,
        )
        return self._routes.get(key) or self._make(*key)

    def requirements(
        self,
        route: Route,
        client: Client | None,
        environ: dict[str, Any],
        *,
        check_exempt: bool = True,
    ) -> Sequence[KeyedRequirement]:
        """Return what the guards require for one request: NO_REQUIREMENTS if it is exempt."""
        if route.exempt or (check_exempt and self._exempts and self.is_exempt(route, client, environ)):
            return NO_REQUIREMENTS
        if client is not None and not client.exempt:
            ready = route.dry_requirements if client.watched else route.requirements
            if ready is not None:
                for bound in route.varying:
                    try:
                        if bound.guard.requirement(bound, environ) is not bound.usual_requirement:
                            break
                    except Exception as error:
                        if not is_failure(error):
                            raise
                        break  # the guard is asked again, and its failure reported, one by one
                else:
                    return ready
        return self.requirements_one_by_one(route, client, environ)

    def is_exempt(self, route: Route, client: Client | None, environ: dict[str, Any]) -> bool:
        """Return whether no guard may refuse a request."""
        if route.exempt or (client is not None and 0 in client.exempt):
            return True
        return bool(self._exempt.callables) and self._exempt.chosen(environ, self._exempt_failed)

    def requirements_one_by_one(
        self,
        route: Route,
        client: Client | None,
        environ: dict[str, Any],
        met: tuple[Guard, ...] = (),
    ) -> Sequence[KeyedRequirement]:
        """Return the same, each with the client's key.

        Args:
            route: of the request.
            client: of the request.
            environ: of the request.
            met: the guards that an outer throttle has asked; none of them is asked again.
        """
        request = Request(environ, client, route.method, route.host, route.path)
        watched = client is not None and client.watched
        requirements = []
        for bound, ban_only in route.guards:
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
            if key is None:
                self._note_no_key(bound)
                continue
            bound.without_key = HAS_HAD_A_KEY
            if requirement is None:
                failed_key, requirement = self._requirement(bound, environ)
                key = failed_key or key
            if requirement is not None:
                requirement = bound.as_marked(requirement, route.marks)
                requirements.append(KeyedRequirement(requirement, key, dry_run))
        if route.is_robots_txt and not environ.get("QUERY_STRING"):
            return BeyondAllowance(requirements)
        return requirements

    def _note_no_key(self, bound: BoundGuard) -> None:
        """Note that a guard does not apply for want of a key; tell it once that was always so."""
        if bound.without_key != HAS_HAD_A_KEY:
            bound.without_key += 1
            if bound.without_key == MOST_WITHOUT_KEY:
                self._gives_nothing(bound)

    def _make(self, method: str, host: str, path: str, sent_script: str, marks: int) -> Route:
        route = Route(method, host, path, marks, self._covering(method, host, path, sent_script))
        if path == ROBOTS_TXT and method in ("GET", "HEAD") and not sent_script:
            route.is_robots_txt = True
        else:
            route.requirements = self._ready_requirements(route, watched=False)
            route.dry_requirements = self._ready_requirements(route, watched=True)
        # A long path is not remembered: a client could fill the memory with such paths.
        if len(method) + len(host) + len(path) <= _LONGEST_REMEMBERED:
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.popitem(last=False)
            self._routes[method, host, path, sent_script, marks] = route
        return route

    def _covering(
        self, method: str, host: str, path: str, sent_script: str
    ) -> tuple[tuple[BoundGuard, bool], ...] | None:
        """Return the guards to ask, with whether only the ban counts; None for an exempt path."""
        readings = path_readings(path, sent_script)
        if readings.all_under(self._exempt_paths):
            return None
        covered = [(bound, bound.covers(method, host, readings)) for bound in self._guards]
        for bound, covers in covered:
            bound.met = bound.met or covers
        return tuple((bound, not covers) for bound, covers in covered if covers or bound.ban_for)

    def _ready_requirements(self, route: Route, *, watched: bool) -> RouteRequirements | None:
        requirements = []
        for bound, ban_only in route.guards:
            if bound.exempt.callables:
                return None
            dry_run = self._runs_dry(bound, watched=watched)
            if ban_only:
                requirements.append(KeyedRequirement(bound.ban_only, b"", dry_run))
            elif bound.usual_requirement is None or not (bound.own_key or bound.fixed_key is not None):
                return None
            else:
                requirement = bound.as_marked(bound.usual_requirement, route.marks)
                requirements.append(KeyedRequirement(requirement, bound.fixed_key, dry_run))
        return RouteRequirements(requirements)

    def _runs_dry(self, bound: BoundGuard, *, watched: bool) -> bool:
        return self._dry_run or bound.guard.dry_run or (watched and bound.by_client)

    def _key(self, bound: BoundGuard, request: Request) -> tuple[bytes | None, Requirement | None]:
        """Return (key, None).

        If the user's callable raised, return the key and the requirement that apply then.
        """
        if bound.fixed_key is not None:
            return bound.fixed_key, None
        try:
            return bound.guard.key(request), None
        except Exception as error:
            return self._callable_failed(bound, error)

    def _requirement(
        self, bound: BoundGuard, environ: dict[str, Any]
    ) -> tuple[bytes | None, Requirement | None]:
        """Return (None, requirement).

        If the user's callable raised, return the key and the requirement that apply then.
        """
        if not bound.varies:
            return None, bound.usual_requirement
        try:
            return None, bound.guard.requirement(bound, environ)
        except Exception as error:
            return self._callable_failed(bound, error)

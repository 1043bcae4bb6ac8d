"""What is asked of the store for a request: worked out once per method, host and path.

Most guards ask the same for every request that they cover, so a plan holds their asks ready; only
what differs from request to request (an agent, a header's value, a tier) is looked at each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from guardrails.client.keys import Request
from guardrails.client.reader import Client
from guardrails.guards.base import Guard, Post
from guardrails.paths import canonical_path, path_readings, wsgi_text
from guardrails.store.contract import Ask, Asks, Demand

NEVER_REFUSED = "/robots.txt"
"""A refused robots.txt tells crawlers that all is forbidden, or that all is allowed."""

_PLANS = 4096
_LONGEST_PLANNED = 512
NO_ASKS = Asks()
"""What is asked for an exempt request."""


class Duty(NamedTuple):
    """A guard to ask about a request, and whether only its ban counts for it."""

    post: Post
    ban_only: bool


class Plan:
    """What is known of every request with this method, host and path.

    exempt: nothing may refuse it.   duties: who is asked.   varying: those of them whose demand has
    to be asked for each time.   asks: what is asked for a client that no guard exempts, as long as
    the varying ones say the usual; None where it is never the same.   watched: the same with the
    per-client guards running dry.   resource: the path that stands for all its spellings.
    """

    __slots__ = (
        "asks",
        "duties",
        "exempt",
        "host",
        "method",
        "path",
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
            duty.post for duty in self.duties if duty.post.varies and not duty.ban_only
        )
        self.asks: Asks | None = None
        self.watched: Asks | None = None


class Planner:
    """Makes plans for one throttle, and keeps the last 4,096."""

    def __init__(
        self,
        posts: Sequence[Post],
        exempt_paths: tuple[str, ...],
        *,
        dry_run: bool,
        callable_failed: Callable[[Post, Exception], tuple[bytes | None, Demand | None]],
        exempt_failed: Callable[[Exception], object],
        met_twice: Callable[[Post], object],
    ) -> None:
        self._posts = posts
        self.names = tuple(post.name for post in posts)
        self._exempt_paths = tuple(map(wsgi_text, exempt_paths))
        self._dry_run = dry_run
        self._callable_failed = callable_failed
        self._exempt_failed = exempt_failed
        self._met_twice = met_twice
        self._plans: OrderedDict[tuple[str, str, str, str], Plan] = OrderedDict()

    def plan(self, method: str, host: str, path: str, sent_script: str = "") -> Plan:
        """The plan of such a request. `sent_script`: the SCRIPT_NAME that a header set."""
        known = self._plans.get((method, host, path, sent_script))
        if known is not None:
            return known
        plan = Plan(method, host, path, self._duties(method, host, path, sent_script))
        plan.asks = self._usual_asks(plan, watched=False)
        plan.watched = self._usual_asks(plan, watched=True)
        if len(method) + len(host) + len(path) <= _LONGEST_PLANNED:
            if len(self._plans) >= _PLANS:
                self._plans.popitem(last=False)
            self._plans[method, host, path, sent_script] = plan
        return plan

    def asks(
        self,
        plan: Plan,
        client: Client | None,
        environ: dict[str, Any],
        met: tuple[Guard, ...] = (),
        *,
        as_usual: bool = True,
    ) -> Sequence[Ask]:
        """What is asked for one request. `met`: guards that an outer throttle asks already.

        as_usual: whether asks without a key of their own will do, which mean the visit's client.
        """
        if client is not None and not client.exempt and as_usual:
            asks = plan.watched if client.undeclared_proxy else plan.asks
            if asks is not None:
                for post in plan.varying:
                    if self._demand(post, environ)[1] is not post.usual_demand:
                        break
                else:
                    return asks
        return self._asks_one_by_one(plan, client, environ, met)

    def _duties(self, method: str, host: str, path: str, sent_script: str) -> tuple[Duty, ...] | None:
        readings = path_readings(path, sent_script)
        if readings.all_under(self._exempt_paths, besides=NEVER_REFUSED):
            return None
        covered = [(post, post.covers(method, host, readings)) for post in self._posts]
        for post, covers in covered:
            post.met = post.met or covers
        return tuple(
            Duty(post, ban_only=not covers) for post, covers in covered if covers or post.ban_for
        )

    def _usual_asks(self, plan: Plan, *, watched: bool) -> Asks | None:
        asks = []
        for post, ban_only in plan.duties:
            if post.exempt.callables:
                return None
            dry_run = self._runs_dry(post, watched=watched)
            if ban_only:
                asks.append(Ask(post.ban_only, b"", dry_run))
            elif post.usual_demand is None or not (post.own_key or post.fixed_key is not None):
                return None
            else:
                asks.append(Ask(post.usual_demand, post.fixed_key, dry_run))
        return Asks(asks)

    def _asks_one_by_one(
        self,
        plan: Plan,
        client: Client | None,
        environ: dict[str, Any],
        met: tuple[Guard, ...],
    ) -> Sequence[Ask]:
        request = Request(environ, client, plan.method, plan.host, plan.path)
        watched = client is not None and client.undeclared_proxy
        asks = []
        for post, ban_only in plan.duties:
            if client is not None and post.number in client.exempt:
                continue
            if post.guard in met:
                self._met_twice(post)
                continue
            if post.exempt.callables and post.exempt.chosen(environ, self._exempt_failed):
                continue
            dry_run = self._runs_dry(post, watched=watched)
            if ban_only:
                asks.append(Ask(post.ban_only, b"", dry_run))
                continue
            key, demand = self._key(post, request)
            if key is not None and demand is None:
                failed_key, demand = self._demand(post, environ)
                key = failed_key or key
            if key is not None and demand is not None:
                asks.append(Ask(demand, key, dry_run))
        return asks

    def _runs_dry(self, post: Post, *, watched: bool) -> bool:
        return self._dry_run or post.guard.dry_run or (watched and post.by_client)

    def _key(self, post: Post, request: Request) -> tuple[bytes | None, Demand | None]:
        """Whom a demand is for; with a demand only where a callable of the user's failed."""
        if post.fixed_key is not None:
            return post.fixed_key, None
        try:
            return post.guard.key(request), None
        except Exception as error:
            return self._callable_failed(post, error)

    def _demand(self, post: Post, environ: dict[str, Any]) -> tuple[bytes | None, Demand | None]:
        """What a guard demands; with a key only where a callable of the user's failed."""
        if not post.varies:
            return None, post.usual_demand
        try:
            return None, post.guard.demand(post, environ)
        except Exception as error:
            return self._callable_failed(post, error)

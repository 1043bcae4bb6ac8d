"""Throttles within throttles: what an inner one takes from the outer one, and gives back.

An inner throttle takes client, store and exemptions from the outer one, unless it was given its own.
One request then has one row on the scoreboard, its CPU is measured once, and a guard that both
throttles have is charged once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from wsgiref.types import StartResponse

from guardrails.client.identity import Identity
from guardrails.decision import PASSED, Decision
from guardrails.guards.bound import BoundGuard, unique_names
from guardrails.request.build_checks import check_wsgi_app_attribute
from guardrails.request.open_request import REQUEST_KEY, OpenRequest
from guardrails.request.refusal import refuse
from guardrails.request.routes import RouteTable
from guardrails.store.contract import KeyedRequirement, Store
from guardrails.worker import interrupt
from guardrails.worker.process import current_process

if TYPE_CHECKING:
    from guardrails.request.middleware import Throttle


class Nesting:
    """The path of a request through a throttle that stands within another one.

    Args:
        throttle: the inner throttle.
        identity: how it recognises clients.
        own_store: whether it was given a store of its own.
        own_exemptions: whether it was given exemptions of its own.
    """

    def __init__(
        self, throttle: Throttle, identity: Identity, *, own_store: bool, own_exemptions: bool
    ) -> None:
        self._throttle = throttle
        self._own_store = own_store
        self._own_exemptions = own_exemptions
        # With another ipv6_prefix alone, the outer throttle's client gets another key here, but is not
        # read from the request again.
        self._own_client = identity != Identity()
        self._reads_client = identity != Identity(ipv6_prefix=identity.ipv6_prefix)
        self._route_tables: dict[tuple[str, ...], RouteTable] = {}

    def outer_request(self, environ: dict[str, Any]) -> OpenRequest | None:
        """Return the open request that an environ with a token belongs to; None for a new request.

        A request is over when its response is closed; its environ, or a copy, may be asked again. So it
        may also be while the response is open: the throttle that has opened the request gets the same
        environ from outside once more, or with another client.
        """
        reference = current_process().open_requests.get(environ[REQUEST_KEY])
        outer: OpenRequest | None = None if reference is None else reference()
        throttle = self._throttle
        if outer is None or outer.retry_queue is not throttle._retry_queue:
            return outer
        client = throttle._clients.read(environ)
        same = client is outer.who or (client and outer.who and client.address == outer.who.address)
        return outer if same and not outer.app_returned else None

    @interrupt.calls_the_app
    def call(
        self, environ: dict[str, Any], start_response: StartResponse, outer: OpenRequest
    ) -> Iterable[bytes]:
        """Do for an inner throttle what `Throttle.__call__` does for the outermost one."""
        throttle = self._throttle
        if outer.retry_queue is throttle._retry_queue and outer.path == _path(environ):
            # The request has come back unchanged to the throttle that opened it.
            check_wsgi_app_attribute(throttle.app)
        exempt_outside = outer.exempt
        open_request: OpenRequest | None = None
        try:
            try:
                open_request = self._open(environ, outer)
                open_request, result = throttle._admission.enter(open_request, outer)
                decision = throttle._decisions.decide(result, open_request, environ)
                if open_request is not outer or decision.outcome != PASSED:
                    environ["guardrails.decision"] = decision
                if open_request is outer and result is not None and decision.admitted:
                    outer.note_charges()
            except Exception as error:
                throttle._failures.report(
                    error, "guardrails failed on a request, which goes on unguarded"
                )
                decision = Decision()
            if not decision.admitted:
                if outer.worker.hooks.after_refusal:
                    outer.worker.hooks.request_refused()
                drain = open_request is not None and open_request.may_drain
                return refuse(decision, environ, start_response, drain=drain)
            if open_request is None:
                return throttle.app(environ, start_response)
            if open_request is outer:
                app = throttle.app
                if outer.interruptible and outer.generation:
                    app = outer.interruptible_work(app)
                return outer.measure(app, environ, start_response)  # type: ignore[no-any-return]
            return open_request.call(throttle.app, environ, start_response)  # type: ignore[no-any-return]
        except BaseException:
            if open_request is not None and open_request is not outer:
                open_request.release()
            raise
        finally:
            # Restore the outer throttle's keys of the environ.
            outer.exempt = exempt_outside
            environ[REQUEST_KEY] = outer.token
            environ["guardrails.client"] = outer.client or None

    def _open(self, environ: dict[str, Any], outer: OpenRequest) -> OpenRequest:
        """Return the outer request with this throttle's requirements, or a request of its own."""
        throttle = self._throttle
        worker = current_process()
        throttle._until_checks -= 1
        store = throttle.store if self._own_store else outer.store
        throttle.prepare_process(worker, environ, store)
        if self._reads_client:
            client = throttle._clients.read(environ)
        else:
            client = outer.who and throttle._clients.same(outer.who)
        if self._own_client:
            environ["guardrails.client"] = None if client is None else client.text
        same_store = not self._own_store or _is_same(throttle.store, outer.store)
        asked_there = same_store and outer.is_open() and outer.worker is worker
        # A request is charged to its client, and its client is banned: another client has its own.
        shared = asked_there and not self._own_client
        routes = self._routes_within(outer) if same_store else throttle._routes
        route = routes.find(environ)
        exempt = outer.allowed or routes.is_exempt(route, client, environ)
        if not self._own_exemptions and not self._reads_client:
            exempt = exempt or outer.exempt
        met = outer.guards if asked_there else ()
        if self._own_client:
            # A guard that counts by client is asked again for another client.
            met = tuple(guard for guard in met if not guard.counts_by_client())
        requirements: Sequence[KeyedRequirement] = ()
        if not exempt:
            if shared or met:
                requirements = routes.requirements_one_by_one(route, client, environ, met)
            else:
                requirements = routes.requirements(route, client, environ, check_exempt=False)
        if shared:
            outer.requirements = requirements
            outer.guards += throttle.guards
            outer.names += routes.names
            outer.exempt = exempt
            outer.interruptible = outer.interruptible or throttle._allows_interrupts
            return outer
        open_request = OpenRequest(
            throttle.store,
            throttle._retry_queue,
            requirements,
            worker,
            client,
            route,
            throttle.guards,
            throttle._names,
        )
        open_request.exempt = exempt
        open_request.allowed = outer.allowed
        open_request.interruptible = throttle._allows_interrupts
        if same_store:
            open_request.store = outer.store
            open_request.guards = outer.guards + throttle.guards
            open_request.names = outer.names + routes.names
        environ[REQUEST_KEY] = open_request.token
        return open_request

    def _routes_within(self, outer: OpenRequest) -> RouteTable:
        """Return the routes to use within an outer request.

        Two guards under one name would share their state, and overwrite each other's. So a guard of
        this throttle gets a number where another guard has its name outside.
        """
        throttle = self._throttle
        taken = dict(zip(outer.names, outer.guards, strict=True))
        if all(taken.get(bound.name, bound.guard) == bound.guard for bound in throttle._bound_guards):
            return throttle._routes
        routes = self._route_tables.get(outer.names)
        if routes is None:
            names = unique_names(throttle.guards, taken)
            routes = self._route_tables[outer.names] = throttle._make_routes(
                [
                    BoundGuard(bound.guard, name, bound.number)
                    for bound, name in zip(throttle._bound_guards, names, strict=True)
                ]
            )
        return routes


def _path(environ: dict[str, Any]) -> str:
    return str(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))


def _is_same(store: Store, other: Store) -> bool:
    """Return whether two stores have one state: a name in shared memory may be given twice."""
    name = getattr(store, "name", None)
    return store is other or (name is not None and name == getattr(other, "name", None))

"""throttle() and Throttle.__call__: the one place where a request flows.

    server -> facts of the request -> what the guards demand -> store.enter
           -> refused: answer, count, one log line
           -> admitted: app -> response -> close: store.leave

Two rules hold here above all. No error of guardrails' own becomes a failed request: it is logged,
counted, and the request goes on. And whatever was entered is left, on every path.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NoReturn
from wsgiref.types import StartResponse, WSGIApplication

from guardrails.client.exemptions import Exempt, Exemptions
from guardrails.client.identity import DEFAULT_FORWARDED, DEFAULT_IPV6_PREFIX, Client, Identity
from guardrails.client.reader import ClientReader
from guardrails.decision import PASSED, Decision
from guardrails.errors import StoreError, is_failure
from guardrails.guards.base import Guard
from guardrails.guards.bound import BoundGuard, unique_names
from guardrails.guards.option_checks import check_wsgi_app, exempt_path_prefixes
from guardrails.request.admission import Admission
from guardrails.request.arguments import check_guards, check_slots, check_store, switch_position
from guardrails.request.checks import Checks
from guardrails.request.decisions import Conclusion, OnDecision
from guardrails.request.failures import Reporter
from guardrails.request.refusal import refuse
from guardrails.request.response import OPEN_REQUEST_KEY, OpenRequest
from guardrails.request.routes import NO_REQUIREMENTS, Route, RouteTable
from guardrails.request.setup_checks import Inspector
from guardrails.store.contract import (
    DRY_RUN,
    OFF,
    KeyedRequirement,
    Store,
    WorkerFacts,
)
from guardrails.store.urls import store_from_url, unnamed_store
from guardrails.worker import cpu_clock, interrupt, stacks
from guardrails.worker.hooks import here as request_hooks
from guardrails.worker.server import Server, running_server

_REQUESTS_BETWEEN_LOOKS = 1024


def throttle(
    app: WSGIApplication,
    *guards: Guard,
    store: str | Store | None = None,
    trusted_proxies: str | Iterable[str] | None = None,
    proxy_hops: int | None = None,
    forwarded: str = DEFAULT_FORWARDED,
    client: Callable[[dict[str, Any]], str | None] | None = None,
    ipv6_prefix: int = DEFAULT_IPV6_PREFIX,
    exempt: Exempt = (),
    exempt_paths: str | Iterable[str] = (),
    silence: str | Iterable[str] = (),
    interruptible: bool = False,
    enabled: bool = True,
    dry_run: bool = False,
    on_decision: OnDecision | None = None,
    on_store_error: str = "fallback",
) -> Throttle:
    """Put guards in front of a WSGI app.

    store: where the state is: a URL ("memory:", "shm:", "shm:NAME?clients=50000"), a store, or None
    for a file in shared memory that belongs to the place that calls; the environment variable
    GUARDRAILS_STORE stands in for None.
    trusted_proxies: networks of the proxies whose forwarding header is believed, "loopback",
    "private", or "unix" for a proxy on a unix socket. () says that peers are clients. With None,
    per-client guards only watch behind a proxy that nobody declared.
    proxy_hops: how many proxies each request passes, where their networks are not known; the server
    must not be reachable but through them.
    forwarded: the header that they write: "x-forwarded-for", "forwarded" (RFC 7239), or another with
    an address or a list of them, such as "x-real-ip". All others are ignored.
    client: environ -> address, or None for nobody; stands in for all of the three.
    ipv6_prefix: the bits of an IPv6 address that make one client, from 16 to 128.
    exempt: who is never throttled: networks, addresses, "loopback", "private", or callables of the
    environ.   exempt_paths: prefixes that never are.
    silence: codes of checks (docs/errors.md) that need not be said.
    interruptible: start one thread per worker, through which a watchdog may end a single request by
    an exception in its thread (docs/watchdog.md).
    enabled, dry_run: the switch. GUARDRAILS=off, dry-run or on in the environment overrides both.
    on_decision: called with (decision, environ) for refusals and dry-run refusals.
    on_store_error: when the store fails: "fallback" counts in this process's memory, "allow" lets
    the request pass, "deny" refuses it with 503.

    Raises ConfigurationError for whatever is wrong. Starts nothing and opens nothing: that is done
    at the first request.
    """
    own_store = store is not None
    if store is None or store == "shm:":
        caller = sys._getframe(1)  # noqa: SLF001 - where it is called names the store
        if caller.f_globals.get("__name__") == "guardrails.guards.base":
            caller = caller.f_back or caller
        store = unnamed_store(caller.f_code.co_filename, caller.f_lineno)
    else:
        store = store_from_url(store) if isinstance(store, str) else check_store(store)
    return Throttle(
        app,
        guards,
        store,
        own_store=own_store,
        identity=Identity(trusted_proxies, proxy_hops, forwarded, client, ipv6_prefix),
        exempt=exempt,
        exempt_paths=exempt_paths,
        silence=silence,
        interruptible=interruptible,
        position=switch_position(enabled, dry_run),
        on_decision=on_decision,
        on_store_error=on_store_error,
    )


class Throttle:
    """A WSGI app behind guards. `app` is what it wraps."""

    def __init__(
        self,
        app: WSGIApplication,
        guards: Sequence[Guard],
        store: Store,
        *,
        own_store: bool,
        identity: Identity,
        exempt: Exempt,
        exempt_paths: str | Iterable[str],
        silence: str | Iterable[str],
        interruptible: bool,
        position: str,
        on_decision: OnDecision | None,
        on_store_error: str,
    ) -> None:
        self.app = check_wsgi_app(app, "SpeedLimit", caller="throttle")
        self.guards = tuple(check_guards(guards))
        self.store = store
        self._own_store = own_store
        self._off = position == OFF
        self._interruptible = interruptible
        self._obeys = False
        self._bound_guards = [
            BoundGuard(guard, name, number)
            for number, (guard, name) in enumerate(
                zip(self.guards, unique_names(self.guards), strict=True), 1
            )
        ]
        check_slots(self._bound_guards)
        self._names = tuple(bound.name for bound in self._bound_guards)
        self._bound_by_name: dict[str, BoundGuard] = {}
        self._exempt = Exemptions(exempt)
        self._exempt_callables = self._exempt.callables
        self._exempt_paths = exempt_path_prefixes(exempt_paths)
        self._own_exemptions = bool(self._exempt or self._exempt_paths)
        self._own_client = identity != Identity()
        self._reads_client = identity != Identity(ipv6_prefix=identity.ipv6_prefix)
        self._reporter = Reporter()
        self._checks = Checks(silence)
        self._clients = ClientReader(
            identity,
            [self._exempt.networks, *(bound.exempt.networks for bound in self._bound_guards)],
            self._checks.warn,
            self._client_failed,
        )
        self._pid = 0
        self._until_look = _REQUESTS_BETWEEN_LOOKS
        self._inspector = Inspector(self._bound_by_name, self._checks)
        self.errors = self._reporter.errors
        self._dry_run = position == DRY_RUN
        self._route_table = self._make_route_table(self._bound_guards)
        self._route_tables_within: dict[tuple[str, ...], RouteTable] = {}
        self._admission = Admission(
            on_store_error,
            self._reporter,
            waits=any(bound.wait for bound in self._bound_guards),
        )
        self._retry_queue = self._admission.retry_queue
        self._conclude = Conclusion(self._bound_by_name, self._reporter, on_decision).conclude

    @interrupt.calls_the_app
    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        open_request: OpenRequest | None = None
        outer: OpenRequest | None = environ.get(OPEN_REQUEST_KEY)
        exempt = outer is not None and outer.exempt
        response: Iterable[bytes]
        if self._off:
            response = self.app(environ, start_response)
            return response
        try:
            open_request, decision = self._decide(environ, outer)
            if not decision.admitted:
                if outer is None:
                    # This request is over: whoever tries again with the same environ is asked again.
                    environ.pop(OPEN_REQUEST_KEY, None)
                if request_hooks.after_refusal:
                    request_hooks.request_refused()
                drain = open_request is not None and open_request.may_drain
                return refuse(decision, environ, start_response, drain=drain)
            if open_request is None:
                response = self.app(environ, start_response)
            elif open_request is outer:
                response = open_request.measure(self.app, environ, start_response)
            else:
                response = open_request.call(self.app, environ, start_response)
            return response
        except BaseException:
            if open_request is not None and open_request is not outer:
                open_request.release()
            raise
        finally:
            if outer is not None:
                _hand_back(environ, outer, exempt=exempt)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"{type(self).__name__} has no attribute {name!r}: it stands in for the WSGI app that it "
            "wraps, which is at .app; to keep your framework's object write "
            "app.wsgi_app = guardrails.throttle(app.wsgi_app, ...)"
        )

    def __repr__(self) -> str:
        names = ", ".join(map(repr, self._bound_by_name))
        return f"<Throttle {names} before {self.app!r}, state in {self.store!r}>"

    def _decide(
        self, environ: dict[str, Any], outer: OpenRequest | None
    ) -> tuple[OpenRequest | None, Decision]:
        """Ask the guards and the store. Errors of guardrails' own let the request pass."""
        if self._retry_queue.queue:
            self._retry_queue.release()
        open_request = None
        try:
            open_request = self._prepare(environ, outer)
            open_request, result = self._admission.enter(open_request, outer)
            decision = self._conclude(result, open_request, environ)
            if open_request is not outer or decision.outcome != PASSED:
                environ["guardrails.decision"] = decision
            if result is not None and decision.admitted:
                open_request.admitted()
        except BaseException as error:
            if is_failure(error):
                self._reporter.report(error, "guardrails failed on a request, which goes on unguarded")
                return open_request, Decision()
            if open_request is not None and open_request is not outer:
                open_request.release()
            raise
        return open_request, decision

    def _prepare(self, environ: dict[str, Any], outer: OpenRequest | None) -> OpenRequest:
        """The flight of this request: a new one, or the outer throttle's with our asks."""
        pid = os.getpid()
        if pid != self._pid:
            self._begin(pid, environ, outer)
        self._until_look -= 1
        if self._until_look <= 0:
            self._until_look = _REQUESTS_BETWEEN_LOOKS
            self._inspect(self._inspector.look_again, self._store_within(outer))
        if outer is not None:
            return self._prepare_within(outer, environ, pid)
        if request_hooks.before_request:
            request_hooks.request_comes()
        client = self._clients.read(environ)
        route = _route(self._route_table, environ)
        exempt = route.exempt or (client is not None and 0 in client.exempt)
        if self._exempt_callables and not exempt:
            exempt = self._exempt.chosen(environ, self._exempt_failed)
        requirements = (
            NO_REQUIREMENTS if exempt else self._route_table.requirements(route, client, environ)
        )
        open_request = self._new_flight(requirements, client, route, pid)
        open_request.outermost = True
        if exempt:
            open_request.exempt = True
        environ["guardrails.client"] = open_request.client or None
        environ[OPEN_REQUEST_KEY] = open_request
        return open_request

    def _new_flight(
        self, requirements: Sequence[KeyedRequirement], client: Client | None, route: Route, pid: int
    ) -> OpenRequest:
        open_request = OpenRequest(
            self.store, self._retry_queue, requirements, pid, client, route, self.guards, self._names
        )
        if self._obeys:
            open_request.interruptible = True
        return open_request

    def _begin(self, pid: int, environ: dict[str, Any], outer: OpenRequest | None) -> None:
        """What is done at the first request of a process, after every fork."""
        self._pid = pid
        cpu_clock.follow_greenlets()
        server = running_server(environ)
        self._inspect(self._inspector.begin, server)
        store = self._store_within(outer)
        self._obeys = self._interruptible and _is_seen(store) and interrupt.listen(server)
        if outer is None or self._own_store or self._obeys:
            self._inspect(self._register, server, store)
            request_hooks.begin(server, store)

    def _store_within(self, outer: OpenRequest | None) -> Store:
        """Where this request is counted: an inner throttle has the outer one's store, or its own."""
        return self.store if outer is None or self._own_store else outer.store

    def _register(self, server: Server, store: Store) -> None:
        """Show this worker on the scoreboard."""
        seen = _is_seen(store)
        facts = WorkerFacts(
            server.name,
            server.threads or 0,
            server.respawns,
            server.retire_signal,
            stacks.listen(server) if seen else 0,
            seen and interrupt.is_listening(),
            seen and stacks.at_a_signal(),
        )
        with suppress(StoreError):  # entering says so, and tries again
            store.register(facts)

    def _inspect(self, look: Callable[..., object], *facts: object) -> None:
        """Let a check look; one that fails costs nobody anything."""
        try:
            look(*facts)
        except Exception as error:
            self._reporter.report(error, "a check of the set-up failed")

    def _make_route_table(self, bound_guards: Sequence[BoundGuard]) -> RouteTable:
        self._bound_by_name.update((bound.name, bound) for bound in bound_guards)
        return RouteTable(
            bound_guards,
            self._exempt_paths,
            dry_run=self._dry_run,
            callable_failed=self._callable_failed,
            exempt_failed=self._exempt_failed,
            met_twice=self._met_twice,
        )

    def _route_table_within(self, outer: OpenRequest) -> RouteTable:
        """The planner to use inside: where a name is another guard's already, ours gets a number.

        Two guards under one name would share their state, and wipe out each other's.
        """
        taken = dict(zip(outer.names, outer.guards, strict=True))
        if all(taken.get(bound.name, bound.guard) == bound.guard for bound in self._bound_guards):
            return self._route_table
        route_table = self._route_tables_within.get(outer.names)
        if route_table is None:
            names = unique_names(self.guards, taken)
            route_table = self._route_tables_within[outer.names] = self._make_route_table(
                [
                    BoundGuard(bound.guard, name, bound.number)
                    for bound, name in zip(self._bound_guards, names, strict=True)
                ]
            )
        return route_table

    def _prepare_within(self, outer: OpenRequest, environ: dict[str, Any], pid: int) -> OpenRequest:
        """Take client, store and exemptions from the outer throttle, unless given our own."""
        if self._reads_client:
            client = self._clients.read(environ)
        else:
            client = outer.who and self._clients.same(outer.who)
        same_store = not self._own_store or _is_same(self.store, outer.store)
        asked_there = same_store and outer.is_open() and outer.pid == pid
        # Whom a flight is charged to, and who is banned by it, is its client: another has its own.
        shared = asked_there and not self._own_client
        route_table = self._route_table_within(outer) if same_store else self._route_table
        route = _route(route_table, environ)
        exempt = route.exempt or (client is not None and 0 in client.exempt)
        if self._exempt_callables and not exempt:
            exempt = self._exempt.chosen(environ, self._exempt_failed)
        if not self._own_exemptions and not self._reads_client:
            exempt = exempt or outer.exempt
        met = outer.guards if asked_there else ()
        if self._own_client:
            # Of another client a guard that counts by client is asked again.
            met = tuple(guard for guard in met if not guard.counts_by_client())
        requirements: Sequence[KeyedRequirement] = ()
        if not exempt:
            requirements = route_table.requirements(
                route, client, environ, met, as_usual=not shared and not met
            )
        if shared:
            outer.requirements = requirements
            outer.guards += self.guards
            outer.names += route_table.names
            outer.exempt = exempt
            outer.interruptible = outer.interruptible or self._obeys
            return outer
        open_request = self._new_flight(requirements, client, route, pid)
        open_request.exempt = exempt
        if same_store:
            open_request.store = outer.store
            open_request.guards = outer.guards + self.guards
            open_request.names = outer.names + route_table.names
        if self._own_client:
            environ["guardrails.client"] = open_request.client or None
        environ[OPEN_REQUEST_KEY] = open_request
        return open_request

    def _callable_failed(self, bound: BoundGuard, error: Exception) -> tuple[bytes | None, Any]:
        """A user's callable raised: the guard does not apply, or refuses."""
        refuses = bound.guard.on_error == "refuse"
        self._reporter.report(
            error,
            f"{bound.name}: a callable raised, so the guard "
            + ("refuses the request" if refuses else "does not apply"),
        )
        return (b"", bound.failure) if refuses else (None, None)

    def _client_failed(self, error: Exception) -> None:
        self._reporter.report(error, "client: the callable raised, so this request has no client")

    def _exempt_failed(self, error: Exception) -> None:
        self._reporter.report(error, "exempt: a callable raised, so it exempts nobody")

    def _met_twice(self, bound: BoundGuard) -> None:
        self._checks.warn(
            "guard-met-twice",
            bound.name,
            "%s: nested throttles meet it twice in one request, and it is charged once, so the inner "
            "one does nothing: leave one of them out, or give the inner one another path, figure or "
            "name",
            bound.name,
        )


def _route(route_table: RouteTable, environ: dict[str, Any]) -> Route:
    get = environ.get
    script = get("SCRIPT_NAME", "")
    return route_table.route(
        get("REQUEST_METHOD", "GET"),
        get("HTTP_HOST") or get("SERVER_NAME", ""),
        script + get("PATH_INFO", ""),
        script if script and "HTTP_SCRIPT_NAME" in environ else "",
    )


def _hand_back(environ: dict[str, Any], outer: OpenRequest, *, exempt: bool) -> None:
    """Whoever is asked next within the outer throttle finds everything as it was."""
    outer.exempt = exempt
    environ[OPEN_REQUEST_KEY] = outer
    environ["guardrails.client"] = outer.client or None


def _is_seen(store: Store) -> bool:
    """Whether anybody can look at it from outside: not where it is in this process's memory."""
    return hasattr(store, "name")


def _is_same(store: Store, other: Store) -> bool:
    """Whether two stores have one state: a name in shared memory may have been given twice."""
    name = getattr(store, "name", None)
    return store is other or (name is not None and name == getattr(other, "name", None))

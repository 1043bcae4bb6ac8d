"""throttle() and Throttle.__call__: the one place where a request flows.

    server -> route and client -> what the guards require -> store.enter
           -> refused: answer, count, one log line
           -> admitted: app -> response -> close: store.leave

Two rules hold here above all. No error of guardrails' own becomes a failed request: it is logged and
counted, and the request goes on. And each request that entered the store leaves it, on every path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NoReturn
from wsgiref.types import StartResponse, WSGIApplication

from guardrails.client.exemptions import Exempt, Exemptions
from guardrails.client.identity import DEFAULT_FORWARDED, DEFAULT_IPV6_PREFIX, Identity
from guardrails.client.one_client import OneClientCheck
from guardrails.client.reader import ClientReader
from guardrails.decision import Decision
from guardrails.errors import StoreError
from guardrails.guards.base import Guard
from guardrails.guards.bound import BoundGuard, unique_names
from guardrails.guards.option_checks import exempt_path_prefixes
from guardrails.options import check_bool, keyword_options, renamed_word
from guardrails.request.admission import Admission
from guardrails.request.build_checks import (
    check_app,
    check_exempt_paths,
    check_guards,
    check_slots,
    check_store,
    switch_position,
)
from guardrails.request.decisions import DecisionMaker
from guardrails.request.failures import FailureLog
from guardrails.request.nested import Nesting
from guardrails.request.open_request import REQUEST_KEY, OpenRequest
from guardrails.request.options import ClientCallable, OnDecision, OnStoreError
from guardrails.request.place_of_call import (
    place_of_call,
    warn_of_built_in_a_request,
    warn_of_moving_store,
)
from guardrails.request.refusal import refuse
from guardrails.request.routes import NO_REQUIREMENTS, RouteTable
from guardrails.request.setup_checks import SetupChecks
from guardrails.store.contract import DRY_RUN, OFF, Requirement, Store
from guardrails.store.records import WorkerFacts
from guardrails.store.urls import store_from_url, unnamed_store
from guardrails.worker import cpu_clock, interrupt
from guardrails.worker.process import WorkerProcess, current_process
from guardrails.worker.server import Server, running_server

_REQUESTS_BETWEEN_CHECKS = 1024


@keyword_options
def throttle(
    app: WSGIApplication,
    *guards: Guard,
    store: str | Store | None = None,
    trusted_proxies: str | Iterable[str] | None = None,
    proxy_hops: int | None = None,
    forwarded: str = DEFAULT_FORWARDED,
    client: ClientCallable | None = None,
    ipv6_prefix: int = DEFAULT_IPV6_PREFIX,
    exempt: Exempt = (),
    exempt_paths: str | Iterable[str] = (),
    silence: str | Iterable[str] = (),
    interruptible: bool = False,
    enabled: bool = True,
    dry_run: bool = False,
    on_decision: OnDecision | None = None,
    on_store_error: OnStoreError = "fallback",
) -> Throttle:
    """Put guards in front of a WSGI app. Nothing is started or opened before the first request.

    Args:
        app: the app.
        guards: what guards it, such as `SpeedLimit("120/minute")`.
        store: where the state is: a URL ("memory:", "shm:", "shm:NAME?clients=50000") or a store. None
            (the default) is a file in shared memory that belongs to the place of the call. The
            environment variable GUARDRAILS_STORE is used when no store is given.
        trusted_proxies: the networks of the proxies whose forwarding header is believed, "loopback",
            "private", or "unix" for a proxy on a unix socket. () says that peers are clients. With None
            (the default) per-client guards run dry behind a proxy that was not declared. They also do
            where a trusted proxy does not say which client a request is from.
        proxy_hops: how many proxies each request passes, where their networks are not known. The server
            must not be reachable except through them.
        forwarded: the header that the proxies write: "x-forwarded-for" (the default), "forwarded" (RFC
            7239), or another with an address or a list of addresses, such as "x-real-ip".
        client: environ -> address, or None if it is unknown. It replaces the three options before it.
        ipv6_prefix: how many bits of an IPv6 address make one client, from 16 to 128 (64).
        exempt: which clients are never throttled: networks, addresses, "loopback", "private", or
            callables of the environ.
        exempt_paths: prefixes of paths that are never throttled.
        silence: codes of checks (docs/errors.md) that are not logged.
        interruptible: start one thread per worker, through which a watchdog may end a single request by
            an exception (docs/watchdog.md); False by default.
        enabled: False switches all guards off. GUARDRAILS=off, dry-run or on in the environment
            overrides this and `dry_run`.
        dry_run: True refuses nothing, and says what would have been refused.
        on_decision: called with (decision, environ) for refusals and dry-run refusals.
        on_store_error: when the store fails, "fallback" (the default) counts in this process's memory,
            "allow" admits the request, "refuse" refuses it with 503.

    Returns:
        A WSGI app; its attribute `app` is what it wraps.

    Raises:
        ConfigurationError: an argument is wrong.
    """
    checks = SetupChecks(silence)
    place = place_of_call()
    warn_of_built_in_a_request(checks.warn, place)
    own_store = store is not None
    if store is None or store == "shm:":
        store = unnamed_store(place.file, place.line)
        warn_of_moving_store(checks.warn, place, store)
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
        checks=checks,
        interruptible=interruptible,
        position=switch_position(enabled, dry_run),
        on_decision=on_decision,
        on_store_error=renamed_word(on_store_error, {"deny": "refuse"}, "on_store_error"),
    )


class Throttle:
    """A WSGI app behind guards, as `throttle()` returns it.

    Attributes:
        app: the app that it wraps.
        guards: its guards.
        store: where its state is.
        errors: how many errors guardrails itself had, by the name of their class.
    """

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
        checks: SetupChecks,
        interruptible: bool,
        position: str,
        on_decision: OnDecision | None,
        on_store_error: OnStoreError,
    ) -> None:
        self.app: WSGIApplication = check_app(app)
        self.guards = tuple(check_guards(guards))
        self.store = store
        self._off = position == OFF
        self._dry_run = position == DRY_RUN
        self._interruptible = check_bool(interruptible, "interruptible")
        self._failures = FailureLog()
        self.errors = self._failures.errors
        self._checks = checks
        if not self.guards and position != OFF and not interruptible:
            checks.warn_no_guards()
        self._bound_guards = [
            BoundGuard(guard, name, number)
            for number, (guard, name) in enumerate(
                zip(self.guards, unique_names(self.guards), strict=True), 1
            )
        ]
        check_slots(self._bound_guards)
        self._names = tuple(bound.name for bound in self._bound_guards)
        store.declare(self._names)
        self._bound_by_name: dict[str, BoundGuard] = {}
        self._exempt = Exemptions(exempt)
        self._exempt_paths = exempt_path_prefixes(exempt_paths)
        check_exempt_paths(self._bound_guards, self._exempt_paths)
        self._routes = self._make_routes(self._bound_guards)
        self._clients = ClientReader(
            identity,
            [self._exempt.networks, *(bound.exempt.networks for bound in self._bound_guards)],
            self._checks.warn,
            self._client_failed,
        )
        self._one_client = OneClientCheck(self._clients.read, self._checks.warn)
        waits = any(bound.wait for bound in self._bound_guards)
        waits_briefly = any(bound.waits_briefly for bound in self._bound_guards)
        self._admission = Admission(
            on_store_error, self._failures, waits=waits, waits_briefly=waits_briefly
        )
        self._retry_queue = self._admission.retry_queue
        self._decisions = DecisionMaker(self._bound_by_name, self._failures, on_decision)
        self._nesting = Nesting(
            self, identity, own_store=own_store, own_exemptions=bool(self._exempt or self._exempt_paths)
        )
        # What belongs to the process that serves.
        self._worker: WorkerProcess | None = None
        self._allows_interrupts = False
        self._until_checks = _REQUESTS_BETWEEN_CHECKS

    @interrupt.calls_the_app
    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if self._off:
            return self.app(environ, start_response)
        if REQUEST_KEY in environ:
            outer = self._nesting.outer_request(environ)
            if outer is not None:
                return self._nesting.call(environ, start_response, outer)
        open_request = None
        try:
            try:
                open_request = self._open(environ)
                open_request, result = self._admission.enter(open_request, None)
                decision = self._decisions.decide(result, open_request, environ)
                environ["guardrails.decision"] = decision
            except Exception as error:
                self._failures.report(error, "guardrails failed on a request, which goes on unguarded")
                decision = Decision()
            if not decision.admitted and open_request is not None:
                return self._refuse(decision, open_request, environ, start_response)
            if open_request is None:
                return self.app(environ, start_response)
            return open_request.call(self.app, environ, start_response)  # type: ignore[no-any-return]
        except BaseException:
            if open_request is not None:
                open_request.release()
            raise

    def _open(self, environ: dict[str, Any]) -> OpenRequest:
        """Find out who asks for what, and what the guards require for it."""
        worker = current_process()
        self._until_checks -= 1
        if worker is not self._worker or self._until_checks <= 0 or self._retry_queue.waiting:
            self.prepare_process(worker, environ, self.store)
        if worker.hooks.before_request:
            worker.hooks.request_comes()
        client = self._one_client.read(environ)
        # Before the first callable of the user's, which may count by it.
        environ["guardrails.client"] = None if client is None else client.text
        route = self._routes.find(environ)
        requirements = self._routes.requirements(route, client, environ)
        open_request = OpenRequest(
            self.store,
            self._retry_queue,
            requirements,
            worker,
            client,
            route,
            self.guards,
            self._names,
        )
        open_request.is_outermost = True
        # An exempt request enters the store too, so that the scoreboard shows it.
        open_request.exempt = requirements is NO_REQUIREMENTS
        open_request.interruptible = self._allows_interrupts
        environ[REQUEST_KEY] = open_request.token
        return open_request

    def _refuse(
        self,
        decision: Decision,
        open_request: OpenRequest,
        environ: dict[str, Any],
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        # This request is over: a server that calls again with the same environ asks anew.
        open_request.forget()
        if open_request.worker.hooks.after_refusal:
            open_request.worker.hooks.request_refused()
        return refuse(decision, environ, start_response, drain=open_request.may_drain)

    def prepare_process(self, worker: WorkerProcess, environ: dict[str, Any], store: Store) -> None:
        """Do what is due before a request: at the first one of a process, and now and then."""
        if worker is not self._worker:
            self._start_process(worker, environ, store)
        self._retry_queue.retry()
        if self._until_checks <= 0:
            self._until_checks = _REQUESTS_BETWEEN_CHECKS
            self._one_client.begin()
            self._check(
                self._checks.check_traffic, self._bound_by_name, store, _REQUESTS_BETWEEN_CHECKS
            )

    def _start_process(self, worker: WorkerProcess, environ: dict[str, Any], store: Store) -> None:
        """At the first request of a process, and so after every fork."""
        self._worker = worker
        self._one_client.begin()
        self._admission.start_process()
        cpu_clock.follow_greenlets()
        server = running_server(environ)
        guards = list(self._bound_by_name.values())
        self._check(self._checks.start_process, guards, server, self.store, environ)
        self._allows_interrupts = (
            self._interruptible and _is_shared(store) and worker.interrupts.install(server)
        )
        if store is not self.store:
            store.declare(self._names)
        # The outer throttle has registered this worker already. An inner one does so only in a store of
        # its own, or to show that it allows interrupts.
        if REQUEST_KEY not in environ or store is self.store or self._allows_interrupts:
            self._check(self._register, worker, server, store)
            worker.hooks.start(server, store)

    def _register(self, worker: WorkerProcess, server: Server, store: Store) -> None:
        """Show this worker on the scoreboard."""
        shared = _is_shared(store)
        # First, since it decides whether `at_a_signal` is true.
        dump_signal = worker.stacks.install(server) if shared else 0
        facts = WorkerFacts(
            server=server.name,
            threads=server.threads or 0,
            respawns=server.respawns,
            retire_signal=server.retire_signal,
            dump_signal=dump_signal,
            interruptible=shared and worker.interrupts.is_installed(),
            asked_by_signal=shared and worker.stacks.at_a_signal,
        )
        with suppress(StoreError):  # the next enter() reports it, and registers again
            store.register(facts)

    def _check(self, check: Callable[..., object], *facts: object) -> None:
        """Run a check of the set-up. If the check raises, that does not fail the request."""
        try:
            check(*facts)
        except Exception as error:
            self._failures.report(error, "a check of the set-up failed")

    def _make_routes(self, bound_guards: Sequence[BoundGuard]) -> RouteTable:
        self._bound_by_name.update((bound.name, bound) for bound in bound_guards)
        return RouteTable(
            bound_guards,
            self._exempt,
            self._exempt_paths,
            dry_run=self._dry_run,
            callable_failed=self._callable_failed,
            exempt_failed=self._exempt_failed,
            met_twice=self._checks.warn_met_twice,
            gives_nothing=self._checks.warn_gives_nothing,
        )

    def _callable_failed(
        self, bound: BoundGuard, error: Exception
    ) -> tuple[bytes | None, Requirement | None]:
        """Report a callable of the user's that raised: the guard does not apply, or refuses."""
        refuses = bound.guard.on_error != "allow"
        self._failures.report(
            error,
            f"{bound.name}: a callable raised, so the guard "
            + ("refuses the request" if refuses else "does not apply"),
        )
        return (b"", bound.failure) if refuses else (None, None)

    def _client_failed(self, error: Exception) -> None:
        self._failures.report(error, "client: the callable raised, so this request has no client")

    def _exempt_failed(self, error: Exception) -> None:
        self._failures.report(error, "exempt: a callable raised, so it exempts nobody")

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"{type(self).__name__} has no attribute {name!r}: it stands in for the WSGI app that it "
            "wraps, which is at .app; to keep your framework's object write "
            "app.wsgi_app = guardrails.throttle(app.wsgi_app, ...)"
        )

    def __repr__(self) -> str:
        names = ", ".join(map(repr, self._bound_by_name))
        return f"<Throttle {names} before {self.app!r}, state in {self.store!r}>"


def _is_shared(store: Store) -> bool:
    """Return whether other processes can look at a store: not where it is in this one's memory."""
    return hasattr(store, "name")

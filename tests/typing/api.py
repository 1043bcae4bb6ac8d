"""The public API as users write it: type-checked by mypy --strict, never executed."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication

import guardrails
from guardrails import (
    BlockAgents,
    ConfigurationError,
    CPUThrottle,
    Death,
    Decision,
    Guard,
    GuardrailsError,
    InFlight,
    MaxConcurrentReqs,
    ResourceLimits,
    SizeLimit,
    SpeedLimit,
    Store,
    StoreError,
    Throttle,
    Usage,
    Watchdog,
    Worker,
    open_store,
    rlimits,
    size_limit,
    testing,
    throttle,
)


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello\n"]


class Framework:
    """A Flask-like object, whose WSGI app is one of its attributes."""

    def __init__(self) -> None:
        self.wsgi_app: WSGIApplication = app


framework = Framework()
framework.wsgi_app = guardrails.throttle(
    framework.wsgi_app,
    BlockAgents.from_file("badagents.txt"),
    SpeedLimit("120/minute", burst=60),
    MaxConcurrentReqs(10, path="/perl/morphing", methods=["GET", "PUT", "POST"]),
    CPUThrottle("20%", window="15s"),
    exempt=["192.0.2.0/24"],
    exempt_paths=["/static/", "/healthz"],
    trusted_proxies=["10.0.0.0/8"],
)
post_fork = guardrails.rlimits(DATA="1G", CORE=0, NOFILE=4096)
when_ready = on_reload = guardrails.watchdog(
    "3m", exempt_paths=["/upload"], path_timeout={"/reports": "10m"}, pressure={"memory": 20}, ban=600
)
guardrails.watchdog(
    probe="http://127.0.0.1/",
    on_failure=["SIGHUP", "restart shop"],
    log=Path("a.log"),
    logrotate=Path("a.conf"),
    memory="10%",
)
guardrails.watchdog(backups=5)  # type: ignore[call-arg]
guardrails.watchdog(dry_run="yes")  # type: ignore[arg-type]
guardrails.watchdog(pressure={"net": 20})  # type: ignore[dict-item]
guardrails.watchdog(tiemout="3m")  # type: ignore[call-arg]


# A throttle is a WSGI app, and so is a guard before one.
a_throttle: Throttle = throttle(app)
as_an_app: WSGIApplication = a_throttle
wrapped: WSGIApplication = a_throttle.app
middleware: Throttle = SpeedLimit("10/second")(app, store="memory:", dry_run=True)
nested: WSGIApplication = throttle(throttle(app, SpeedLimit("1/s")), MaxConcurrentReqs(5))


@SpeedLimit("10/second")
def decorated(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    return app(environ, start_response)


as_decorated: WSGIApplication = decorated


# What every guard takes.
SpeedLimit(
    "10/second",
    name="login",
    path=["/login", "/reset"],
    methods=["POST"],
    host=["example.org", "www.example.org"],
    exempt=["192.0.2.0/24"],
    exempt_paths=["/login/help"],
    status=503,
    dry_run=True,
    ban="20m",
    wait="2s",
    on_error="refuse",
    by="header:X-Api-Key",
)
SpeedLimit("10/second", path="/login", methods=("POST",), host="example.org", ban=1200, wait=0.5)
SpeedLimit("10/second", path=re.compile("/user/[0-9]+"), methods="POST")


guards: list[Guard] = [SpeedLimit("10/second"), BlockAgents("curl"), CPUThrottle(20)]
throttle(app, *guards)


# Tiers, costs and keys of one's own.
def tier(environ: dict[str, Any]) -> str | None:
    return "100/second" if "HTTP_X_API_KEY" in environ else None


def pages(environ: dict[str, Any]) -> int:
    return 5 if environ["PATH_INFO"] == "/export" else 1


def tenant(environ: dict[str, Any]) -> str | None:
    return environ.get("HTTP_X_TENANT")


SpeedLimit("10/second", by=["user", "client"])
SpeedLimit("10/second", by=("header:X-Api-Key", tenant, "all"))
SpeedLimit("10/second", by=["user", 7])  # type: ignore[list-item]
SpeedLimit("10/second", dry_run="no")  # type: ignore[arg-type]


def workers(environ: dict[str, Any]) -> int | None:
    return 3


def share(environ: dict[str, Any]) -> str | float | None:
    return 12.5


SpeedLimit(tier, cost=pages, by=tenant, strict=True, burst=3)
MaxConcurrentReqs(workers, by=tenant, hold="call", max_hold="1h")
CPUThrottle(share, window=15, resume=0.25, at_once=2, by="client+agent")
CPUThrottle(20)
BlockAgents("curl", r"python-requests/\d", missing="refuse", ban="1h")
BlockAgents.from_file(Path("badagents.txt"), path="/api", missing="refuse")


def note(decision: Decision, environ: dict[str, Any]) -> None:
    admitted: bool = decision.admitted
    outcome: str = decision.outcome
    guard: str | None = decision.guard
    key: str | None = decision.key
    retry_after: int | None = decision.retry_after
    remaining: int | None = decision.remaining
    status: int | None = decision.status
    number: int = decision.id
    if decision.outcome == guardrails.REJECTED_DRY_RUN:
        return
    of_admitted = (guardrails.PASSED, guardrails.DELAYED, guardrails.DELAYED_DRY_RUN)
    assert admitted == (decision.outcome in of_admitted)
    assert admitted != (decision.outcome == guardrails.REJECTED)
    print(admitted, outcome, guard, key, retry_after, remaining, status, number)  # noqa: T201


throttle(
    app,
    store=testing.memory_store(testing.Clock()),
    trusted_proxies=(),
    enabled=True,
    dry_run=False,
    on_decision=note,
    on_store_error="refuse",
)

# How a client is found.
throttle(app, trusted_proxies="loopback", forwarded="x-real-ip", exempt="192.0.2.7")
throttle(app, proxy_hops=2, ipv6_prefix=56, silence=["undeclared-proxy"], exempt_paths="/static")
throttle(app, client=lambda environ: environ.get("HTTP_X_TENANT_ADDRESS"))
throttle(app, exempt=["private", lambda environ: environ.get("HTTP_X_STAFF") == "yes"])
SpeedLimit("1/second", exempt=lambda environ: "HTTP_X_STAFF" in environ)

try:
    throttle(app, store="shm:shop?clients=50000")
except ConfigurationError as error:
    as_value_error: ValueError = error
except StoreError as failed:
    as_guardrails_error: GuardrailsError = failed


# Operators.
store: Store = open_store("shm:shop")
word: str = store.switch("dry-run", "login")
store.reset()
refused_so_far: int = store.counters()["login"].refused
slots: dict[str, int] = dict(store.slots_held())
paths: list[str] = [request.path for request in store.requests()]

in_flight: list[InFlight] = store.requests()
dead: list[Death] = store.deaths()
workers_seen: list[Worker] = store.workers()
limits: ResourceLimits = rlimits(AS="4G:8G")
largest: SizeLimit = guardrails.size_limit("512M")
used: dict[str, Usage] = guardrails.usage()
watching: Watchdog = guardrails.watchdog(timeout="3m")

for report in limits.apply():
    asked: int | None = report.soft
    soft, hard = report.after
rlimits({"CPU": "600:1200"}, defaults=True, cpu_per_request="2s", nice=5, NOFILE=1024)
size_limit("300M", resident="1G", every=10, jitter="20%", min_lifetime="5m").apply()


# Tests of guarded apps.
clock = testing.Clock()
client = testing.Client(
    throttle(app, store=testing.memory_store(clock)), address="192.0.2.7", agent=None
)
testing.assert_refused(client.get("/"), 429, guard="login", retry_after=60)
clock.advance(60)

# What is wrong is wrong to the type checker too: mypy reports an ignore that is not needed.
SpeedLimit(10)  # type: ignore[arg-type]
SpeedLimit("10/second", cout=5)  # type: ignore[call-arg]
SpeedLimit("10/second", on_error="raise")  # type: ignore[arg-type]
BlockAgents("curl", by="all")  # type: ignore[call-arg]
BlockAgents("curl", missing="block")  # type: ignore[arg-type]
BlockAgents("curl", ban=["1h"])  # type: ignore[arg-type]
BlockAgents.from_file("badagents.txt", mising="refuse")  # type: ignore[call-arg]
MaxConcurrentReqs("10")  # type: ignore[arg-type]
MaxConcurrentReqs(10, hold="for ever")  # type: ignore[arg-type]
throttle("app")  # type: ignore[arg-type]
throttle(app, "SpeedLimit")  # type: ignore[arg-type]
rlimits(GPU=1)  # type: ignore[call-arg]
rlimits(CPU=["600:"])  # type: ignore[arg-type]
size_limit(files="90%", threads=200).apply()
size_limit(threads="200")  # type: ignore[arg-type]
size_limit("300M", evry=10)  # type: ignore[call-arg]
throttle(app, exempt=7)  # type: ignore[arg-type]

"""What guardrails says of a set-up that looks like a mistake: once, under a code, never in the way."""

import threading
import urllib.request
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest

from guardrails import (
    BlockAgents,
    CPUThrottle,
    MaxConcurrentReqs,
    SpeedLimit,
    StoreError,
    testing,
    throttle,
)
from guardrails.request import setup_checks
from guardrails.request.setup_checks import CODES
from support import JOIN_SECONDS, Browser, Exchange, PassingStore, lines

REQUESTS_BETWEEN_LOOKS = 1024
DAY = 24 * 3600


class QuietHandler(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


class ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


@contextmanager
def served(app, server_class=WSGIServer):
    """The address of a real server with this app."""
    with make_server("127.0.0.1", 0, app, server_class, QuietHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join(JOIN_SECONDS)


def get(url):
    with urllib.request.urlopen(url, timeout=JOIN_SECONDS) as response:  # noqa: S310 - our own server
        return response.status


@pytest.fixture
def days(monkeypatch):
    """Lets days go by for the checks."""
    now = [1000.0]
    monkeypatch.setattr(setup_checks, "monotonic", lambda: now[0])

    def pass_by(count):
        now[0] += count * DAY

    return pass_by


@pytest.mark.parametrize(
    "trusted", [["0.0.0.0/0"], ["::/0"], ["0.0.0.0/1", "128.0.0.0/1"], ["10.0.0.0/8", "2000::/3"]]
)
def test_everything_trusted_is_said_at_the_start(caplog, trusted):
    throttle(testing.hello, SpeedLimit("1/s"), trusted_proxies=trusted)

    (line,) = lines(caplog, level="WARNING")
    assert line == (
        f"trusted_proxies={trusted} trusts every address, so each client can claim any address: "
        "name only the networks of your proxies, or say how many there are with proxy_hops=1 "
        "[everything-trusted]"
    )


@pytest.mark.parametrize("trusted", [["10.0.0.0/8"], ["private", "loopback"], ["fc00::/7"], [], "unix"])
def test_what_is_trusted_with_reason_is_not_remarked_on(caplog, trusted):
    throttle(testing.hello, SpeedLimit("1/s"), trusted_proxies=trusted)

    assert lines(caplog, level="WARNING") == []


def test_a_guard_that_nested_throttles_meet_twice_is_said(serve, caplog):
    guard = SpeedLimit("3/minute")
    site = serve(guard, app=throttle(testing.hello, guard))

    assert site.statuses(4) == [200, 200, 200, 429]
    (line,) = lines(caplog, level="WARNING")
    assert line == (
        "speed-limit client: nested throttles meet it twice in one request, and it is charged once, "
        "so the inner one does nothing: leave one of them out, or give the inner one another path, "
        "figure or name [guard-met-twice]"
    )


def test_guards_that_differ_are_not_the_same_guard(serve, caplog):
    site = serve(SpeedLimit("3/minute"), app=throttle(testing.hello, SpeedLimit("2/minute")))

    assert site.statuses(3) == [200, 200, 429]
    assert lines(caplog, level="WARNING") == []


def test_a_guard_that_met_nothing_in_a_day_is_said(serve, caplog, days):
    site = serve(
        SpeedLimit("1000000/hour"), SpeedLimit("1/hour", path="/serach"), BlockAgents("EvilBot")
    )
    site.get("/search")
    days(1)
    site.statuses(REQUESTS_BETWEEN_LOOKS, "/search")

    (line,) = lines(caplog, level="WARNING")
    assert line == (
        "speed-limit /serach client: no request that it covers has come in a day: compare its path, "
        "methods and host with what clients ask for (the case of a path counts), or leave it out "
        "[guard-never-matched]"
    )


def test_a_guard_that_met_something_or_is_new_is_not_remarked_on(serve, caplog, days):
    site = serve(SpeedLimit("1000000/hour", path="/search"))
    site.get("/")
    days(0.5)
    site.statuses(REQUESTS_BETWEEN_LOOKS)
    site.get("/search")
    days(1)
    site.statuses(REQUESTS_BETWEEN_LOOKS)

    assert lines(caplog, level="WARNING") == []


def test_a_guard_that_another_worker_met_is_not_remarked_on(serve, caplog, days):
    """Each throttle on one store is as a worker of its own."""
    here, there = (serve(SpeedLimit("1000000/hour", path="/search")) for _ in range(2))
    there.get("/search")
    here.get("/")
    days(2)
    here.statuses(REQUESTS_BETWEEN_LOOKS)

    assert lines(caplog, level="WARNING") == []


def test_a_guard_whose_path_nobody_asks_for_is_said_after_ten_thousand_requests(store, caplog):
    app = throttle(
        testing.hello,
        SpeedLimit("1/second", path="/Search"),
        SpeedLimit("1/second", path="/search", methods=["POST"]),
        SpeedLimit("1/second", path="/a", host="example.org"),
        MaxConcurrentReqs(2, path=["/x", "/y"]),
        store=store,
    )
    exchange = Exchange(app)
    for number in range(10_000):
        exchange.environ = environ_of_path("/a" if number % 2 else "/search")
        exchange.finish()
    assert lines(caplog, level="WARNING") == []

    for _ in range(REQUESTS_BETWEEN_LOOKS):
        exchange.environ = environ_of_path("/")
        exchange.finish()

    assert lines(caplog, level="WARNING") == [
        f"{name}: no request that it covers has come in the first 10240: compare its path, methods and "
        "host with what clients ask for (the case of a path counts), or leave it out "
        "[guard-never-matched]"
        for name in ("speed-limit /Search client", "max-concurrent /x /y all")
    ]


def environ_of_path(path):
    return {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
        "REMOTE_ADDR": "192.0.2.1",
        "HTTP_HOST": "localhost",
    }


@pytest.mark.parametrize("guard", [MaxConcurrentReqs(2), CPUThrottle("20%", at_once=2)])
def test_a_cap_that_the_server_cannot_reach_is_said(caplog, guard):
    app = throttle(testing.hello, guard, store="memory:")
    with served(app) as url:
        assert [get(url), get(url)] == [200, 200]

    (line,) = lines(caplog, level="WARNING")
    assert line == (
        f"{guard.default_name()}: a cap of 2 is never reached, since wsgiref with 1 process of 1 "
        "thread serves 1 at once: lower it below that, or leave it out [cap-above-threads]"
    )


def test_waiting_where_requests_come_one_at_a_time_is_said(caplog):
    app = throttle(testing.hello, MaxConcurrentReqs(1, wait="2s"), store="memory:")
    with served(app) as url:
        get(url)

    (line,) = lines(caplog, level="WARNING")
    assert line == (
        "max-concurrent all: wait= has no effect on wsgiref with 1 process of 1 thread: at most one in "
        "4 of a process's threads may wait, so that the others go on serving; give each process at "
        "least 4 threads, or leave wait= out [wait-without-threads]"
    )


def test_nothing_is_said_of_a_server_whose_threads_are_not_known(caplog):
    app = throttle(testing.hello, MaxConcurrentReqs(1000, wait="2s"), store="memory:")
    with served(app, ThreadingServer) as url:
        get(url)

    assert lines(caplog, level="WARNING") == []


def test_a_check_can_be_silenced_by_its_code(caplog):
    app = throttle(
        testing.hello,
        MaxConcurrentReqs(5, wait="2s"),
        store="memory:",
        silence=["cap-above-threads", "undeclared-proxy"],
    )
    with served(app) as url:
        get(url)

    (line,) = lines(caplog, level="WARNING")
    assert line.endswith("[wait-without-threads]")


def test_every_check_can_be_silenced(caplog, days):
    guard = SpeedLimit("1000000/minute", wait="1s")
    app = throttle(
        throttle(testing.hello, guard, silence=CODES),
        guard,
        MaxConcurrentReqs(5),
        SpeedLimit("1/hour", path="/never"),
        store=testing.memory_store(),
        silence=CODES,
    )
    with served(app) as url:
        get(url)
    site = Browser(app)
    for peer in ["127.0.0.1", "203.0.113.1", ""]:
        site.get("/", headers={"X-Forwarded-For": "1.2.3.4"}, environ_overrides={"REMOTE_ADDR": peer})
    throttle(
        testing.hello, SpeedLimit("1/s"), trusted_proxies="0.0.0.0/0", silence="everything-trusted"
    )
    throttle(testing.hello, silence="no-guards")
    days(1)
    site.statuses(REQUESTS_BETWEEN_LOOKS)

    assert lines(caplog, level="WARNING") == []


def test_each_guard_is_named_and_strangers_cannot_fill_the_log(serve, caplog, days):
    site = serve(SpeedLimit("1/hour", path="/serach"), SpeedLimit("1/hour", path="/logni"))
    for number in range(100):
        site.at(f"203.0.113.{number}").get("/", headers={"X-Forwarded-For": "198.51.100.7"})
    days(1)
    site.statuses(REQUESTS_BETWEEN_LOOKS)

    said = lines(caplog, level="WARNING")
    assert [line for line in said if line.endswith("[guard-never-matched]")] == [
        line for line in said if "/serach" in line or "/logni" in line
    ]
    assert len(said) == 16 + 2


def test_a_check_that_fails_leaves_requests_guarded(caplog, days):
    """A store that is gone for a moment must not open the gate."""

    class Unreadable(PassingStore):
        def counters(self):
            raise StoreError("store: gone for a moment")

    app = throttle(
        testing.hello, SpeedLimit("3/hour"), SpeedLimit("1/s", path="/never"), store=Unreadable()
    )
    site = Browser(app)
    site.get("/")
    days(1)

    statuses = site.statuses(REQUESTS_BETWEEN_LOOKS)

    assert statuses == [200, 200] + [429] * (REQUESTS_BETWEEN_LOOKS - 2)
    assert lines(caplog, level="ERROR")[0].startswith("a check of the set-up failed")

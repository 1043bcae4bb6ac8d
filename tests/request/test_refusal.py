"""A refusal as an HTTP answer: what is in it, and what is read of a body that nobody wants."""

import io
import socket
import time

import pytest

from guardrails import BlockAgents, MaxConcurrentReqs, SpeedLimit, testing, throttle
from support import Browser, Exchange

KILOBYTE = 1024
MOST = 256 * KILOBYTE

REFUSERS = {
    403: BlockAgents(".", missing="refuse"),
    429: SpeedLimit("1/hour", cost=lambda _environ: 2),
    503: SpeedLimit("1/hour", cost=lambda _environ: 2, status=503),
}
HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}


class Input(io.BytesIO):
    """A request's body that notes how much of it was read."""

    def __init__(self, size):
        super().__init__(b"x" * size)
        self.taken = 0

    def read(self, size=-1):
        assert size >= 0, "a read without a size may wait for ever"
        chunk = super().read(size)
        self.taken += len(chunk)
        return chunk


def refuse(guard, store, **facts):
    """A refused request, as the server sees it: its exchange, after the answer was read."""
    exchange = Exchange(throttle(testing.hello, guard, store=store), **facts)
    exchange.body = exchange.finish()
    return exchange


@pytest.fixture(params=sorted(REFUSERS))
def guard(request):
    """A guard that refuses everything, for each status that guardrails answers with."""
    return REFUSERS[request.param]


def test_a_refusal_says_in_plain_text_what_happened(guard, store):
    exchange = refuse(guard, store)

    assert exchange.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert exchange.body.decode().startswith(exchange.status + "\n\n")


def test_a_refusal_has_the_length_of_its_body(guard, store):
    exchange = refuse(guard, store)

    assert int(exchange.headers["Content-Length"]) == len(exchange.body) > 0


def test_a_refusal_is_never_stored_by_a_cache(guard, store):
    assert refuse(guard, store).headers["Cache-Control"] == "no-store"


def test_a_refusal_has_no_hop_by_hop_header(guard, store):
    assert not HOP_BY_HOP & {name.lower() for name in refuse(guard, store).headers}


def test_a_refused_head_has_no_body_but_the_same_headers(guard, store, clock):
    head = refuse(guard, store, REQUEST_METHOD="HEAD")
    get = refuse(guard, testing.memory_store())

    assert head.body == b""
    assert set(head.headers) == set(get.headers)
    assert head.headers["Content-Length"] == get.headers["Content-Length"]


def test_retry_after_is_whole_seconds_and_said_in_the_text_too(store, clock):
    app = throttle(testing.hello, SpeedLimit("1/minute"), store=store)
    Exchange(app).finish()
    clock.advance(0.5)
    exchange = Exchange(app)
    body = exchange.finish()

    assert exchange.headers["Retry-After"] == "60"
    assert b"Try again in 60 s." in body


def test_retry_after_is_at_least_a_second(store, clock):
    """A 0 would mean that the client may come at once, and it may not."""
    app = throttle(testing.hello, SpeedLimit("1000/second", burst=1), store=store)
    Exchange(app).finish()
    exchange = Exchange(app)
    exchange.finish()

    assert exchange.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("status", "phrase"), [(418, "I'm a Teapot"), (444, "Refused"), (451, "Unavailable")]
)
def test_any_status_of_a_refusal_has_a_phrase(store, status, phrase):
    exchange = refuse(BlockAgents(".", missing="refuse", status=status), store)

    assert exchange.status.lower().startswith(f"{status} {phrase}".lower())


def test_what_the_client_sent_is_nowhere_in_the_answer(guard, store):
    """No reflection: a refusal is made of guardrails' own words."""
    marker = "<script>m4rk3r"
    facts = {
        "PATH_INFO": f"/{marker}",
        "HTTP_USER_AGENT": marker,
        "HTTP_HOST": marker,
        "QUERY_STRING": marker,
    }
    exchange = refuse(guard, store, **facts)

    assert marker.encode() not in exchange.body
    assert marker not in str(exchange.headers)


# What is read of a body


def test_the_body_of_a_refused_request_is_read_so_that_the_client_sees_the_answer(store):
    body = Input(10 * KILOBYTE)
    refuse(REFUSERS[429], store, CONTENT_LENGTH=str(10 * KILOBYTE), **{"wsgi.input": body})

    assert body.taken == 10 * KILOBYTE


def test_at_most_256_kilobytes_are_read(store):
    body = Input(MOST * 2)
    refuse(REFUSERS[429], store, CONTENT_LENGTH=str(MOST * 2), **{"wsgi.input": body})

    assert body.taken == MOST


def test_no_more_is_read_than_the_client_said(store):
    """Behind it stands the next request of the connection."""
    body = Input(MOST)
    refuse(REFUSERS[429], store, CONTENT_LENGTH="100", **{"wsgi.input": body})

    assert body.taken == 100


def test_a_body_shorter_than_the_client_said_ends_the_reading(store):
    body = Input(10)
    exchange = refuse(REFUSERS[429], store, CONTENT_LENGTH="1000", **{"wsgi.input": body})

    assert body.taken == 10
    assert exchange.status.startswith("429")


@pytest.mark.parametrize("length", [None, "", "0", "-1", "many", "1e3"])
def test_without_a_content_length_nothing_is_read(store, length):
    """Of a chunked body nobody knows where it ends."""
    body = Input(KILOBYTE)
    facts = {} if length is None else {"CONTENT_LENGTH": length}
    app = throttle(testing.hello, REFUSERS[429], store=store)
    exchange = Exchange(app, **facts, **{"wsgi.input": body})
    if length is None:
        exchange.environ.pop("CONTENT_LENGTH", None)
    exchange.finish()

    assert body.taken == 0
    assert exchange.status.startswith("429")


def test_a_client_that_waits_to_be_asked_is_not_asked(store):
    """To read would send "100 Continue", and then the body comes."""
    body = Input(KILOBYTE)
    facts = {"CONTENT_LENGTH": str(KILOBYTE), "HTTP_EXPECT": "100-continue", "wsgi.input": body}
    refuse(REFUSERS[429], store, **facts)

    assert body.taken == 0


def test_nothing_is_read_of_a_blocked_agent(store):
    body = Input(KILOBYTE)
    refuse(REFUSERS[403], store, CONTENT_LENGTH=str(KILOBYTE), **{"wsgi.input": body})

    assert body.taken == 0


def test_nothing_is_read_of_who_is_banned(store):
    """A ban answers with the status of the guard that set it, but costs as little as a block."""
    app = throttle(testing.hello, SpeedLimit("1/minute", path="/login", ban="1h"), store=store)
    Exchange(app, "/login").finish()
    Exchange(app, "/login").finish()
    body = Input(KILOBYTE)
    exchange = Exchange(app, "/", CONTENT_LENGTH=str(KILOBYTE), **{"wsgi.input": body})
    exchange.finish()

    assert exchange.status.startswith("429")
    assert body.taken == 0


@pytest.mark.parametrize(
    "error", [OSError("gone"), TimeoutError(), ValueError("closed"), ConnectionResetError()]
)
def test_a_body_that_cannot_be_read_is_no_harm(store, error):
    class Broken:
        def read(self, size):
            raise error

    exchange = refuse(REFUSERS[429], store, CONTENT_LENGTH="10", **{"wsgi.input": Broken()})

    assert exchange.status.startswith("429")


def test_a_client_that_trickles_is_read_for_a_second_at_most(store, monkeypatch):
    """By the clock: each read of the trickle takes 0.3 s of it."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Trickle:
        reads = 0

        def read(self, size):
            self.reads += 1
            now[0] += 0.3
            return b"x"

    trickle = Trickle()
    refuse(REFUSERS[429], store, CONTENT_LENGTH="1000", **{"wsgi.input": trickle})

    assert trickle.reads == 4


@pytest.mark.parametrize("name", ["gunicorn.socket", "werkzeug.socket"])
def test_a_read_of_the_socket_is_bounded_and_its_timeout_put_back(store, name):
    """A read waits for all it asked for: on the socket below, the wait is given an end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(30.0)
        timeouts = []

        class Reading:
            def read(self, size):
                timeouts.append(ours.gettimeout())
                return b"x" * size

        facts = {"CONTENT_LENGTH": "10", "wsgi.input": Reading(), name: ours}
        refuse(REFUSERS[429], store, **facts)

        assert 0 < timeouts[0] <= 1.0
        assert ours.gettimeout() == 30.0


def test_the_body_of_an_admitted_request_is_the_apps(store):
    body = Input(KILOBYTE)
    app = throttle(testing.hello, SpeedLimit("9/second"), store=store)
    Exchange(app, CONTENT_LENGTH=str(KILOBYTE), **{"wsgi.input": body}).finish()

    assert body.taken == 0


def test_a_refusal_by_a_cap_is_read_too(store):
    site = Browser(throttle(testing.hello, MaxConcurrentReqs(1), store=store))
    body = Input(KILOBYTE)

    with site.hold():
        exchange = Exchange(
            throttle(testing.hello, MaxConcurrentReqs(1), store=store),
            CONTENT_LENGTH=str(KILOBYTE),
            **{"wsgi.input": body},
        )
        exchange.finish()

    assert exchange.status.startswith("503")
    assert body.taken == KILOBYTE

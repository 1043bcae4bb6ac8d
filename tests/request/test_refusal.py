"""A refusal as an HTTP answer: what is in it."""

import pytest

from guardrails import BlockAgents, SpeedLimit, testing, throttle
from support import Exchange

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

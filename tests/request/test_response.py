"""However a response ends, what was taken for it is given back, once."""

import gc
import threading

import pytest

from guardrails import BlockAgents, CPUThrottle, MaxConcurrentReqs, SpeedLimit, testing, throttle
from responses import AppError, Body, answering
from support import Browser, CountingStore, Exchange, nothing_is_left_in, slots_held

# Every way out


def test_an_app_that_raises_gives_everything_back(guarded, store):
    """At once: whoever keeps the environ or the traceback, as this test does, keeps no slot."""

    def app(environ, start_response):
        raise AppError

    exchange = Exchange(guarded(app))
    with pytest.raises(AppError):
        exchange.call()

    assert nothing_is_left_in(store)


@pytest.mark.parametrize("raise_at", ["iter", 0, 1])
def test_a_response_that_raises_gives_everything_back_when_it_is_closed(guarded, store, raise_at):
    body = Body(raise_at=raise_at)

    exchange = Exchange(guarded(answering(body)))
    with pytest.raises(AppError):
        exchange.finish()

    assert body.closed == 1
    assert nothing_is_left_in(store)


def test_a_response_whose_close_raises_gives_everything_back(guarded, store):
    exchange = Exchange(guarded(answering(Body(raise_at="close"))))
    with pytest.raises(AppError):
        exchange.finish()

    assert nothing_is_left_in(store)


def test_a_response_that_was_read_to_its_end_is_held_until_it_is_closed(guarded, store):
    exchange = Exchange(guarded(answering(Body()))).call()
    assert exchange.read() == b"onetwo"
    assert slots_held(store) == 1

    exchange.close()

    assert nothing_is_left_in(store)


@pytest.mark.parametrize("response", [lambda: [b"x"], Body, lambda: (b"x",), lambda: iter([b"x"])])
def test_closing_twice_gives_back_once(guarded, store, response):
    """The second close comes when another request holds the slot: that one keeps it."""
    app = guarded(answering(response))
    first = Exchange(app).call()
    first.close()
    second = Exchange(app).call()

    first.close()

    assert slots_held(store) == 1
    second.close()
    assert nothing_is_left_in(store)


def test_a_client_that_is_gone_in_the_midst_gives_everything_back(guarded, store):
    """The server reads no further, and closes."""
    body = Body()
    exchange = Exchange(guarded(answering(body))).call()
    next(iter(exchange.response))

    exchange.close()

    assert body.closed == 1
    assert nothing_is_left_in(store)


def test_a_generator_that_was_never_started_gives_everything_back(guarded, store):
    """Python runs no `finally` of such a generator, so nothing may hang on it."""

    def app(environ, start_response):
        yield b"never"

    exchange = Exchange(guarded(app)).call()
    assert slots_held(store) == 1

    exchange.close()

    assert nothing_is_left_in(store)


@pytest.mark.parametrize("response", [lambda: [b"x"], Body, lambda: (b"x",), lambda: iter([b"x"])])
def test_a_response_that_is_dropped_unclosed_gives_everything_back(guarded, store, response):
    exchange = Exchange(guarded(answering(response))).call()
    assert slots_held(store) == 1

    del exchange
    gc.collect()

    assert nothing_is_left_in(store)


def test_a_response_in_a_cycle_is_given_back_when_the_cycle_is_collected(guarded, store):
    exchange = Exchange(guarded(answering(Body))).call()
    exchange.environ["cycle"] = exchange

    del exchange
    gc.collect()

    assert nothing_is_left_in(store)


def test_a_response_may_be_closed_in_another_thread(guarded, store):
    exchange = Exchange(guarded(answering(Body()))).call()
    thread = threading.Thread(target=exchange.close)
    thread.start()
    thread.join(60)

    assert nothing_is_left_in(store)


@pytest.mark.parametrize("stop", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_stops_a_worker_passes_through_the_call(guarded, store, stop):
    def app(environ, start_response):
        raise stop

    exchange = Exchange(guarded(app))
    with pytest.raises(stop):
        exchange.call()

    assert nothing_is_left_in(store)


@pytest.mark.parametrize("stop", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("where", ["iter", 0, 1, "close"])
def test_what_stops_a_worker_passes_through_the_response(guarded, store, stop, where):
    exchange = Exchange(guarded(answering(Body(raise_at=where, error=stop))))
    with pytest.raises(stop):
        exchange.finish()

    assert nothing_is_left_in(store)


@pytest.mark.parametrize("times", [1, 2])
def test_the_same_holds_behind_two_throttles(guarded, store, times):
    """Also where the inner one keeps a store of its own."""
    inner_store = testing.memory_store() if times == 2 else None
    inner = throttle(answering(Body(raise_at=1)), MaxConcurrentReqs(3), store=inner_store)

    exchange = Exchange(guarded(inner))
    with pytest.raises(AppError):
        exchange.finish()

    assert nothing_is_left_in(store)
    assert inner_store is None or nothing_is_left_in(inner_store)


# What it costs the store


@pytest.mark.parametrize("guards", [0, 1, 4])
def test_a_request_enters_and_leaves_the_store_once_however_many_guards_it_meets(store, guards):
    some = [SpeedLimit("9/second"), MaxConcurrentReqs(3), CPUThrottle("20%"), BlockAgents("EvilBot")]
    counting = CountingStore(store)
    Browser(throttle(testing.hello, *some[:guards], store=counting)).get("/")

    assert counting.calls == ["enter", "leave"]


def test_a_refused_request_only_enters(store):
    counting = CountingStore(store)
    site = Browser(throttle(testing.hello, BlockAgents("guardrails"), store=counting))
    site.statuses(2)

    assert counting.calls == ["enter", "enter"]


def test_a_stream_of_many_chunks_costs_no_more(store):
    counting = CountingStore(store)
    app = throttle(answering(lambda: Body([b"x"] * 500)), CPUThrottle("20%"), store=counting)
    Exchange(app).finish()

    assert counting.calls == ["enter", "leave"]


def test_a_server_without_a_file_wrapper_may_say_so(store):
    app = throttle(testing.hello, MaxConcurrentReqs(1), store=store)

    assert Exchange(app, **{"wsgi.file_wrapper": None}).finish() == b"hello\n"

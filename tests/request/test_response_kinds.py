"""The app's response passes as it is: its kind, its length, its parts."""

from collections import deque

import pytest

from guardrails import CPUThrottle, MaxConcurrentReqs, testing, throttle
from responses import AppError, Body, answering, webob_request
from support import Browser, Exchange, nothing_is_left_in, slots_held


class ClosableList(list):
    closed = 0

    def close(self):
        self.closed += 1


class RenderedList(list):
    """A list whose parts are made while they are read."""

    def __iter__(self):
        return (part.upper() for part in super().__iter__())


class Deque(deque):
    """Sized, neither a list nor a tuple."""


# Lists, tuples, and what else has a length


def test_a_list_comes_back_as_a_list_with_its_length(guarded):
    """Wsgiref and waitress make a Content-Length of it."""
    response = Exchange(guarded(answering([b"one", b"two"]))).call().response

    assert isinstance(response, list)
    assert len(response) == 2
    assert response == [b"one", b"two"]
    response.close()


def test_a_tuple_keeps_its_length(guarded):
    exchange = Exchange(guarded(answering((b"one",)))).call()

    assert len(exchange.response) == 1
    assert exchange.read() == b"one"
    exchange.close()


def test_a_response_with_a_length_keeps_it_and_its_close(guarded, store):
    class Sized(Body):
        def __len__(self):
            return len(self.chunks)

    body = Sized()
    exchange = Exchange(guarded(answering(body))).call()

    assert len(exchange.response) == 2
    assert exchange.read() == b"onetwo"
    exchange.close()
    assert body.closed == 1
    assert nothing_is_left_in(store)


def test_a_list_of_the_apps_own_kind_keeps_its_close(guarded, store):
    body = ClosableList([b"one"])
    exchange = Exchange(guarded(answering(body))).call()

    assert len(exchange.response) == 1
    exchange.close()
    assert body.closed == 1
    assert nothing_is_left_in(store)


def behind_two(guarded, app, inner_store):
    """Guard an app twice; each throttle has a request of its own, and so a wrapper of its own."""
    return guarded(throttle(app, MaxConcurrentReqs(3), store=inner_store))


SIZED = [list, tuple, ClosableList, Deque]


@pytest.mark.parametrize("kind", SIZED)
@pytest.mark.parametrize("throttles", [1, 2])
def test_a_response_with_a_length_may_be_read_twice(guarded, kind, throttles):
    """As gevent's pywsgi reads it: to add up its Content-Length, and to send it."""
    app = answering(kind([b"one", b"two"]))
    app = guarded(app) if throttles == 1 else behind_two(guarded, app, testing.memory_store())
    exchange = Exchange(app).call()

    assert len(exchange.response) == 2
    assert sum(len(part) for part in exchange.response) == 6
    assert exchange.read() == b"onetwo"
    exchange.close()


@pytest.mark.parametrize("kind", [list, tuple, ClosableList])
@pytest.mark.parametrize("throttles", [1, 2])
def test_lists_and_tuples_stay_what_they_are(guarded, store, kind, throttles):
    inner_store = testing.memory_store()
    app = answering(kind([b"one"]))
    exchange = Exchange(
        guarded(app) if throttles == 1 else behind_two(guarded, app, inner_store)
    ).call()

    assert isinstance(exchange.response, tuple if kind is tuple else list)
    assert exchange.response == kind([b"one"])
    assert exchange.response[0] == b"one"
    assert slots_held(store) == 1
    assert slots_held(inner_store) == throttles - 1
    exchange.close()
    assert nothing_is_left_in(store)
    assert nothing_is_left_in(inner_store)


def test_a_list_that_iterates_in_its_own_way_does_so(guarded, store):
    exchange = Exchange(guarded(answering(RenderedList([b"one", b"two"])))).call()

    assert isinstance(exchange.response, list)
    assert list(exchange.response) == [b"ONE", b"TWO"]
    assert list(exchange.response) == [b"ONE", b"TWO"]
    exchange.close()
    assert nothing_is_left_in(store)


@pytest.mark.parametrize("kind", [list, tuple, ClosableList])
def test_webob_takes_the_body_out_of_a_list_as_without_guardrails(guarded, store, kind):
    app = answering(kind([b"one"]))
    bare, response = (webob_request().get_response(site) for site in (app, guarded(app)))
    response.app_iter.close()

    assert response.body == bare.body == b"one"
    assert response.content_length == bare.content_length
    assert nothing_is_left_in(store)


def test_the_close_of_a_list_is_called_once_however_often_the_server_closes(guarded, store):
    body = ClosableList([b"one"])
    exchange = Exchange(behind_two(guarded, answering(body), testing.memory_store())).call()

    exchange.close()
    exchange.close()

    assert body.closed == 1
    assert nothing_is_left_in(store)


def test_a_list_whose_close_raises_gives_everything_back(guarded, store):
    class BrokenList(list):
        def close(self):
            raise AppError

    exchange = Exchange(guarded(answering(BrokenList([b"one"]))))
    with pytest.raises(AppError):
        exchange.finish()

    assert nothing_is_left_in(store)


@pytest.mark.parametrize("where", ["iter", "close"])
@pytest.mark.parametrize("base", [list, tuple, deque])
def test_what_a_response_with_a_length_burns_is_charged(store, cpu, base, where):
    class Burning(base):
        def __iter__(self):
            if where == "iter":
                cpu.burn(1.51)
            return super().__iter__()

        def close(self):
            if where == "close":
                cpu.burn(1.51)

    site = Browser(
        throttle(answering(lambda: Burning([b"one"])), CPUThrottle("20%", window="15s"), store=store)
    )

    # Two requests of 1.51 s are more than 20% of 15 s.
    assert site.statuses(3) == [200, 200, 503]


# What some servers send as one part


@pytest.mark.parametrize("body", [b"hello", bytearray(b"hello"), memoryview(b"hello"), "hello"])
@pytest.mark.parametrize("throttles", [1, 2])
def test_a_text_for_a_response_is_handed_through(guarded, store, body, throttles):
    """As uWSGI serves it. Nothing can be closed, so the request is over when the app returns."""
    inner_store = testing.memory_store()
    app = answering(body)
    exchange = Exchange(
        guarded(app) if throttles == 1 else behind_two(guarded, app, inner_store)
    ).call()

    assert exchange.response is body
    assert nothing_is_left_in(store)
    assert nothing_is_left_in(inner_store)


def test_the_cpu_of_an_app_that_returns_bytes_is_charged(store, cpu):
    def app(environ, start_response):
        cpu.burn(1.51)
        return answering(b"")(environ, start_response)

    site = Browser(throttle(app, CPUThrottle("20%", window="15s"), store=store))

    assert site.statuses(3) == [200, 200, 503]


# Streams


def test_a_stream_gets_no_length(guarded):
    exchange = Exchange(guarded(answering(Body()))).call()

    assert not hasattr(exchange.response, "__len__")
    exchange.close()


def test_a_stream_arrives_chunk_by_chunk(guarded):
    """No chunk is asked for before the one ahead of it was taken."""
    made = []

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])

        def chunks():
            for chunk in [b"one", b"two"]:
                made.append(chunk)
                yield chunk

        return chunks()

    exchange = Exchange(guarded(app)).call()
    assert made == []

    iterator = iter(exchange.response)
    assert next(iterator) == b"one"
    assert made == [b"one"]
    assert next(iterator) == b"two"
    assert made == [b"one", b"two"]
    exchange.close()


def test_the_next_part_of_a_generator_may_be_asked_for_as_such(guarded):
    exchange = Exchange(guarded(answering(lambda: (part for part in [b"one", b"two"])))).call()

    assert next(exchange.response) == b"one"
    assert list(exchange.response) == [b"two"]
    exchange.close()


def test_an_iterable_that_begins_anew_each_time_does_so(guarded, store):
    """As a response object of a framework, which a test reads twice."""

    class Anew:
        def __iter__(self):
            yield b"one"

    exchange = Exchange(guarded(answering(Anew()))).call()

    assert [exchange.read(), exchange.read()] == [b"one", b"one"]
    assert not hasattr(exchange.response, "__len__")
    exchange.close()
    assert nothing_is_left_in(store)


def test_an_empty_chunk_is_passed_on(guarded):
    exchange = Exchange(guarded(answering(Body([b"", b"x", b""])))).call()

    assert list(exchange.response) == [b"", b"x", b""]
    exchange.close()


def test_write_works(guarded, store):
    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"written ")
        return [b"returned"]

    exchange = Exchange(guarded(app))

    assert exchange.finish() == b"returned"
    assert exchange.written == [b"written "]
    assert nothing_is_left_in(store)


def test_status_headers_and_exc_info_reach_the_server_as_they_are(guarded):
    seen = []
    headers = [("Content-Type", "text/plain"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    error = (AppError, AppError(), None)

    def app(environ, start_response):
        start_response("500 Oops", headers, error)
        return []

    exchange = Exchange(guarded(app))
    exchange.start_response = lambda *answer: seen.append(answer)
    exchange.finish()

    assert seen == [("500 Oops", headers, error)]
    assert seen[0][1] is headers

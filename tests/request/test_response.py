"""However a response ends, what was taken for it is given back, once; and nothing of it is changed."""

import gc
import io
import threading
from wsgiref.util import FileWrapper

import pytest

from guardrails import BlockAgents, CPUThrottle, MaxConcurrentReqs, SpeedLimit, testing, throttle
from support import Browser, CountingStore, Exchange, nothing_is_left_in, slots_held


class AppError(Exception):
    """The app's own."""


class Body:
    """A response that notes how it was used, and raises where it is told to."""

    def __init__(self, chunks=(b"one", b"two"), *, raise_at=None, error=AppError):
        self.chunks = list(chunks)
        self.raise_at = raise_at
        self.error = error
        self.given = 0
        self.closed = 0

    def __iter__(self):
        if self.raise_at == "iter":
            raise self.error
        return self

    def __next__(self):
        if self.raise_at == self.given:
            raise self.error
        if self.given == len(self.chunks):
            raise StopIteration
        self.given += 1
        return self.chunks[self.given - 1]

    def close(self):
        self.closed += 1
        if self.raise_at == "close":
            raise self.error


def answering(response):
    """An app that answers with that response, or with what it returns when called."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return response() if callable(response) else response

    return app


@pytest.fixture
def guarded(store):
    """A guarded app that holds a slot, and its store's view of it."""

    def build(app, **options):
        return throttle(app, MaxConcurrentReqs(1), SpeedLimit("99/second"), store=store, **options)

    return build


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


# The response is the app's


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
    class ClosableList(list):
        closed = 0

        def close(self):
            self.closed += 1

    body = ClosableList([b"one"])
    exchange = Exchange(guarded(answering(body))).call()

    assert len(exchange.response) == 1
    exchange.close()
    assert body.closed == 1
    assert nothing_is_left_in(store)


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


# Files


class ServersWrapper:
    """A server's file wrapper of class type, as wsgiref's and waitress'."""

    def __init__(self, file, block_size=8192):
        self.file = file
        self.block_size = block_size

    def __iter__(self):
        return iter(lambda: self.file.read(self.block_size), b"")

    def close(self):
        self.file.close()


def wrapper_function(file, block_size=8192):
    """A server's file wrapper of function type, which returns the file itself, as uWSGI's."""
    return file


def serving(file, block_size=None):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        arguments = [file] if block_size is None else [file, block_size]
        return environ["wsgi.file_wrapper"](*arguments)

    return app


@pytest.mark.parametrize("wrapper", [FileWrapper, ServersWrapper])
def test_a_file_is_answered_with_the_servers_own_wrapper(guarded, store, wrapper):
    """The server asks with isinstance whether it may use sendfile, after the app has returned."""
    file = io.BytesIO(b"content")
    exchange = Exchange(guarded(serving(file)), **{"wsgi.file_wrapper": wrapper}).call()

    assert isinstance(exchange.response, exchange.environ["wsgi.file_wrapper"])
    assert type(exchange.response) is wrapper
    assert exchange.read() == b"content"
    assert slots_held(store) == 1
    exchange.close()
    assert file.closed
    assert nothing_is_left_in(store)


def test_the_block_size_reaches_the_server(guarded):
    file = io.BytesIO(b"content")
    exchange = Exchange(guarded(serving(file, 3)), **{"wsgi.file_wrapper": ServersWrapper}).call()

    assert list(exchange.response) == [b"con", b"ten", b"t"]
    exchange.close()


def test_a_wrapper_that_returns_the_file_itself_is_answered_with_a_file(guarded, store, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        exchange = Exchange(guarded(serving(file)), **{"wsgi.file_wrapper": wrapper_function}).call()

        assert exchange.response.fileno() == file.fileno()
        assert exchange.response.read() == b"content"
        assert slots_held(store) == 1
        exchange.close()
        assert file.closed
    assert nothing_is_left_in(store)


def test_a_file_that_is_read_by_iteration_is_whole(guarded, store, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\n")
    with path.open("rb") as file:
        exchange = Exchange(guarded(serving(file)), **{"wsgi.file_wrapper": wrapper_function}).call()

        assert list(exchange.response) == [b"one\n", b"two\n"]
        exchange.close()
    assert nothing_is_left_in(store)


def test_a_file_response_that_is_dropped_gives_everything_back(guarded, store):
    exchange = Exchange(
        guarded(serving(io.BytesIO(b"content"))), **{"wsgi.file_wrapper": ServersWrapper}
    ).call()
    assert slots_held(store) == 1

    del exchange
    gc.collect()

    assert nothing_is_left_in(store)


def test_a_file_whose_close_raises_gives_everything_back(guarded, store):
    class BrokenFile(io.BytesIO):
        def close(self):
            super().close()
            raise AppError

    exchange = Exchange(guarded(serving(BrokenFile(b"x"))), **{"wsgi.file_wrapper": ServersWrapper})

    with pytest.raises(AppError):
        exchange.finish()
    assert nothing_is_left_in(store)


def test_something_without_close_in_a_file_wrapper_gives_everything_back(guarded, store):
    class Readable:
        def __init__(self):
            self.left = [b"content"]

        def read(self, size):
            return self.left.pop() if self.left else b""

    exchange = Exchange(guarded(serving(Readable())), **{"wsgi.file_wrapper": ServersWrapper})

    assert exchange.finish() == b"content"
    assert nothing_is_left_in(store)


def test_an_app_may_wrap_a_file_and_answer_with_something_else(guarded, store):
    """The file is closed early; the response that is really given keeps its slot."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        environ["wsgi.file_wrapper"](io.BytesIO(b"unused")).close()
        return Body()

    exchange = Exchange(guarded(app), **{"wsgi.file_wrapper": ServersWrapper}).call()

    assert slots_held(store) == 1
    assert exchange.read() == b"onetwo"
    exchange.close()
    assert nothing_is_left_in(store)


def test_an_app_may_put_a_wrapped_file_into_a_response_of_its_own(guarded, store):
    """As a framework's middleware does; the response around it is what the server closes."""

    class Around:
        def __init__(self, inside):
            self.inside = inside

        def __iter__(self):
            return iter(self.inside)

        def close(self):
            self.inside.close()

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Around(environ["wsgi.file_wrapper"](io.BytesIO(b"content")))

    exchange = Exchange(guarded(app), **{"wsgi.file_wrapper": ServersWrapper}).call()

    assert exchange.read() == b"content"
    assert slots_held(store) == 1
    exchange.close()
    assert nothing_is_left_in(store)


def test_a_file_behind_two_throttles_is_still_the_servers_own(guarded, store):
    inner_store = testing.memory_store()
    inner = throttle(serving(io.BytesIO(b"content")), MaxConcurrentReqs(1), store=inner_store)
    exchange = Exchange(guarded(inner), **{"wsgi.file_wrapper": ServersWrapper}).call()

    assert type(exchange.response) is ServersWrapper
    assert slots_held(inner_store) == slots_held(store) == 1
    exchange.read()
    exchange.close()
    assert nothing_is_left_in(store)
    assert nothing_is_left_in(inner_store)


def test_the_servers_wrapper_is_put_back_when_the_app_raises(guarded):
    def app(environ, start_response):
        raise AppError

    exchange = Exchange(guarded(app), **{"wsgi.file_wrapper": ServersWrapper})
    with pytest.raises(AppError):
        exchange.call()

    assert exchange.environ["wsgi.file_wrapper"] is ServersWrapper


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

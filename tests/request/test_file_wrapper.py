"""Files that the app answers with by `wsgi.file_wrapper` reach the server as its own objects."""

import gc
import io
from wsgiref.util import FileWrapper

import pytest

from guardrails import MaxConcurrentReqs, testing, throttle
from responses import AppError, Body
from support import Exchange, nothing_is_left_in, slots_held


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


# The wrapper that the app sees


def using(use, *, wrapper=ServersWrapper, guarded):
    """What `use` makes of the environ within an app."""
    found = []

    def app(environ, start_response):
        found.append(use(environ))
        return testing.hello(environ, start_response)

    exchange = Exchange(guarded(app), **{"wsgi.file_wrapper": wrapper})
    exchange.finish()
    return found[0], exchange.environ


@pytest.mark.parametrize("wrapper", [FileWrapper, ServersWrapper])
def test_an_app_may_ask_whether_a_response_is_a_wrapped_file(guarded, wrapper):
    def use(environ):
        wrapped = environ["wsgi.file_wrapper"](io.BytesIO())
        kind = environ["wsgi.file_wrapper"]
        return isinstance(wrapped, kind), isinstance([], kind), issubclass(type(wrapped), kind)

    found, _environ = using(use, wrapper=wrapper, guarded=guarded)

    assert found == (True, False, True)


def test_a_question_that_the_servers_wrapper_cannot_answer_raises_as_it_does_without_guardrails(
    guarded,
):
    def use(environ):
        with pytest.raises(TypeError, match="isinstance"):
            isinstance([], environ["wsgi.file_wrapper"])

    using(use, wrapper=wrapper_function, guarded=guarded)


def test_the_wrapper_shows_what_the_servers_shows(guarded):
    found, _environ = using(lambda environ: environ["wsgi.file_wrapper"].__name__, guarded=guarded)

    assert found == "ServersWrapper"


@pytest.mark.parametrize("keywords", [{"block_size": 3}, {"file": io.BytesIO(b"con"), "block_size": 3}])
def test_keywords_reach_the_servers_wrapper(guarded, store, keywords):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        arguments = () if "file" in keywords else (io.BytesIO(b"con"),)
        return environ["wsgi.file_wrapper"](*arguments, **keywords)

    exchange = Exchange(guarded(app), **{"wsgi.file_wrapper": ServersWrapper}).call()

    assert exchange.response.block_size == 3
    assert exchange.read() == b"con"
    assert slots_held(store) == 1
    exchange.close()
    assert nothing_is_left_in(store)


def test_an_app_that_removes_the_wrapper_does_not_find_it_back(guarded):
    _found, environ = using(lambda environ: environ.pop("wsgi.file_wrapper"), guarded=guarded)

    assert "wsgi.file_wrapper" not in environ


def test_an_app_that_replaces_the_wrapper_finds_its_own_back(guarded):
    _found, environ = using(
        lambda environ: environ.update({"wsgi.file_wrapper": wrapper_function}), guarded=guarded
    )

    assert environ["wsgi.file_wrapper"] is wrapper_function


def test_the_wrapper_in_a_copy_of_the_environ_works_when_the_request_is_over(guarded, store):
    copied, _environ = using(dict, guarded=guarded)
    wrapped = copied["wsgi.file_wrapper"](file := io.BytesIO(b"late"))

    assert type(wrapped) is ServersWrapper
    assert list(wrapped) == [b"late"]
    wrapped.close()
    assert file.closed
    assert nothing_is_left_in(store)


# The file in it


@pytest.fixture
def wrapped_file(guarded, tmp_path):
    """The file that a server is given; it was opened from a disk."""
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\n")
    with path.open("rb") as file:
        exchange = Exchange(guarded(serving(file)), **{"wsgi.file_wrapper": wrapper_function}).call()
        yield exchange.response
        exchange.close()


def test_a_wrapped_file_is_of_the_class_of_the_file(wrapped_file):
    assert isinstance(wrapped_file, io.IOBase)
    assert isinstance(wrapped_file, io.BufferedReader)
    assert not isinstance(wrapped_file, io.TextIOBase)


def test_a_wrapped_file_has_all_methods_of_the_file(wrapped_file):
    assert next(wrapped_file) == b"one\n"
    assert wrapped_file.tell() == 4
    buffer = bytearray(4)
    assert wrapped_file.readinto(buffer) == 4
    assert buffer == b"two\n"
    assert wrapped_file.seek(0) == 0
    assert wrapped_file.readlines() == [b"one\n", b"two\n"]
    assert wrapped_file.readable()
    assert not wrapped_file.closed


def test_a_with_statement_closes_a_wrapped_file_and_releases_its_request(wrapped_file, store):
    with wrapped_file as file:
        assert file.read(3) == b"one"
        assert slots_held(store) == 1

    assert wrapped_file.closed
    assert nothing_is_left_in(store)

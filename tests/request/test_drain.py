"""The body of a refused request: what is read of it, and that nobody goes on reading it."""

import io
import socket
import time

import pytest
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser
from werkzeug.serving import DechunkedInput

from guardrails import BlockAgents, MaxConcurrentReqs, SpeedLimit, testing, throttle
from support import Browser, Exchange

KILOBYTE = 1024
MOST = 256 * KILOBYTE
REFUSES = SpeedLimit("1/hour", cost=lambda _environ: 2)
BLOCKS = BlockAgents(".", missing="refuse")
NEXT = b"GET /next HTTP/1.1\r\n"


class Connection:
    """The server's socket of a client that has sent so much, in so many pieces.

    Args:
        sent: what the client has sent.
        piece: how much of it comes at once.
        wait: seconds that each receive takes.
        clock: what tells the time; a list of one number.
    """

    def __init__(self, sent, piece=8192, wait=0.0, clock=None):
        self.sent = sent
        self.piece = piece
        self.wait = wait
        self.clock = clock or [0.0]
        self.taken = 0
        self.receives = 0
        self.timeouts = []
        self.timeout = 30.0

    def fileno(self):
        return -1

    def _decref_socketios(self):
        """What a file calls when it is closed."""

    def gettimeout(self):
        return self.timeout

    def settimeout(self, seconds):
        self.timeout = seconds

    def recv(self, size):
        return bytes(self._take(size))

    def recv_into(self, buffer):
        come = self._take(len(buffer))
        buffer[: len(come)] = come
        return len(come)

    def _take(self, size):
        self.receives += 1
        self.timeouts.append(self.timeout)
        self.clock[0] += self.wait
        come, self.sent = self.sent[: min(size, self.piece)], self.sent[min(size, self.piece) :]
        self.taken += len(come)
        return come

    def file(self, size=io.DEFAULT_BUFFER_SIZE):
        """The file that http.server, wsgiref, cheroot and gevent read from."""
        return io.BufferedReader(socket.SocketIO(self, "rb"), size)


@pytest.fixture
def clock(monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def refuse(store, body, guard=REFUSES, **facts):
    """Return the exchange of a refused request with this body."""
    app = throttle(testing.hello, guard, store=store)
    exchange = Exchange(app, **{"wsgi.input": body}, **facts)
    exchange.body = exchange.finish()
    return exchange


def gunicorn_request(connection, *headers):
    """Return what gunicorn makes of a connection: its parser, and the input of the request."""
    head = b"".join(b"\r\n" + header for header in headers)
    connection.sent = b"POST /login HTTP/1.1" + head + b"\r\n\r\n" + connection.sent
    parser = RequestParser(Config(), connection, ("192.0.2.1", 1))
    return parser, next(parser).body


# What is read


def test_the_body_of_a_refused_request_is_read_so_that_the_client_sees_the_answer(store):
    connection = Connection(b"x" * 10 * KILOBYTE)
    refuse(store, connection.file(), CONTENT_LENGTH=str(10 * KILOBYTE))

    assert connection.taken == 10 * KILOBYTE


def test_at_most_256_kilobytes_are_read(store):
    connection = Connection(b"x" * MOST * 2)
    refuse(store, connection.file(), CONTENT_LENGTH=str(MOST * 2))

    assert connection.taken == MOST


def test_behind_the_body_stands_the_next_request(store):
    file = Connection(b"x" * 100 + NEXT).file()
    refuse(store, file, CONTENT_LENGTH="100")

    assert file.readline() == NEXT


def test_a_body_shorter_than_the_client_said_ends_the_reading(store):
    connection = Connection(b"x" * 10)
    exchange = refuse(store, connection.file(), CONTENT_LENGTH="1000")

    assert connection.taken == 10
    assert exchange.status.startswith("429")


@pytest.mark.parametrize("length", [None, "", "0", "-1", "many", "1e3"])
def test_without_a_length_nothing_is_read(store, length):
    connection = Connection(NEXT)
    file = connection.file()
    app = throttle(testing.hello, REFUSES, store=store)
    exchange = Exchange(app, **{"wsgi.input": file})
    exchange.environ.pop("CONTENT_LENGTH", None)
    if length is not None:
        exchange.environ["CONTENT_LENGTH"] = length
    exchange.finish()

    assert connection.taken == 0
    assert exchange.status.startswith("429")
    assert file.readline() == NEXT


def test_a_chunked_body_is_read_where_the_server_knows_its_end(store):
    file = Connection(b"5\r\nhello\r\n0\r\n\r\n" + NEXT).file()
    facts = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    refuse(store, DechunkedInput(file), **facts)

    assert file.readline() == NEXT


def test_a_chunked_body_is_not_read_where_nobody_knows_its_end(store):
    connection = Connection(b"5\r\nhello\r\n0\r\n\r\n")
    refuse(store, connection.file(), HTTP_TRANSFER_ENCODING="chunked")

    assert connection.taken == 0


def test_a_client_that_waits_to_be_asked_is_not_asked(store):
    """To read would send "100 Continue", and then the body comes."""
    connection = Connection(b"x" * KILOBYTE)
    refuse(store, connection.file(), CONTENT_LENGTH=str(KILOBYTE), HTTP_EXPECT="100-continue")

    assert connection.taken == 0


def test_a_client_that_the_server_has_asked_already_is_read(store):
    connection = Connection(b"x" * KILOBYTE)
    facts = {"HTTP_EXPECT": "100-continue", "werkzeug.socket": connection}
    refuse(store, connection.file(), CONTENT_LENGTH=str(KILOBYTE), **facts)

    assert connection.taken == KILOBYTE


def test_the_body_of_an_admitted_request_is_the_apps(store):
    connection = Connection(b"x" * KILOBYTE)
    facts = {"CONTENT_LENGTH": str(KILOBYTE), "wsgi.input": connection.file()}
    Exchange(throttle(testing.hello, SpeedLimit("9/second"), store=store), **facts).finish()

    assert connection.taken == 0


def test_a_refusal_by_a_cap_is_read_too(store):
    app = throttle(testing.hello, MaxConcurrentReqs(1), store=store)
    connection = Connection(b"x" * KILOBYTE)
    facts = {"CONTENT_LENGTH": str(KILOBYTE), "wsgi.input": connection.file()}

    with Browser(app).hold():
        exchange = Exchange(app, **facts)
        exchange.finish()

    assert exchange.status.startswith("503")
    assert connection.taken == KILOBYTE


@pytest.mark.parametrize(
    "error", [OSError("gone"), TimeoutError(), ValueError("closed"), ConnectionResetError()]
)
def test_a_body_that_cannot_be_read_is_no_harm(store, error):
    class Broken(Connection):
        def recv_into(self, buffer):
            raise error

    exchange = refuse(store, Broken(b"").file(), CONTENT_LENGTH="10")

    assert exchange.status.startswith("429")


def test_an_input_that_is_not_known_is_not_read(store):
    """Its `read` may wait for ever."""

    class Unknown:
        def read(self, size):
            raise AssertionError("it was read")

    exchange = refuse(store, Unknown(), CONTENT_LENGTH="10")

    assert exchange.status.startswith("429")


# A client that trickles


def test_a_slow_client_is_read_for_a_second_though_the_servers_read_goes_on(store, clock):
    """By the clock: each 30 KB take 0.3 s of it."""
    connection = Connection(b"x" * MOST, piece=30 * KILOBYTE, wait=0.3, clock=clock)
    refuse(store, connection.file(100 * KILOBYTE), CONTENT_LENGTH=str(MOST))

    assert connection.receives == 4


def test_a_trickle_is_read_for_a_quarter_of_a_second(store, clock):
    connection = Connection(b"x" * 1000, piece=1, wait=0.1, clock=clock)
    refuse(store, connection.file(), CONTENT_LENGTH="1000")

    assert connection.receives == 3


def test_each_receive_has_the_rest_of_the_time_and_the_servers_timeout_is_put_back(store, clock):
    connection = Connection(b"x" * 1000, piece=1, wait=0.1, clock=clock)
    refuse(store, connection.file(), CONTENT_LENGTH="1000")

    assert connection.timeouts == pytest.approx([0.25, 0.15, 0.05], abs=0.001)
    assert connection.timeout == 30.0


@pytest.mark.parametrize("framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
def test_a_trickle_is_read_for_a_quarter_of_a_second_under_gunicorn(store, clock, framing):
    connection = Connection(b"1" * 1000, piece=1, clock=clock)
    parser, body = gunicorn_request(connection, framing)
    connection.wait, connection.receives = 0.1, 0
    facts = {"HTTP_TRANSFER_ENCODING": "chunked"} if b"chunked" in framing else {}
    refuse(store, body, **facts, CONTENT_LENGTH="1000", **{"wsgi.input_terminated": True})

    assert connection.receives == 3
    with pytest.raises(StopIteration):
        next(parser)
    assert connection.receives == 3


def test_the_server_cannot_go_on_reading_a_trickle(store, clock):
    connection = Connection(b"x" * 1000, piece=1, wait=0.3, clock=clock)
    file = connection.file()
    refuse(store, file, CONTENT_LENGTH="1000")

    assert file.read(1000) == b""
    assert connection.receives == 1


def test_what_came_of_a_trickle_is_not_taken_for_the_next_request(store, clock):
    connection = Connection(b"x" * 10 + NEXT, piece=8192, wait=2.0, clock=clock)
    file = connection.file()
    refuse(store, file, CONTENT_LENGTH="1000")

    assert file.readline() == b""


def test_under_gunicorn_a_connection_outlives_a_refusal(store):
    connection = Connection(b"x" * 100 + NEXT + b"\r\n")
    parser, body = gunicorn_request(connection, b"Content-Length: 100")
    refuse(store, body, CONTENT_LENGTH="100")

    assert next(parser).path == "/next"


# A client that is banned or blocked


def test_nothing_is_read_of_a_blocked_agent(store):
    connection = Connection(b"x" * KILOBYTE)
    refuse(store, connection.file(), BLOCKS, CONTENT_LENGTH=str(KILOBYTE))

    assert connection.taken == 0


def test_the_server_cannot_read_the_body_of_a_blocked_agent_either(store):
    connection = Connection(b"x" * KILOBYTE)
    file = connection.file()
    refuse(store, file, BLOCKS, CONTENT_LENGTH=str(KILOBYTE))

    assert file.read(KILOBYTE) == b""
    assert connection.taken == 0


def test_nothing_is_read_of_who_is_banned(store):
    """A ban answers with the status of the guard that set it, but costs as little as a block."""
    app = throttle(testing.hello, SpeedLimit("1/minute", path="/login", ban="1h"), store=store)
    Exchange(app, "/login").finish()
    Exchange(app, "/login").finish()
    connection = Connection(b"x" * KILOBYTE)
    facts = {"CONTENT_LENGTH": str(KILOBYTE), "wsgi.input": connection.file()}
    exchange = Exchange(app, "/", **facts)
    exchange.finish()

    assert exchange.status.startswith("429")
    assert connection.taken == 0


def test_a_blocked_agent_without_a_body_keeps_its_connection(store):
    file = Connection(NEXT).file()
    refuse(store, file, BLOCKS)

    assert file.readline() == NEXT


# The socket itself


@pytest.fixture
def sockets():
    """A server's end of a connection, which never waits, and the client's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def is_shut(connection):
    """Return whether a receive returns at once, though nothing was sent."""
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False


def test_the_socket_is_shut_for_reading_after_a_body_that_is_not_read(store, sockets):
    """Before gunicorn closes a connection it waits for the client, in the thread that accepts."""
    ours, _theirs = sockets
    refuse(store, ours.makefile("rb"), BLOCKS, CONTENT_LENGTH="1000")

    assert is_shut(ours)


def test_the_socket_is_not_shut_after_a_body_that_was_read(store, sockets):
    ours, theirs = sockets
    theirs.sendall(b"x" * 1000)
    refuse(store, ours.makefile("rb"), CONTENT_LENGTH="1000")

    assert not is_shut(ours)


@pytest.mark.parametrize(
    ("facts", "shut"),
    [
        ({"wsgi.multithread": False}, True),
        ({"HTTP_CONNECTION": "Close"}, True),
        ({"SERVER_PROTOCOL": "HTTP/1.0"}, True),
        ({"SERVER_PROTOCOL": "HTTP/1.0", "HTTP_CONNECTION": "keep-alive"}, False),
        ({}, False),
    ],
)
def test_gunicorn_does_not_wait_for_a_refused_client_where_it_closes_the_connection(
    store, sockets, facts, shut
):
    ours, theirs = sockets
    theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
    body = next(RequestParser(Config(), ours, ("192.0.2.1", 1))).body
    usual = {"gunicorn.socket": ours, "wsgi.multithread": True, "SERVER_PROTOCOL": "HTTP/1.1"}
    refuse(store, body, **(usual | facts))

    assert is_shut(ours) == shut

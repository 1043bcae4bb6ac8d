"""HTTP by hand: what goes over the wire is what a test wrote, byte for byte."""

import os
import socket
import struct
from contextlib import closing, suppress
from itertools import cycle
from typing import NamedTuple

SECONDS = 60
"""Nothing of a server is waited for longer."""


class Answer(NamedTuple):
    """What came back. `status` is 0 where nothing did."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self):
        return self.body.decode("latin-1")


NOTHING = Answer(0, {}, b"")


class Wire:
    """A connection to a server."""

    def __init__(self, port, *, seconds=SECONDS, receive_buffer=None, source=None):
        self._socket = socket.socket()
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._seen = b""
        try:
            if source is not None:
                self._socket.bind((source, 0))
            self._socket.settimeout(seconds)
            self._socket.connect(("127.0.0.1", port))
        except OSError:
            self._socket.close()
            raise

    def send(self, method, target, headers=(), body=b"", version="1.1"):
        """Send a request. Headers are pairs, or a mapping; a Host is added."""
        pairs = list(headers.items() if isinstance(headers, dict) else headers)
        if body and not any(name.lower() == "content-length" for name, _ in pairs):
            pairs.append(("Content-Length", str(len(body))))
        head = f"{method} {target} HTTP/{version}\r\nHost: localhost\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in pairs)
        self._socket.sendall(head.encode("latin-1") + b"\r\n" + body)

    def wait_at_most(self, seconds):
        """Set how long each later step may take."""
        self._socket.settimeout(seconds)

    def send_raw(self, more):
        self._socket.sendall(more)

    def receive(self):
        """Whatever comes next, empty at the end."""
        if self._seen:
            seen, self._seen = self._seen, b""
            return seen
        return self._socket.recv(65536)

    def until(self, mark):
        """Everything up to and with a mark, which must come."""
        seen = b""
        while mark not in seen:
            more = self.receive()
            if not more:
                raise ConnectionError(f"the connection ended before {mark!r}: {seen[-200:]!r}")
            seen += more
        end = seen.index(mark) + len(mark)
        self._seen = seen[end:]
        return seen[:end]

    def answer(self, method="GET"):
        """One whole answer; interim ones are passed over."""
        head = self.until(b"\r\n\r\n").decode("latin-1")
        status_line, *lines = head.split("\r\n")
        status = int(status_line.split(" ", 2)[1])
        if status < 200:
            return self.answer(method)
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if method == "HEAD" or status in (204, 304):
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, self._chunks())
        if "content-length" in headers:
            return Answer(status, headers, self._exactly(int(headers["content-length"])))
        return Answer(status, headers, self._rest())

    def reset(self):
        """End the connection as a client does that vanishes."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def close(self):
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()

    def _exactly(self, count):
        seen = b""
        while len(seen) < count:
            more = self.receive()
            if not more:
                raise ConnectionError(f"{len(seen)} of {count} bytes came")
            seen += more
        self._seen = seen[count:]
        return seen[:count]

    def _chunks(self):
        whole = b""
        while size := int(self.until(b"\r\n").split(b";")[0], 16):
            whole += self._exactly(size)
            self.until(b"\r\n")
        self.until(b"\r\n")
        return whole

    def _rest(self):
        seen = b""
        while more := self.receive():
            seen += more
        return seen


def ask(port, target="/", method="GET", headers=(), body=b"", seconds=SECONDS):
    """One request on a connection of its own; NOTHING where the server hung up without an answer."""
    with closing(Wire(port, seconds=seconds)) as wire:
        with suppress(OSError):  # it may have answered before it hung up
            wire.send(method, target, [*_pairs(headers), ("Connection", "close")], body)
        try:
            return wire.answer(method)
        except (OSError, ValueError):
            return NOTHING


def _pairs(headers):
    return headers.items() if isinstance(headers, dict) else headers


def _ports_of_this_process():
    """Ports below those that the system gives out, so that a restarted server finds its own free."""
    block, size = 12_000, 1_000
    first = block + size * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    begin = os.getpid() % size  # of two runs at once, on one machine
    return cycle([first + (begin + number) % size for number in range(size)])


_PORTS = _ports_of_this_process()


def free_port():
    """Return a port that no other process takes before the server does."""
    for port in _PORTS:
        with closing(socket.socket()) as trying, suppress(OSError):
            trying.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable: the ports are gone through again and again")

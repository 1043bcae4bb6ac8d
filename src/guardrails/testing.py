"""For tests of guarded apps: a clock, a client, an assertion, and apps that misbehave.

clock = testing.Clock()
app = guardrails.throttle(my_app, SpeedLimit("1/minute"), store=testing.memory_store(clock))
client = testing.Client(app)
assert client.get("/").status_code == 200
testing.assert_refused(client.get("/"), 429, retry_after=60)
clock.advance(60)
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication

from werkzeug.test import Client as _WerkzeugClient
from werkzeug.test import TestResponse

from guardrails.decision import Decision
from guardrails.store.memory import MemoryStore
from guardrails.units import MICROSECONDS


class Clock:
    """A clock for a store. It stands still until a test advances it; calling it returns the time.

    Args:
        seconds: the time at the start.
    """

    def __init__(self, seconds: float = 1_000.0) -> None:
        self._now = round(seconds * MICROSECONDS)
        self._lock = threading.Lock()

    def __call__(self) -> int:
        return self._now

    def advance(self, seconds: float) -> None:
        """Advance the clock by so many seconds."""
        with self._lock:
            self._now += round(seconds * MICROSECONDS)

    sleep = advance


def memory_store(clock: Clock | None = None) -> MemoryStore:
    """Return a new store in memory that uses the clock."""
    return MemoryStore(clock or Clock())


class Client(_WerkzeugClient):
    """werkzeug's test client, with an address and a user agent.

    Args:
        app: the WSGI app.
        address: the REMOTE_ADDR of its requests. The default is an address for documentation.
        agent: the User-Agent of its requests; None for none.
        **options: the options of werkzeug's client.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        address: str = "192.0.2.1",
        agent: str | None = "guardrails-testing",
        **options: Any,
    ) -> None:
        self._decisions: list[Decision | None] = []

        def recording(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
            response = app(environ, start_response)
            self._decisions.append(environ.get("guardrails.decision"))
            return response

        super().__init__(recording, **options)
        self.address = address
        self.agent = agent

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        """Send a request; see werkzeug's `Client.open`."""
        facts: dict[str, Any] = {"REMOTE_ADDR": self.address}
        if self.agent is not None:
            facts["HTTP_USER_AGENT"] = self.agent
        kwargs["environ_base"] = facts | (kwargs.get("environ_base") or {})
        self._decisions.clear()
        response = super().open(*args, **kwargs)
        if self._decisions:
            # The client gives the app a copy of the environ that the response shows.
            response.request.environ["guardrails.decision"] = self._decisions[-1]
        return response


def assert_refused(
    response: TestResponse,
    status: int | None = None,
    *,
    guard: str | None = None,
    retry_after: int | None = None,
) -> None:
    """Check that guardrails refused a request.

    Args:
        response: the response to a request of `Client`.
        status: the status that is expected.
        guard: the name of the guard that is expected to have refused.
        retry_after: the expected Retry-After, in seconds.

    Raises:
        AssertionError: the request was not refused, or in another way.
    """
    decision = response.request.environ.get("guardrails.decision")
    if decision is None:
        raise AssertionError(
            f"the response {response.status} has no decision: send the request with "
            "guardrails.testing.Client, and check that GUARDRAILS is not off"
        )
    if decision.admitted:
        raise AssertionError(f"the request was not refused: status {response.status}, {decision}")
    if status is not None and response.status_code != status:
        raise AssertionError(f"refused with {response.status}, not with {status}: {decision}")
    if guard is not None and decision.guard != guard:
        raise AssertionError(f"refused by {decision.guard!r}, not by {guard!r}")
    told = response.headers.get("Retry-After")
    if retry_after is not None and told != str(retry_after):
        raise AssertionError(f"Retry-After is {told}, not {retry_after}: {decision}")


def hello(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """A WSGI app that responds at once."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"hello\n"]


def hanging(release: threading.Event, most_seconds: float = 60.0) -> WSGIApplication:
    """Return an app that responds when `release` is set, or after `most_seconds`."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        release.wait(most_seconds)
        return hello(environ, start_response)

    return app


def spinning(cpu_seconds: float) -> WSGIApplication:
    """Return an app that uses so many seconds of CPU for each request."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        until = time.thread_time() + cpu_seconds
        while time.thread_time() < until:
            pass
        return hello(environ, start_response)

    return app


def sleeping(seconds: float) -> WSGIApplication:
    """Return an app that sleeps so many seconds before it responds."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        time.sleep(seconds)
        return hello(environ, start_response)

    return app


def waiting_for_lock(seconds: float) -> WSGIApplication:
    """Return an app that waits so many seconds for a lock that is never released."""
    lock = threading.Lock()
    lock.acquire()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        lock.acquire(timeout=seconds)
        return hello(environ, start_response)

    return app


def holding_the_gil(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """An app that never returns from C code, and keeps the GIL there.

    No other thread of its process runs any more. Only a signal that kills ends the process.
    """
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
    return hello(environ, start_response)


def printing_for_ever(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """An app that sends its process id, and then one NUL byte each second, without end."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield f"{os.getpid()}\n".encode()
    while True:
        time.sleep(1)
        yield b"\0"


def leaking(bytes_each: int, keep: Callable[[bytes], object] | None = None) -> WSGIApplication:
    """Return an app that keeps so many more bytes with each request.

    Args:
        bytes_each: how many bytes each request adds.
        keep: called with these bytes; by default they are kept in a list.
    """
    kept: list[bytes] = []
    keep = keep or kept.append

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        keep(bytes(bytes_each))
        return hello(environ, start_response)

    return app

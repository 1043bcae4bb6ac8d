"""For tests of apps that are guarded: a clock, a client, an assertion, apps that misbehave.

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
    """A store's clock that stands still until it is told to go on. Calling it reads it."""

    def __init__(self, seconds: float = 1_000.0) -> None:
        self._now = round(seconds * MICROSECONDS)
        self._lock = threading.Lock()

    def __call__(self) -> int:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        with self._lock:
            self._now += round(seconds * MICROSECONDS)

    sleep = advance


def memory_store(clock: Clock | None = None) -> MemoryStore:
    """A store of one's own, on that clock."""
    return MemoryStore(clock or Clock())


class Client(_WerkzeugClient):
    """werkzeug's test client with an address and an agent.

    address: REMOTE_ADDR, a documentation address by default.   agent: the User-Agent.
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
    """Check that guardrails refused, and if given with which status, by whom, for how long."""
    decision = response.request.environ.get("guardrails.decision")
    if decision is None:
        raise AssertionError(
            f"the response {response.status} carries no decision: send the request with "
            "guardrails.testing.Client, and see that GUARDRAILS is not off"
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
    """An app that answers at once."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"hello\n"]


def hanging(release: threading.Event, most_seconds: float = 60.0) -> WSGIApplication:
    """An app that answers when `release` is set, or after `most_seconds`."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        release.wait(most_seconds)
        return hello(environ, start_response)

    return app


def spinning(cpu_seconds: float) -> WSGIApplication:
    """An app that burns so much CPU for each request."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        until = time.thread_time() + cpu_seconds
        while time.thread_time() < until:
            pass
        return hello(environ, start_response)

    return app


def sleeping(seconds: float) -> WSGIApplication:
    """An app that sleeps for so long before it answers."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        time.sleep(seconds)
        return hello(environ, start_response)

    return app


def waiting_for_lock(seconds: float) -> WSGIApplication:
    """An app that waits for so long for a lock that nobody gives back."""
    lock = threading.Lock()
    lock.acquire()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        lock.acquire(timeout=seconds)
        return hello(environ, start_response)

    return app


def holding_the_gil(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """An app that never comes back from C code, where it keeps the interpreter's lock.

    Nothing else in its process runs any more, and nothing but a signal that kills ends it.
    """
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
    return hello(environ, start_response)


def printing_for_ever(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """An app that prints its pid, and then a NUL byte each second without end."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield f"{os.getpid()}\n".encode()
    while True:
        time.sleep(1)
        yield b"\0"


def leaking(bytes_each: int, keep: Callable[[bytes], object] | None = None) -> WSGIApplication:
    """An app that keeps so many bytes more with each request."""
    kept: list[bytes] = []
    keep = keep or kept.append

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        keep(bytes(bytes_each))
        return hello(environ, start_response)

    return app

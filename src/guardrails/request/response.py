"""The open response: it holds what the request was admitted with until it is closed.

Everything is given back on every path: the app raises, the iterable ends, `close` (which may come
twice), the client is gone, a generator is never started, the object is dropped, the app's own
`close` raises. Giving back is idempotent, so every path simply does it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from guardrails.client.identity import Client
from guardrails.guards.base import Guard
from guardrails.request.routes import Route
from guardrails.store.contract import (
    Debit,
    KeyedRequirement,
    RouteRequirements,
    Slot,
    Store,
    StoreRequest,
    charged,
    until_return,
)
from guardrails.worker import cpu_clock, interrupt
from guardrails.worker.hooks import here as request_hooks

DEBIT_INTERVAL = 1.0
"""Seconds between two debits while a response streams."""

_MOST_UNRELEASED = 65536

OPEN_REQUEST_KEY = "guardrails.open_request"
"""Where an inner throttle finds the outer one's flight in the environ."""


class ReleaseRetryQueue:
    """Flights whose leaving failed; each is tried again with the next request.

    on_error: told of each failure.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self.queue: deque[OpenRequest] = deque(maxlen=_MOST_UNRELEASED)
        self.on_error = on_error

    def add(self, open_request: OpenRequest) -> None:
        """Keep it for later."""
        self.queue.append(open_request)

    def release(self) -> None:
        """Try each once."""
        for _ in range(len(self.queue)):
            try:
                open_request = self.queue.popleft()
            except IndexError:
                return
            open_request.release()


class OpenRequest(StoreRequest):
    """A request between its admission and the end of its response.

    store: where it was admitted.   who: its client.   plan: what is known of such requests.
    guards, names: those of the throttles that it has met.   interruptible: whether one of these lets
    a watchdog end it.
    """

    released = False
    measuring = False
    cpu_nanoseconds = 0
    exempt = False
    _until_return: tuple[Slot, ...] = ()
    _charged: tuple[KeyedRequirement, ...] = ()
    _debit_at = 0.0
    _server_file_wrapper: Callable[..., Any] | None = None
    _file_response: object = None
    file_returned = False
    may_drain = False
    banned = False
    serving = False
    outermost = False
    interruptible = False

    def __init__(
        self,
        store: Store,
        retry_queue: ReleaseRetryQueue,
        requirements: Sequence[KeyedRequirement],
        pid: int,
        who: Client | None,
        route: Route,
        guards: tuple[Guard, ...],
        names: tuple[str, ...],
    ) -> None:
        self.store = store
        self.retry_queue = retry_queue
        self.requirements = requirements
        self.pid = pid
        self.who = who
        self.route = route
        self.guards = guards
        self.names = names
        self.thread = cpu_clock.identify()
        if who is not None:
            self.key = who.key
            self.client = who.text
            if not who.undeclared_proxy and not who.unreadable:
                self.ban_key = who.key

    method = property(lambda self: self.route.method)
    host = property(lambda self: self.route.host)
    path = property(lambda self: self.route.path)
    resource = property(lambda self: self.route.resource)

    def admitted(self) -> None:
        """Note what these asks charge with CPU, and which slots go when the app returns."""
        requirements = self.requirements
        if type(requirements) is RouteRequirements:
            if requirements.charged:
                self._charged += requirements.charged
            if requirements.until_return:
                self._until_return += requirements.until_return
        else:
            self._charged += charged(requirements)
            self._until_return += until_return(requirements)

    def call(self, app: Callable[..., Any], environ: dict[str, Any], start_response: Any) -> Any:
        """Call the app, and answer with its response, wrapped as thinly as its kind allows."""
        self.serving = True
        if environ.get("wsgi.file_wrapper"):
            response = self._call_with_file_wrapper(app, environ, start_response)
        else:
            response = self.measure(app, environ, start_response)
        if self._until_return:
            self._update(self._until_return)
        if type(response) is list or type(response) is tuple:
            # Whole and done: nothing more comes that an inner throttle could be about.
            environ.pop(OPEN_REQUEST_KEY, None)
            closing = ClosingList(response)
            closing.open_request = self
            return closing
        file_response, self._file_response = self._file_response, None
        if response is not None and response is file_response:
            self.file_returned = True
            return response
        if hasattr(response, "__len__"):
            return SizedResponse(response, self)
        return StreamedResponse(response, self)

    def _call_with_file_wrapper(
        self, app: Callable[..., Any], environ: dict[str, Any], start_response: Any
    ) -> Any:
        """Hear of files that the app wraps, for as long as it is called.

        Afterwards the server's own wrapper is back: some ask whether a response is an instance.
        """
        self._server_file_wrapper = environ["wsgi.file_wrapper"]
        environ["wsgi.file_wrapper"] = self._wrap_file
        try:
            return self.measure(app, environ, start_response)
        finally:
            environ["wsgi.file_wrapper"] = self._server_file_wrapper

    def is_open(self) -> bool:
        """Whether it has been admitted and its response is not over."""
        return bool(self.generation) and not self.released

    def companion(self) -> OpenRequest:
        """A flight of its own for what an inner throttle asks now."""
        return OpenRequest(
            self.store, self.retry_queue, self.requirements, self.pid, self.who, self.route, (), ()
        )

    def failed_admission(self) -> OpenRequest:
        """What a failing store may hold of this request, to be given back later; this starts anew."""
        left = OpenRequest(
            self.store, self.retry_queue, self.requirements, self.pid, self.who, self.route, (), ()
        )
        left.row, left.generation = self.row, self.generation
        self.row, self.generation, self.entered = -1, 0, False
        return left

    @interrupt.calls_the_app
    def measure(self, app: Callable[..., Any], environ: dict[str, Any], start_response: Any) -> Any:
        """Call the app, and note its CPU if anybody is charged for it."""
        if self.interruptible and self.generation:
            app = partial(interrupt.at_work, self.generation, app)
        if self.measuring or not self._charged:
            return app(environ, start_response)
        self.measuring = True
        started = cpu_clock.now()
        try:
            return app(environ, start_response)
        finally:
            self.cpu_nanoseconds += cpu_clock.now() - started

    def release(self) -> None:
        """Charge what is left to charge and give everything back. Any number of times."""
        if self.released or not (self.generation or self.serving):
            return
        try:
            if self.generation:
                self.store.leave(self, self._debits())
            self.released = True
        except Exception as error:
            self.retry_queue.add(self)
            self.retry_queue.on_error(error)
        except BaseException:
            self.retry_queue.add(self)
            raise
        if self.outermost:
            # Once, however often leaving has to be tried again.
            self.outermost = False
            if request_hooks.after_response:
                request_hooks.response_over(self)

    def __del__(self) -> None:
        if not self.released:
            self.release()

    @interrupt.calls_the_app
    def step(self, advance: Callable[[], Any]) -> Any:
        """Do one step of the response, and charge its CPU."""
        if not self._charged:
            return advance()
        started = cpu_clock.now()
        try:
            return advance()
        finally:
            self.cpu_nanoseconds += cpu_clock.now() - started
            now = time.monotonic()
            if now >= self._debit_at:
                if self._debit_at:
                    self._update(())
                self._debit_at = now + DEBIT_INTERVAL

    def _debits(self) -> Sequence[Debit]:
        if not self.cpu_nanoseconds:
            return ()
        microseconds = self.cpu_nanoseconds / 1000
        return [
            # Rounded up: what is charged is never less than what was used.
            Debit(meter, self.key if key is None else key, math.ceil(microseconds * requirement.cpu))
            for requirement, key, _ in self._charged
            for meter in requirement.meters
        ]

    def _update(self, release: Iterable[Slot]) -> None:
        try:
            self.store.update(self, self._debits(), tuple(release))
            self.cpu_nanoseconds = 0
        except Exception as error:
            self.retry_queue.on_error(error)

    def _wrap_file(self, file: Any, *block_size: int) -> Any:
        """Stands in for the server's wsgi.file_wrapper: its answer is the server's own object."""
        assert self._server_file_wrapper is not None  # noqa: S101 - set before the app runs
        self._file_response = self._server_file_wrapper(HookedFile(file, self), *block_size)
        return self._file_response


class ClosingList(list[bytes]):
    """A list response that gives back when it is closed. It keeps its length, which servers use."""

    __slots__ = ("open_request",)

    open_request: OpenRequest

    def close(self) -> None:
        """The response is done. Where it is dropped unclosed, the flight goes with it."""
        self.open_request.release()


class StreamedResponse:
    """An iterable response, passed on chunk by chunk."""

    __slots__ = ("_iterator", "_open_request", "_response")

    def __init__(self, response: Iterable[bytes], open_request: OpenRequest) -> None:
        self._response = response
        self._open_request = open_request
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        iterator = self._iterator
        advance = self._begin if iterator is None else iterator.__next__
        open_request = self._open_request
        if open_request.interruptible and open_request.generation:
            advance = partial(interrupt.at_work, open_request.generation, advance)
        return open_request.step(advance)  # type: ignore[no-any-return]

    @interrupt.calls_the_app
    def _begin(self) -> bytes:
        self._iterator = iterator = iter(self._response)
        return next(iterator)

    def close(self) -> None:
        """Close the app's response first: its CPU is the request's too."""
        response, self._response = self._response, ()
        try:
            close = getattr(response, "close", None)
            if close is not None:
                self._open_request.step(close)
        finally:
            self._open_request.release()

    def __del__(self) -> None:
        open_request = getattr(self, "_open_request", None)
        if open_request is not None:
            open_request.release()


class SizedResponse(StreamedResponse):
    """A response with a length, which a server may make a Content-Length of."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._response)  # type: ignore[arg-type]


class HookedFile:
    """The file of a `wsgi.file_wrapper` response: itself in everything, but heard when closed."""

    def __init__(self, file: Any, open_request: OpenRequest) -> None:
        self._file = file
        self._open_request = open_request

    def close(self) -> None:
        """Close the file and give back."""
        try:
            close = getattr(self._file, "close", None)
            if close is not None:
                close()
        finally:
            self._release()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __del__(self) -> None:
        self._release()

    def _release(self) -> None:
        # An app may wrap a file and then answer with something else.
        if self._open_request.file_returned:
            self._open_request.release()

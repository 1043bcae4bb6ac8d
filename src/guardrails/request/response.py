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

from guardrails.client.reader import Client
from guardrails.guards.base import Guard
from guardrails.request.routes import Plan
from guardrails.store.contract import (
    Ask,
    Asks,
    Debit,
    Slot,
    Store,
    Visit,
    charged,
    until_return,
)
from guardrails.worker import cpu_clock, interrupt
from guardrails.worker.hooks import here as occasions

DEBIT_INTERVAL = 1.0
"""Seconds between two debits while a response streams."""

_MOST_UNRELEASED = 65536

FLIGHT = "guardrails.flight"
"""Where an inner throttle finds the outer one's flight in the environ."""


class Unreleased:
    """Flights whose leaving failed; each is tried again with the next request.

    on_error: told of each failure.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self.queue: deque[Flight] = deque(maxlen=_MOST_UNRELEASED)
        self.on_error = on_error

    def add(self, flight: Flight) -> None:
        """Keep it for later."""
        self.queue.append(flight)

    def release(self) -> None:
        """Try each once."""
        for _ in range(len(self.queue)):
            try:
                flight = self.queue.popleft()
            except IndexError:
                return
            flight.settle()


class Flight(Visit):
    """A request between its admission and the end of its response.

    store: where it was admitted.   who: its client.   plan: what is known of such requests.
    guards, names: those of the throttles that it has met.   interruptible: whether one of these lets
    a watchdog end it.
    """

    settled = False
    measuring = False
    cpu_nanoseconds = 0
    exempt = False
    _until_return: tuple[Slot, ...] = ()
    _charged: tuple[Ask, ...] = ()
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
        unreleased: Unreleased,
        asks: Sequence[Ask],
        pid: int,
        who: Client | None,
        plan: Plan,
        guards: tuple[Guard, ...],
        names: tuple[str, ...],
    ) -> None:
        self.store = store
        self.unreleased = unreleased
        self.asks = asks
        self.pid = pid
        self.who = who
        self.plan = plan
        self.guards = guards
        self.names = names
        self.thread = cpu_clock.identify()
        if who is not None:
            self.key = who.key
            self.client = who.text
            if not who.undeclared_proxy and not who.unreadable:
                self.ban_key = who.key

    method = property(lambda self: self.plan.method)
    host = property(lambda self: self.plan.host)
    path = property(lambda self: self.plan.path)
    resource = property(lambda self: self.plan.resource)

    def admitted(self) -> None:
        """Note what these asks charge with CPU, and which slots go when the app returns."""
        asks = self.asks
        if type(asks) is Asks:
            if asks.charged:
                self._charged += asks.charged
            if asks.until_return:
                self._until_return += asks.until_return
        else:
            self._charged += charged(asks)
            self._until_return += until_return(asks)

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
            environ.pop(FLIGHT, None)
            closing = ClosingList(response)
            closing.flight = self
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
        return bool(self.generation) and not self.settled

    def companion(self) -> Flight:
        """A flight of its own for what an inner throttle asks now."""
        return Flight(self.store, self.unreleased, self.asks, self.pid, self.who, self.plan, (), ())

    def left_behind(self) -> Flight:
        """What a failing store may hold of this request, to be given back later; this starts anew."""
        left = Flight(self.store, self.unreleased, self.asks, self.pid, self.who, self.plan, (), ())
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

    def settle(self) -> None:
        """Charge what is left to charge and give everything back. Any number of times."""
        if self.settled or not (self.generation or self.serving):
            return
        try:
            if self.generation:
                self.store.leave(self, self._debits())
            self.settled = True
        except Exception as error:
            self.unreleased.add(self)
            self.unreleased.on_error(error)
        except BaseException:
            self.unreleased.add(self)
            raise
        if self.outermost:
            # Once, however often leaving has to be tried again.
            self.outermost = False
            if occasions.after_response:
                occasions.response_over(self)

    def __del__(self) -> None:
        if not self.settled:
            self.settle()

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
            Debit(meter, self.key if key is None else key, math.ceil(microseconds * demand.cpu))
            for demand, key, _ in self._charged
            for meter in demand.meters
        ]

    def _update(self, release: Iterable[Slot]) -> None:
        try:
            self.store.update(self, self._debits(), tuple(release))
            self.cpu_nanoseconds = 0
        except Exception as error:
            self.unreleased.on_error(error)

    def _wrap_file(self, file: Any, *block_size: int) -> Any:
        """Stands in for the server's wsgi.file_wrapper: its answer is the server's own object."""
        assert self._server_file_wrapper is not None  # noqa: S101 - set before the app runs
        self._file_response = self._server_file_wrapper(HookedFile(file, self), *block_size)
        return self._file_response


class ClosingList(list[bytes]):
    """A list response that gives back when it is closed. It keeps its length, which servers use."""

    __slots__ = ("flight",)

    flight: Flight

    def close(self) -> None:
        """The response is done. Where it is dropped unclosed, the flight goes with it."""
        self.flight.settle()


class StreamedResponse:
    """An iterable response, passed on chunk by chunk."""

    __slots__ = ("_flight", "_iterator", "_response")

    def __init__(self, response: Iterable[bytes], flight: Flight) -> None:
        self._response = response
        self._flight = flight
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        iterator = self._iterator
        advance = self._begin if iterator is None else iterator.__next__
        flight = self._flight
        if flight.interruptible and flight.generation:
            advance = partial(interrupt.at_work, flight.generation, advance)
        return flight.step(advance)  # type: ignore[no-any-return]

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
                self._flight.step(close)
        finally:
            self._flight.settle()

    def __del__(self) -> None:
        flight = getattr(self, "_flight", None)
        if flight is not None:
            flight.settle()


class SizedResponse(StreamedResponse):
    """A response with a length, which a server may make a Content-Length of."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._response)  # type: ignore[arg-type]


class HookedFile:
    """The file of a `wsgi.file_wrapper` response: itself in everything, but heard when closed."""

    def __init__(self, file: Any, flight: Flight) -> None:
        self._file = file
        self._flight = flight

    def close(self) -> None:
        """Close the file and give back."""
        try:
            close = getattr(self._file, "close", None)
            if close is not None:
                close()
        finally:
            self._settle()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __del__(self) -> None:
        self._settle()

    def _settle(self) -> None:
        # An app may wrap a file and then answer with something else.
        if self._flight.file_returned:
            self._flight.settle()

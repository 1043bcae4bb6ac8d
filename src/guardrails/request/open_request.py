"""A request between its admission and the end of its response.

What the request was admitted with is released on every path: the app raises, the iterable ends, `close`
is called (perhaps twice), the client is gone, a generator is never started, the object is dropped, the
app's own `close` raises. Releasing is idempotent, so every path simply does it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any
from weakref import ref

from guardrails.client.identity import Client
from guardrails.guards.base import Guard
from guardrails.request.file_wrapper import FILE_WRAPPER, FileWrapper
from guardrails.request.response import ClosingList, wrap_response
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
from guardrails.worker.process import WorkerProcess

DEBIT_INTERVAL = 1.0
"""Seconds between two debits of CPU while a response streams."""

REQUEST_KEY = "guardrails.request"
"""Where the environ has the token of its open request, by which an inner throttle finds the request."""

_MOST_RETRIED = 65536


class ReleaseRetryQueue:
    """Requests whose release failed; the next request of the throttle tries each of them again.

    Args:
        on_error: called with each failure.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self.waiting: deque[OpenRequest] = deque(maxlen=_MOST_RETRIED)
        self.on_error = on_error

    def add(self, open_request: OpenRequest) -> None:
        """Keep a request for later."""
        self.waiting.append(open_request)

    def retry(self) -> None:
        """Try each request once."""
        for _ in range(len(self.waiting)):
            try:
                open_request = self.waiting.popleft()
            except IndexError:
                return
            open_request.release()


class OpenRequest(StoreRequest):
    """A request that was admitted, or is about to be, and holds what it was admitted with.

    Args:
        store: where the request is admitted.
        retry_queue: where the request goes when its release fails.
        requirements: what the guards require of the store for it.
        worker: the process that serves it.
        who: its client; None if unknown.
        route: what is known of all requests with its method, host and path.
        guards: the guards of the throttles that it has met.
        names: the names of these guards.

    Attributes:
        exempt: whether no guard may refuse it.
        allowed: whether it is exempt by the allowance of robots.txt.
        may_drain: whether a refusal may read the request's body first.
        banned: whether it was refused because its client is banned.
        interruptible: whether a throttle lets a watchdog end it by an exception.
        is_outermost: whether no other throttle stands before the one that opened it.
        token: what the environ holds of it: apps may encode or copy an environ. The process finds the
            request by it until its response is closed. Then the token is 0.
        app_returned: whether the app's call is over, and the response is not.
    """

    exempt = False
    allowed = False
    may_drain = False
    banned = False
    interruptible = False
    is_outermost = False
    token = 0
    app_returned = False
    _released = False
    _serving = False
    _measuring = False
    _file_returned = False
    _cpu_nanoseconds = 0
    _debit_at = 0.0
    _charged: tuple[KeyedRequirement, ...] = ()
    _until_return: tuple[Slot, ...] = ()

    def __init__(
        self,
        store: Store,
        retry_queue: ReleaseRetryQueue,
        requirements: Sequence[KeyedRequirement],
        worker: WorkerProcess,
        who: Client | None,
        route: Route,
        guards: tuple[Guard, ...],
        names: tuple[str, ...],
    ) -> None:
        self.store = store
        self.retry_queue = retry_queue
        self.requirements = requirements
        self.worker = worker
        self.pid = worker.pid
        self.who = who
        self.route = route
        self.guards = guards
        self.names = names
        self.thread = cpu_clock.identify()
        if who is not None:
            self.key = who.key
            self.client = who.text
            if who.known:
                self.ban_key = who.key
        self.token = next(worker.request_tokens)
        # Weakly: a request that is dropped is released by that.
        worker.open_requests[self.token] = ref(self)

    method = property(lambda self: self.route.method)
    host = property(lambda self: self.route.host)
    path = property(lambda self: self.route.path)
    resource = property(lambda self: self.route.resource)

    def call(self, app: Callable[..., Any], environ: dict[str, Any], start_response: Any) -> Any:
        """Call the app, and return its response in the thinnest wrapper for its kind."""
        self._serving = True
        requirements = self.requirements
        if self.entered:
            if type(requirements) is RouteRequirements:
                self._charged = requirements.charged
                self._until_return = requirements.until_return
            else:
                self.note_charges()
        # A watchdog names a request by its generation. It is 0 for a request that is in no store.
        if self.interruptible and self.generation:
            app = self.interruptible_work(app)
        if environ.get(FILE_WRAPPER):
            response = self._call_with_file_wrapper(app, environ, start_response)
        else:
            response = self.measure(app, environ, start_response)
        if self._until_return:
            self._update(self._until_return)
        if type(response) is list:
            # The response is complete: no inner throttle can have anything to do with it.
            self.forget()
            closing = ClosingList(response)
            closing.open_request = self
            return closing
        self.app_returned = True
        return response if self._file_returned else wrap_response(response, self)

    def note_charges(self) -> None:
        """Note which requirements charge CPU, and which slots are released when the app returns."""
        self._charged += charged(self.requirements)
        self._until_return += until_return(self.requirements)

    @interrupt.calls_the_app
    def measure(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do some work of the app's, and note its CPU if a requirement charges it."""
        if self._measuring or not self._charged:
            return work(*arguments)
        self._measuring = True
        started = cpu_clock.now()
        try:
            return work(*arguments)
        finally:
            self._cpu_nanoseconds += cpu_clock.now() - started
            self._measuring = False

    @interrupt.calls_the_app
    def next_part(self, advance: Callable[[], Any]) -> Any:
        """Take the next part of a streaming response, and debit its CPU about once a second."""
        if self.interruptible and self.generation:
            advance = self.interruptible_work(advance)
        if not self._charged:
            return advance()
        try:
            return self.measure(advance)
        finally:
            now = time.monotonic()
            if now >= self._debit_at:
                if self._debit_at:
                    self._update(())
                self._debit_at = now + DEBIT_INTERVAL

    def interruptible_work(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same work, which a watchdog may interrupt."""
        return partial(self.worker.interrupts.at_work, self.generation, work)

    def is_open(self) -> bool:
        """Return whether it has been admitted and its response is not closed."""
        return bool(self.generation) and not self._released

    def forget(self) -> None:
        """Let nobody find this request by its token any more: who has the token makes a new request."""
        token, self.token = self.token, 0
        self.worker.open_requests.pop(token, None)

    def separate(self) -> OpenRequest:
        """Return a new request with the same facts, for what an inner throttle requires now."""
        return OpenRequest(
            self.store, self.retry_queue, self.requirements, self.worker, self.who, self.route, (), ()
        )

    def failed_admission(self) -> OpenRequest:
        """Return what a failing store may hold of this request, to be released later.

        This request itself has not been admitted anywhere after that.
        """
        left = self.separate()
        left.row, left.generation = self.row, self.generation
        self.row, self.generation, self.entered = -1, 0, False
        return left

    def release(self) -> None:
        """Charge the CPU that is not charged yet, and release everything. It may be called again."""
        if self.token:
            self.forget()
        if self._released or not (self.generation or self._serving):
            return
        try:
            if self.generation:
                self.store.leave(self, self._debits() if self._cpu_nanoseconds else ())
            self._released = True
        except Exception as error:
            self.retry_queue.add(self)
            self.retry_queue.on_error(error)
        except BaseException:
            self.retry_queue.add(self)
            raise
        if self.is_outermost:
            # Once, however often releasing has to be tried again.
            self.is_outermost = False
            if self.worker.hooks.after_response:
                self.worker.hooks.response_over(self)

    def release_file(self) -> None:
        """Release the request when its file is closed; an app may wrap a file and not return it."""
        if self._file_returned:
            self.release()

    def __del__(self) -> None:
        if not self._released:
            self.release()

    def _call_with_file_wrapper(
        self, app: Callable[..., Any], environ: dict[str, Any], start_response: Any
    ) -> Any:
        """Call the app with a file wrapper that notes which file it wraps."""
        servers = environ[FILE_WRAPPER]
        wrapper = environ[FILE_WRAPPER] = FileWrapper(servers, self)
        try:
            response = self.measure(app, environ, start_response)
            self._file_returned = wrapper.wrapped is response and response is not None
            return response
        finally:
            wrapper.open_request = wrapper.wrapped = None
            # Some servers test whether a response is an instance of their wrapper. What the app has put
            # in its place, or has removed, stays so.
            if environ.get(FILE_WRAPPER) is wrapper:
                environ[FILE_WRAPPER] = servers

    def _debits(self) -> Sequence[Debit]:
        microseconds = self._cpu_nanoseconds / 1000
        debits = []
        for requirement, key, _ in self._charged:
            # Rounded up: a charge is never less than what was used.
            amount = math.ceil(microseconds * requirement.cpu)
            for meter in requirement.meters:
                debits.append(Debit(meter, self.key if key is None else key, amount))  # noqa: PERF401 - a comprehension costs a frame before Python 3.12
        return debits

    def _update(self, release: Iterable[Slot]) -> None:
        try:
            debits = self._debits() if self._cpu_nanoseconds else ()
            self.store.update(self, debits, tuple(release))
            self._cpu_nanoseconds = 0
        except Exception as error:
            self.retry_queue.on_error(error)

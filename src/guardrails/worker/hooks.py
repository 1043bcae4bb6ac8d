"""Where the guards of the worker itself join in: before each request, and when it is over.

Nothing is here until a limit or a size guard is put in force in this process; the request path then
calls what it finds, in order. What fails is said once, and costs nobody a response.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from guardrails.store.contract import Store, StoreRequest
from guardrails.worker.server import Server

log = logging.getLogger("guardrails")

AtStart = Callable[[Server, Store], object]


class RequestHooks:
    """The callables of this process.

    before_request: called before each request is looked at.   after_response: called with each visit
    when its response is over and it has been left.   after_refusal: called when a request was
    refused.   at_start: see `when_started`.
    """

    before_request: tuple[Callable[[], object], ...] = ()
    after_response: tuple[Callable[[StoreRequest], object], ...] = ()
    after_refusal: tuple[Callable[[], object], ...] = ()
    at_start: tuple[AtStart, ...] = ()
    _began_in = 0
    _began_with: tuple[Server, Store] | None = None
    _said: frozenset[object] = frozenset()

    def when_started(self, begin: AtStart) -> None:
        """Call it once per process, at its first request; at once, if that has been already."""
        if begin in self.at_start:
            return
        self.at_start += (begin,)
        if self._began_with is not None and self._began_in == os.getpid():
            self._call(begin, *self._began_with)

    def begin(self, server: Server, store: Store) -> None:
        """The first request of a process: call those that prepare for it."""
        if self._began_in != os.getpid():
            self._began_in, self._began_with = os.getpid(), (server, store)
            for begin in self.at_start:
                self._call(begin, server, store)

    def request_comes(self) -> None:
        """A request is about to be looked at."""
        for prepare in self.before_request:
            self._call(prepare)

    def request_refused(self) -> None:
        """A request was refused."""
        for relax in self.after_refusal:
            self._call(relax)

    def response_over(self, open_request: StoreRequest) -> None:
        """A response is over."""
        for look in self.after_response:
            self._call(look, open_request)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except Exception:
            if function not in self._said:
                self._said |= {function}
                log.exception("a guard of the worker failed, and does nothing this time")


here = RequestHooks()

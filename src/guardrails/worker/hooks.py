"""Per-process hooks around each request.

There are none until a resource limit or a size guard is put in force. A hook that raises is logged
once, and does not fail the request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from guardrails.once import Once
from guardrails.store.contract import Store, StoreRequest
from guardrails.worker.server import Server

log = logging.getLogger("guardrails")

StartHook = Callable[[Server, Store], object]


class RequestHooks:
    """The hooks of one process.

    Args:
        inherited: the hooks of the process that this one was forked from.

    Attributes:
        before_request: called before guardrails looks at a request.
        after_response: called with each request, after its response was closed and it left the store.
        after_refusal: called after a request was refused.
        at_start: called once per process, at its first request; see `when_started`.
    """

    def __init__(self, inherited: RequestHooks | None = None) -> None:
        self.before_request: tuple[Callable[[], object], ...] = ()
        self.after_response: tuple[Callable[[StoreRequest], object], ...] = ()
        self.after_refusal: tuple[Callable[[], object], ...] = ()
        self.at_start: tuple[StartHook, ...] = ()
        if inherited is not None:
            self.before_request = inherited.before_request
            self.after_response = inherited.after_response
            self.after_refusal = inherited.after_refusal
            self.at_start = inherited.at_start
        self._started_with: tuple[Server, Store] | None = None
        self._first_failure = Once()

    def when_started(self, hook: StartHook) -> None:
        """Call a hook at the first request of each process; at once, if that request has come."""
        if hook in self.at_start:
            return
        self.at_start += (hook,)
        if self._started_with is not None:
            self._call(hook, *self._started_with)

    def start(self, server: Server, store: Store) -> None:
        """Call the hooks of the first request. Any further call does nothing."""
        if self._started_with is None:
            self._started_with = (server, store)
            for hook in self.at_start:
                self._call(hook, server, store)

    def request_comes(self) -> None:
        """Call the hooks before a request."""
        for hook in self.before_request:
            self._call(hook)

    def request_refused(self) -> None:
        """Call the hooks after a refusal."""
        for hook in self.after_refusal:
            self._call(hook)

    def response_over(self, open_request: StoreRequest) -> None:
        """Call the hooks after a response."""
        for hook in self.after_response:
            self._call(hook, open_request)

    def _call(self, hook: Callable[..., object], *arguments: object) -> None:
        try:
            hook(*arguments)
        except Exception:
            if self._first_failure(hook):
                log.exception(
                    "a hook of the worker raised an exception, and was skipped for this request"
                )

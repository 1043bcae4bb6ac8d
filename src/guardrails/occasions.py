"""Where the guards of the worker itself join in: before each request, and after each response.

Nothing is here until a limit or a size guard is put in force in this process; the request path then
calls what it finds, in order.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from guardrails.server import Server
from guardrails.store.contract import Store, Visit

log = logging.getLogger("guardrails")


class Occasions:
    """The callables of this process.

    before_request: called before each request is looked at.   after_response: called with each visit
    when its response is over and it has been left.   at_start: called once per process with the
    server and the store, at its first request.
    """

    before_request: tuple[Callable[[], object], ...] = ()
    after_response: tuple[Callable[[Visit], object], ...] = ()
    at_start: tuple[Callable[[Server, Store], object], ...] = ()
    _said: frozenset[object] = frozenset()
    _began_in = 0

    def begin(self, server: Server, store: Store) -> None:
        """Call those that prepare for a process, once in each."""
        if self._began_in != os.getpid():
            self._began_in = os.getpid()
            for begin in self.at_start:
                begin(server, store)

    def response_over(self, visit: Visit) -> None:
        """Call those that want to know of it; what fails is said once, and costs nobody a response."""
        for look in self.after_response:
            try:
                look(visit)
            except Exception:
                if look not in self._said:
                    self._said |= {look}
                    log.exception("a guard of the worker failed after a response")


here = Occasions()

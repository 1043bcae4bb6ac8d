"""Where the guards of the worker itself join in: before each request, and after each response.

Nothing is here until a limit or a size guard is put in force in this process; the request path then
calls what it finds, in order. What raises is the reporter's business, never the request's.
"""

from __future__ import annotations

from collections.abc import Callable

from guardrails.server import Server
from guardrails.store.contract import Store, Visit


class Occasions:
    """The callables of this process.

    before_request: called before each request is looked at.   after_response: called with each visit
    when its response is over and it has been left.   at_start: called once per process with the
    server and the store, at its first request.
    """

    before_request: tuple[Callable[[], object], ...] = ()
    after_response: tuple[Callable[[Visit], object], ...] = ()
    at_start: tuple[Callable[[Server, Store], object], ...] = ()


here = Occasions()

"""The CPU clock of a request: its thread's, or its greenlet's where gevent serves.

A thread runs one request, so the thread's CPU time is the request's. Greenlets take turns on one
thread: there a tracer notes at each switch what the greenlet that stops has used.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

thread_nanoseconds: Callable[[], int] = time.thread_time_ns

now: Callable[[], int] = thread_nanoseconds
"""Nanoseconds of CPU that the caller has used; only differences mean something."""


class _GreenletClock:
    """The CPU of the greenlets of one thread, as greenlet's trace function."""

    def __init__(self, previous: Callable[[str, Any], object] | None) -> None:
        self.previous = previous
        self.slice_began = thread_nanoseconds()

    def __call__(self, event: str, switch: Any) -> None:
        at = thread_nanoseconds()
        stopping = switch[0]
        stopping.guardrails_cpu = getattr(stopping, "guardrails_cpu", 0) + at - self.slice_began
        self.slice_began = at
        if self.previous is not None:
            self.previous(event, switch)


def follow_greenlets() -> bool:
    """From now on measure by greenlet, if the caller is served by gevent. Returns whether it is."""
    global now
    if "gevent" not in sys.modules:
        return False
    greenlet = import_module("greenlet")  # gevent's own dependency
    if greenlet.getcurrent().parent is None:
        return False  # gevent is only imported: this is a thread as any other
    clocks: WeakKeyDictionary[Any, _GreenletClock] = WeakKeyDictionary()

    def greenlet_nanoseconds() -> int:
        current = root = greenlet.getcurrent()
        while root.parent is not None:
            root = root.parent
        clock = clocks.get(root)
        if clock is None:
            # One for each thread, and whoever traces already goes on hearing of switches.
            clock = clocks[root] = _GreenletClock(greenlet.gettrace())
            greenlet.settrace(clock)
        return getattr(current, "guardrails_cpu", 0) + thread_nanoseconds() - clock.slice_began

    if now is thread_nanoseconds:
        now = greenlet_nanoseconds
    return True

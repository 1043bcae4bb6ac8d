"""The CPU clock of a request: its thread's, or its greenlet's where gevent serves.

A thread runs one request, so the thread's CPU time is the request's. Greenlets take turns on one
thread: there a tracer notes at each switch what the greenlet that stops has used.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

from guardrails.once import Once

log = logging.getLogger("guardrails")

thread_nanoseconds: Callable[[], int] = time.thread_time_ns

now: Callable[[], int] = thread_nanoseconds
"""Nanoseconds of CPU that the caller has used; only differences mean something."""


identify: Callable[[], int] = threading.get_ident
"""What tells the threads of a process apart, or the greenlets."""


def follow_greenlets() -> None:
    """From now on measure by greenlet whoever is served by one, where gevent is loaded at all."""
    global now, identify
    if "gevent" in sys.modules and now is thread_nanoseconds:
        now = _greenlet_clocks()
        identify = import_module("gevent.thread").get_ident


class _GreenletClock:
    """The CPU of the greenlets of one thread, as greenlet's trace function."""

    def __init__(self, greenlet: Any) -> None:
        self._greenlet = greenlet
        self._before: Callable[[str, Any], object] | None = None
        self._began = 0
        self._running: Any = None
        self._first_time = Once()
        self._passing_on = False
        self._install()

    def __call__(self, event: str, switch: Any) -> None:
        try:
            at = thread_nanoseconds()
            stopping, self._running = switch
            self._charge(stopping, at)
        except Exception:  # noqa: S110 - raised into a switch it would break whoever is switched to
            pass
        if self._before is not None and not self._passing_on:
            self._passing_on = True  # it may call us in turn
            try:
                self._before(event, switch)
            finally:
                self._passing_on = False

    def nanoseconds(self, current: Any) -> int:
        """What the current greenlet has used."""
        if self._running is not current:
            self._missed()
        return getattr(current, "guardrails_cpu", 0) + thread_nanoseconds() - self._began

    def _charge(self, stopping: Any, at: int) -> None:
        used, self._began = at - self._began, at
        stopping.guardrails_cpu = getattr(stopping, "guardrails_cpu", 0) + used

    def _missed(self) -> None:
        """Somebody set another trace function and does not call ours: begin anew, before theirs."""
        self._charge(self._running, thread_nanoseconds())
        if self._first_time():
            log.warning(
                "another trace function of greenlet's has taken the place of guardrails', so some CPU "
                "was charged to the wrong request: let it call the function that was there before"
            )
        self._install()

    def _install(self) -> None:
        before = self._greenlet.gettrace()
        if before is not self:
            # Whoever traces already goes on hearing of switches; never twice of ours.
            self._before = None if isinstance(before, _GreenletClock) else before
            self._greenlet.settrace(self)
        self._running = self._greenlet.getcurrent()
        self._began = thread_nanoseconds()


def _greenlet_clocks() -> Callable[[], int]:
    """A clock that is the greenlet's in a greenlet, and else the thread's."""
    greenlet: Any = import_module("greenlet")  # gevent's own dependency
    getcurrent = greenlet.getcurrent
    clocks: WeakKeyDictionary[Any, _GreenletClock] = WeakKeyDictionary()

    def nanoseconds() -> int:
        current = root = getcurrent()
        if root.parent is None:
            return thread_nanoseconds()  # a thread as any other
        while root.parent is not None:
            root = root.parent
        clock = clocks.get(root)
        if clock is None:
            clock = clocks[root] = _GreenletClock(greenlet)
        return clock.nanoseconds(current)

    return nanoseconds

"""The CPU clock of a request: the clock of its thread, or of its greenlet under gevent.

A thread serves one request at a time, so the thread's CPU time is the request's. Many greenlets share
one thread. There a trace function charges, at each switch, the greenlet that stops.
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
"""Returns the nanoseconds of CPU that the caller has used; only differences are meaningful."""

identify: Callable[[], int] = threading.get_ident
"""Returns the identifier of the current thread, or greenlet under gevent."""


def follow_greenlets() -> None:
    """Measure by greenlet from now on, if gevent is loaded."""
    global now, identify
    if "gevent" in sys.modules and now is thread_nanoseconds:
        now = _greenlet_clocks()
        identify = import_module("gevent.thread").get_ident


class _GreenletClock:
    """Measures the CPU of the greenlets of one thread. The object is a trace function of greenlet."""

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
        except Exception:  # noqa: S110 - an exception here would reach the greenlet that starts
            pass
        if self._before is not None and not self._passing_on:
            self._passing_on = True  # the other function may call this one
            try:
                self._before(event, switch)
            finally:
                self._passing_on = False

    def nanoseconds(self, current: Any) -> int:
        """Return the CPU that the current greenlet has used."""
        if self._running is not current:
            self._missed()
        return getattr(current, "guardrails_cpu", 0) + thread_nanoseconds() - self._began

    def _charge(self, stopping: Any, at: int) -> None:
        used, self._began = at - self._began, at
        stopping.guardrails_cpu = getattr(stopping, "guardrails_cpu", 0) + used

    def _missed(self) -> None:
        """Install this function again: another one has replaced it and does not call it."""
        self._charge(self._running, thread_nanoseconds())
        if self._first_time():
            log.warning(
                "another trace function has replaced guardrails' in greenlet, so some CPU was charged "
                "to the wrong request: let it call the function that greenlet.settrace() returned"
            )
        self._install()

    def _install(self) -> None:
        before = self._greenlet.gettrace()
        if before is not self:
            # Call the function that was there, but no clock of an earlier installation.
            self._before = None if isinstance(before, _GreenletClock) else before
            self._greenlet.settrace(self)
        self._running = self._greenlet.getcurrent()
        self._began = thread_nanoseconds()


def _greenlet_clocks() -> Callable[[], int]:
    """Return a clock that measures the current greenlet, or a thread outside greenlets."""
    greenlet: Any = import_module("greenlet")  # gevent depends on it
    getcurrent = greenlet.getcurrent
    clocks: WeakKeyDictionary[Any, _GreenletClock] = WeakKeyDictionary()

    def nanoseconds() -> int:
        current = root = getcurrent()
        if root.parent is None:
            return thread_nanoseconds()  # a thread without greenlets
        while root.parent is not None:
            root = root.parent
        clock = clocks.get(root)
        if clock is None:
            clock = clocks[root] = _GreenletClock(greenlet)
        return clock.nanoseconds(current)

    return nanoseconds

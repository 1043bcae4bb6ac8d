"""Where a request's time goes, part by part.

A clock is read between the parts: when the request comes, around the calls of the store, around the
app, and when the response is closed. That needs no knowledge of the code between. Three of the parts
are split again: what they consist of is timed alone.
"""

# ruff: noqa: SLF001 - parts of parts have no public names

import re
import time
from itertools import pairwise
from time import perf_counter

from subjects import ENVIRON, decision_of, four_guards, guarded, ignore_response, own_store
from timing import interleave, quiet, repeated

from guardrails import throttle
from guardrails.store import layout

REQUESTS = 4000


class Stamps:
    """The instants of one request; the store and the app add theirs."""

    def __init__(self, store):
        self._store = store
        self.at = []

    def __getattr__(self, name):
        return getattr(self._store, name)

    def enter(self, *arguments, **options):
        self.at.append(perf_counter())
        try:
            return self._store.enter(*arguments, **options)
        finally:
            self.at.append(perf_counter())

    def leave(self, *arguments):
        self.at.append(perf_counter())
        try:
            return self._store.leave(*arguments)
        finally:
            self.at.append(perf_counter())

    def app(self, _environ, start_response):
        self.at.append(perf_counter())
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
        response = [b"hello\n"]
        self.at.append(perf_counter())
        return response


def profile(seconds=3.0):
    """[(part, seconds, what it is)], in the order in which a request meets them."""
    with own_store() as store:
        before, enter, decide, wrap, close, leave, end, drop = _segments(store, seconds / 2)
        pieces = _pieces(store, seconds / 2)
    client, route = pieces["client"], pieces["route"]
    row, locks, cpu = pieces["row"], pieces["lock"], pieces["CPU clock"]
    return [
        ("client", client, "which client sends the request"),
        ("route", route, "method, host and path, and which guards cover them"),
        ("requirements", before - client - route, "what each guard requires, and the open request"),
        ("enter", enter - row - locks, "checking and charging"),
        ("scoreboard row", row, "taking a row and filling it in"),
        ("lock", 2 * locks, "taken and released, for enter and for leave"),
        ("decision", decide, "the decision, and preparing the call of the app"),
        ("CPU clock", cpu, "read twice"),
        ("stream", wrap + close + end - cpu, "the response in its wrapper, until it is closed"),
        ("leave", leave - locks, "charging the CPU, freeing slots and row"),
        ("clean-up", drop, "freeing the response, the environ and all that they refer to"),
    ]


def _segments(store, seconds):
    """The stretches between the stamps, without what reading the clock takes."""
    stamps = Stamps(store)
    app = throttle(stamps.app, *four_guards(), store=stamps, trusted_proxies=())
    decision_of(app)
    taken = []
    until = perf_counter() + seconds
    while perf_counter() < until:
        environ = ENVIRON.copy()
        at = stamps.at = [perf_counter()]
        response = app(environ, ignore_response)
        at.append(perf_counter())
        response.close()
        at.append(perf_counter())
        del response, environ
        at.append(perf_counter())
        # came, enter, entered, app, app done, answered, leave, left, closed, dropped
        taken.append([b - a for a, b in pairwise(at)])
    before, enter, decide, _app, wrap, close, leave, end, drop = (
        quiet(stretch) for stretch in zip(*taken, strict=True)
    )
    clock = _clock()
    return [max(0.0, part - clock) for part in (before, enter, decide, wrap, close, leave, end, drop)]


def _clock():
    at = [perf_counter() for _ in range(REQUESTS)]
    return quiet([b - a for a, b in pairwise(at)])


def _pieces(store, seconds):
    """Parts of parts, each repeated alone. They know the code inside, and change with it."""
    file = store._file
    app = guarded(store)
    environ = ENVIRON.copy()
    content = _anything_for(layout.ROW_CONTENT)

    def client():
        app._clients.read(environ)

    def route():
        app._routes.find(environ)

    def row():
        row = file.take_row()
        layout.ROW_CONTENT.pack_into(file.buffer, (row + 1) * 8, *content)
        file.words[row] = 1
        file.words[row] = 0
        file.free_rows.append(row)

    def lock():
        file._try_lock()
        file._unlock()

    def cpu_clock():
        time.thread_time_ns()
        time.thread_time_ns()

    alone = {"client": client, "route": route, "row": row, "lock": lock, "CPU clock": cpu_clock}
    there = {name: repeated(call) for name, call in alone.items() if _works(call)}
    taken = interleave(there, seconds)
    return {name: quiet(taken[name]) if name in taken else 0.0 for name in alone}


def _works(call):
    """Whether the code inside still has that part; otherwise it counts with the part around it."""
    try:
        call()
    except (AttributeError, TypeError):
        return False
    return True


def _anything_for(content):
    """Values that fit a struct."""
    fields = re.findall(r"(\d*)([sQ])", content.format)
    return [
        value
        for count, kind in fields
        for value in ([b"text"] if kind == "s" else [1] * int(count or 1))
    ]

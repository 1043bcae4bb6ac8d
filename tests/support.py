"""What the tests share: a browser, a raw exchange, stores that count calls or fail, a CPU by hand."""

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from werkzeug.test import EnvironBuilder

from guardrails import testing
from guardrails.store.contract import Debit, EnterResult, Slot, Store, StoreRequest
from guardrails.store.records import (
    Death,
    GuardCounters,
    InFlight,
    Penalty,
    Records,
    Worker,
    WorkerFacts,
)

JOIN_SECONDS = 60
"""No thread of the tests is waited for longer; none should come near it."""


class Browser(testing.Client):
    """A client that reads each response to its end and closes it, unless told to hold it open."""

    def open(self, *args, buffered=True, **kwargs):
        return super().open(*args, buffered=buffered, **kwargs)

    def hold(self, path="/", **kwargs):
        """Send a request and leave its response open; whoever holds it closes it."""
        return self.get(path, buffered=False, **kwargs)

    def statuses(self, count, path="/", **kwargs):
        """The statuses of so many requests, one after the other."""
        return [self.get(path, **kwargs).status_code for _ in range(count)]

    def at(self, address=None, agent="guardrails-testing"):
        """Another browser before the same app, on another address."""
        return Browser(self.application_under_test, address=address or self.address, agent=agent)

    def __init__(self, app, **options):
        self.application_under_test = app
        # Cookies are the tests' own: werkzeug's jar would take them out of the request.
        super().__init__(app, use_cookies=False, **options)


def environ_of(path: str) -> dict[str, Any]:
    """A complete WSGI environ."""
    builder = EnvironBuilder(path=path)
    try:
        return builder.get_environ()
    finally:
        builder.close()


class Exchange:
    """One call of a WSGI app, step by step, by a server that does nothing on its own."""

    def __init__(self, app, path="/", environ=None, **facts):
        self.environ: dict[str, Any] = dict(environ) if environ else environ_of(path)
        self.environ["REMOTE_ADDR"] = "192.0.2.1"
        self.environ.update(facts)
        self.status = ""
        self.headers: dict[str, str] = {}
        self.written: list[bytes] = []
        self.app = app
        self.response: Any = None

    def start_response(self, status, headers, exc_info=None):
        self.status, self.headers = status, dict(headers)
        return self.written.append

    def call(self) -> Self:
        """Call the app; its response is at hand, not read."""
        self.response = self.app(self.environ, self.start_response)
        return self

    def read(self) -> bytes:
        """Read the response to its end; it stays open."""
        return b"".join(self.response)

    def close(self) -> None:
        """Close the response, as a server does when it has one that can be closed."""
        close = getattr(self.response, "close", None)
        if close is not None:
            close()

    def finish(self) -> bytes:
        """Call, read and close."""
        self.call()
        try:
            return self.read()
        finally:
            self.close()


class MeanwhileClock(testing.Clock):
    """A clock in whose nth sleep something happens, as if another thread did it meanwhile."""

    def __init__(self):
        super().__init__()
        self.slept: list[float] = []
        self.meanwhile: dict[int, Callable[[], object]] = {}

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.meanwhile.pop(len(self.slept), lambda: None)()
        self.advance(seconds)


class HandCPU:
    """The CPU clock of a thread, moved by hand: what an app burns is told, not spent."""

    def __init__(self):
        self.nanoseconds = 0

    def __call__(self) -> int:
        return self.nanoseconds

    def burn(self, seconds: float) -> None:
        self.nanoseconds += round(seconds * 1e9)

    def app(self, seconds: float | Callable[[dict[str, Any]], float]):
        """An app that burns so many seconds in its call."""

        def burning(environ, start_response):
            self.burn(seconds(environ) if callable(seconds) else seconds)
            return testing.hello(environ, start_response)

        return burning


class PassingStore:
    """A store that passes everything on to another; the parent of the doubles."""

    def __init__(self, store: Store | None = None):
        self.inner = store or testing.memory_store()

    def enter(self, open_request: StoreRequest, *, final: bool = True) -> EnterResult | None:
        return self.inner.enter(open_request, final=final)

    def update(
        self, open_request: StoreRequest, debits: Sequence[Debit], release: Sequence[Slot] = ()
    ) -> None:
        self.inner.update(open_request, debits, release)

    def leave(self, open_request: StoreRequest, debits: Sequence[Debit] = ()) -> None:
        self.inner.leave(open_request, debits)

    def sleep(self, microseconds: int) -> None:
        self.inner.sleep(microseconds)

    def requests(self) -> Records[InFlight]:
        return self.inner.requests()

    def workers(self) -> Records[Worker]:
        return self.inner.workers()

    def deaths(self, after: int = 0) -> Records[Death]:
        return self.inner.deaths(after)

    def register(self, facts: WorkerFacts) -> None:
        self.inner.register(facts)

    def declare(self, guards: Sequence[str]) -> None:
        self.inner.declare(guards)

    def begin_retiring(self) -> bool:
        return self.inner.begin_retiring()

    def mark_retiring(self, worker: Worker) -> None:
        self.inner.mark_retiring(worker)

    def penalize(self, request: InFlight, microseconds: int, ban_for: int) -> Penalty | None:
        return self.inner.penalize(request, microseconds, ban_for)

    def slots_held(self) -> Mapping[str, int]:
        return self.inner.slots_held()

    def counters(self) -> Mapping[str, GuardCounters]:
        return self.inner.counters()

    def alarms(self) -> Mapping[str, int]:
        return self.inner.alarms()

    def switch(self, word: str | None = None, guard: str | None = None) -> str:
        return self.inner.switch(word, guard)

    def reset(self) -> None:
        self.inner.reset()

    def close(self) -> None:
        self.inner.close()


class CountingStore(PassingStore):
    """A store that notes the verbs that the request path calls."""

    def __init__(self, store: Store | None = None):
        super().__init__(store)
        self.calls: list[str] = []

    def enter(self, open_request, *, final=True):
        self.calls.append("enter")
        return super().enter(open_request, final=final)

    def update(self, open_request, debits, release=()):
        self.calls.append("update")
        super().update(open_request, debits, release)

    def leave(self, open_request, debits=()):
        self.calls.append("leave")
        super().leave(open_request, debits)


class FaultyStore(PassingStore):
    """A store that raises `error` at its nth call of one of `verbs`: once, or from then on.

    after: the inner store does its work first, and then the call fails: what a store does that dies
    between its commit and its answer.
    """

    def __init__(
        self, store, error, *, nth, persistent=False, verbs=("enter", "update", "leave"), after=False
    ):
        super().__init__(store)
        self.error = error
        self.nth = nth
        self.persistent = persistent
        self.verbs = verbs
        self.after = after
        self.calls = 0
        self.failures = 0

    def mend(self) -> None:
        """From now on it works."""
        self.verbs = ()

    def enter(self, open_request, *, final=True):
        return self._do("enter", lambda: self.inner.enter(open_request, final=final))

    def update(self, open_request, debits, release=()):
        self._do("update", lambda: self.inner.update(open_request, debits, release))

    def leave(self, open_request, debits=()):
        self._do("leave", lambda: self.inner.leave(open_request, debits))

    def _do(self, verb, work):
        fails = False
        if verb in self.verbs:
            self.calls += 1
            fails = self.calls == self.nth or (self.persistent and self.calls > self.nth)
        if fails:
            self.failures += 1
            if self.after:
                work()
            raise self.error
        return work()


class Threads:
    """Threads that stay, each doing what it is told: as a server's are, seen by guardrails."""

    def __init__(self, count: int):
        self._jobs: list[list[Callable[[], object]]] = [[] for _ in range(count)]
        self._ready = [threading.Semaphore(0) for _ in range(count)]
        self._done = [threading.Semaphore(0) for _ in range(count)]
        self._results: list[list[Any]] = [[] for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def do(self, number: int, job: Callable[[], Any]) -> Any:
        """Let a thread do a job, and return its result."""
        self._jobs[number].append(job)
        self._ready[number].release()
        assert self._done[number].acquire(timeout=JOIN_SECONDS), "a thread of the test hangs"
        result = self._results[number].pop()
        if isinstance(result, BaseException):
            raise result
        return result

    def __len__(self) -> int:
        return len(self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for ready in self._ready:
            ready.release()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
            assert not thread.is_alive(), "a thread of the test hangs"

    def _work(self, number: int) -> None:
        while True:
            self._ready[number].acquire()
            if not self._jobs[number]:
                return
            try:
                self._results[number].append(self._jobs[number].pop()())
            except BaseException as error:
                self._results[number].append(error)
            self._done[number].release()


def is_there(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def slots_held(store: Store) -> int:
    """How many slots are held in a store, over all guards."""
    return sum(store.slots_held().values())


def nothing_is_left_in(store: Store) -> bool:
    """Neither a slot nor a request in flight."""
    return slots_held(store) == 0 and store.requests() == []


def lines(caplog, *, level: str | None = None) -> list[str]:
    """What guardrails logged, as text."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "guardrails" and (level is None or record.levelname == level)
    ]


def cases(name: str) -> dict[str, dict[str, Any]]:
    """The cases of a file in tests/cases by their ids; the file names its sources and licences."""
    text = (Path(__file__).parent / "cases" / f"{name}.json").read_text(encoding="utf-8")
    return {case["id"]: case for case in json.loads(text)["cases"]}


class Told(list):
    """What was told: event, message, level, facts."""

    def __call__(self, event, message, level=logging.WARNING, **facts):
        self.append((event, message, level, facts))

    @property
    def events(self):
        return [event for event, _message, _level, _facts in self]

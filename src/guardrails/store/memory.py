"""The memory store: model.py behind a lock, shared by the threads of one process only.

With several workers, each of them counts for itself.
"""

import hashlib
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from guardrails.errors import InsideError
from guardrails.store.contract import (
    OFF,
    ON,
    Debit,
    EnterResult,
    Slot,
    StoreRequest,
    check_known_guard,
    check_switch_word,
    monotonic_microseconds,
    sleep_seconds,
    warn_of_switched,
)
from guardrails.store.model import Model
from guardrails.store.processes import limits_of, process_facts, this_process
from guardrails.store.records import (
    Death,
    GuardCounters,
    InFlight,
    Penalty,
    Records,
    Worker,
    WorkerFacts,
)


class MemoryStore:
    """State in the memory of one process. `contract.Store` documents its methods.

    Args:
        clock: returns monotonic microseconds. If it has a method `sleep(seconds)`, as
            `guardrails.testing.Clock` has, delays call that instead of sleeping.
    """

    def __init__(self, clock: Callable[[], int] = monotonic_microseconds) -> None:
        self._clock = clock
        self._sleep: Callable[[float], object] = getattr(clock, "sleep", sleep_seconds)
        self._model = Model()
        self._lock = threading.Lock()
        self._lock_owner = 0
        self._changing = False
        self._pid = os.getpid()
        self._secret = secrets.token_bytes(16)
        self._facts: WorkerFacts | None = None
        self._registered_at = self._seen_at = self._retiring_since = 0
        self._finished = 0

    def __repr__(self) -> str:
        return "memory:"

    def enter(self, open_request: StoreRequest, *, final: bool = True) -> EnterResult | None:
        with self._exclusive():
            if self._model.switch[""] == OFF:
                return None
            self._begin()
            result = self._model.enter(open_request, self._clock(), final=final)
            self._changing = False
            return result

    def update(
        self, open_request: StoreRequest, debits: Sequence[Debit], release: Sequence[Slot] = ()
    ) -> None:
        if open_request.pid != os.getpid():
            return
        with self._exclusive():
            self._begin()
            now = self._clock()
            self._model.debit(debits, now)
            self._model.release(open_request.generation, release, now)
            self._changing = False

    def leave(self, open_request: StoreRequest, debits: Sequence[Debit] = ()) -> None:
        if open_request.pid != os.getpid():
            return
        with self._exclusive():
            self._begin()
            now = self._clock()
            self._model.debit(debits, now)
            if self._model.leave(open_request.generation, now):
                self._finished += 1
                self._seen_at = now
            self._changing = False

    def sleep(self, microseconds: int) -> None:
        self._sleep(microseconds / 1_000_000)

    def pseudonym(self, key: bytes) -> str:
        return hashlib.blake2b(key, key=self._secret, digest_size=8).hexdigest()

    def requests(self) -> Records[InFlight]:
        with self._exclusive():
            now = self._clock()
            process = this_process()
            return Records(
                InFlight(
                    pid=row.pid,
                    generation=generation,
                    age_seconds=(now - row.started) / 1_000_000,
                    client=row.client,
                    method=row.method,
                    host=row.host,
                    path=row.path,
                    slots=len(row.held),
                    thread=row.thread,
                    process_start=process.start,
                    namespace=process.namespace,
                    usual_path=row.usual_path,
                )
                for generation, row in self._model.rows.items()
            )

    def workers(self) -> Records[Worker]:
        with self._exclusive():
            facts = self._facts
            if facts is None:
                return Records()
            now = self._clock()
            process = this_process()
            system = process_facts(process.pid)
            in_flight = len(self._model.rows)
            state = "serving" if in_flight else "idle"
            return Records(
                [
                    Worker(
                        pid=process.pid,
                        namespace=process.namespace,
                        process_start=process.start,
                        parent=os.getppid(),
                        server=facts.server,
                        state="retiring" if self._retiring_since else state,
                        requests=self._finished,
                        in_flight=in_flight,
                        age_seconds=(now - self._registered_at) / 1_000_000,
                        last_seen_seconds=(now - self._seen_at) / 1_000_000,
                        cpu_seconds=system.cpu_seconds if system else None,
                        resident_bytes=system.resident_bytes if system else None,
                        threads=facts.threads,
                        respawns=facts.respawns,
                        retire_signal=facts.retire_signal,
                        dump_signal=facts.dump_signal,
                        interruptible=facts.interruptible,
                        asked_by_signal=facts.asked_by_signal,
                        limits=limits_of(process.pid),
                    )
                ]
            )

    def deaths(self, after: int = 0) -> Records[Death]:  # noqa: ARG002 - the store's interface
        return Records()  # the store ends with its only worker

    def register(self, facts: WorkerFacts) -> None:
        with self._exclusive():
            if self._facts is None:
                self._registered_at = self._seen_at = self._clock()
            self._facts = facts

    def begin_retiring(self) -> bool:
        with self._exclusive():
            self._retiring_since = self._clock()
            return True  # no other worker uses this store

    def mark_retiring(self, worker: Worker) -> None:
        if worker.pid == os.getpid():
            self.begin_retiring()

    def penalize(self, request: InFlight, microseconds: int, ban_for: int) -> Penalty | None:
        with self._exclusive():
            self._begin()
            now = self._clock()
            penalty = self._model.penalize(request.generation, microseconds, ban_for, now)
            self._changing = False
            return penalty

    def declare(self, guards: Sequence[str]) -> None:
        with self._exclusive():
            for guard in guards:
                self._model.counters.setdefault(guard, Counter())

    def slots_held(self) -> Mapping[str, int]:
        with self._exclusive():
            held: Counter[str] = Counter()
            for (name, _key), count in self._model.slot_counts.items():
                held[name] += count
            return dict(held)

    def counters(self) -> Mapping[str, GuardCounters]:
        with self._exclusive():
            return {name: GuardCounters(**counter) for name, counter in self._model.counters.items()}

    def alarms(self) -> Mapping[str, int]:
        with self._exclusive():
            return dict(self._model.alarms)

    def switch(self, word: str | None = None, guard: str | None = None) -> str:
        with self._exclusive():
            positions = self._model.switch
            check_known_guard(guard, self._model.counters)
            before = positions.get(guard or "", ON)
            position = before if word is None else check_switch_word(word)
            positions[guard or ""] = position
        if position != before:
            warn_of_switched(self, position, guard or "")
        return position

    def reset(self) -> None:
        with self._exclusive():
            self._model.reset()

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _exclusive(self) -> threading.Lock:
        """Return the lock to hold. Raise InsideError if this thread holds it already."""
        if self._pid != os.getpid():
            self._forget_parent()
        if self._lock_owner == threading.get_ident() and self._lock.locked():
            raise InsideError(
                "memory store: called again by the thread that is using it (from a signal handler or "
                "a destructor): try again later"
            )
        return self._lock

    def _begin(self) -> None:
        """Begin a change, after repairing what a signal handler's exception has cut off."""
        self._lock_owner = threading.get_ident()
        if self._changing:
            self._model.recount()
        self._changing = True

    def _forget_parent(self) -> None:
        """After a fork: drop the parent's requests, its lock and what it said of itself as a worker."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._model.drop_rows()
        self._facts = None
        self._registered_at = self._seen_at = self._retiring_since = 0
        self._finished = 0

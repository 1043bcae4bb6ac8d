"""The watchdog: requests that take too long are shown with their stacks, and their workers replaced.

Successor of Apache::Watchdog::RunAway. It is a process of its own, since nothing in a stuck worker
runs. It reads the scoreboard; the age of a request is all that counts, not whether it puts out bytes.

The ladder, for one worker at a time: end that one request by an exception, where its worker takes
such orders; let the worker retire in its server's own way, so that it takes no more requests, and
wait for those that are with it; SIGTERM, SIGABRT, SIGKILL. Before each step it is looked at whether
the process and the request are still the same. A process that nobody would start again is only
spoken of.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from guardrails import interrupting, stacks
from guardrails.errors import StoreError
from guardrails.request import canonical_path
from guardrails.store.contract import InFlight, Records, Store, Worker
from guardrails.store.processes import Owner, is_dead, pid_namespace, process_facts
from guardrails.units import MICROSECONDS
from guardrails.worker.events import Announce, printable
from guardrails.worker.identity import acting_as
from guardrails.worker.policy import Policy

log = logging.getLogger("guardrails.watch")

MOST_STACK_LINES = 60
_FAST_POLL = 0.1
"""Seconds between two looks while a worker is on the ladder."""


class Watched:
    """A store to look at, as the user to whom it belongs.

    name: what it is called in events.   uid: its owner; None is this process's own.
    """

    def __init__(self, store: Store, name: str, uid: int | None = None) -> None:
        self._store = store
        self.name = name
        self._uid = os.geteuid() if uid is None else uid

    def acting(self) -> AbstractContextManager[None]:
        """While its files are touched."""
        return acting_as(self._uid)

    def requests(self) -> Records[InFlight]:
        """What is in flight."""
        with self.acting():
            return self._store.requests()

    def workers(self) -> Records[Worker]:
        """Who serves."""
        with self.acting():
            return self._store.workers()

    def blame(self, request: InFlight, seconds: float, ban: float) -> None:
        """Let a request's client pay."""
        with self.acting():
            self._store.blame(
                request,
                round(seconds * MICROSECONDS),
                round(ban * MICROSECONDS),
                canonical_path(request.path),
            )

    def mark_retiring(self, worker: Worker) -> None:
        """Show a worker as retiring."""
        with self.acting():
            self._store.mark_retiring(worker)


class System(Protocol):
    """What the watchdog does to processes."""

    def send(self, pid: int, start: int, number: int) -> bool:
        """Send a signal to that very process. False when it is gone."""

    def is_there(self, pid: int, start: int) -> bool:
        """Whether that very process still runs."""

    def parent(self, pid: int) -> int:
        """Its parent now; 0 where that is not known."""

    def cpu_seconds(self, pid: int) -> float:
        """What it has burnt."""

    def dump(self, watched: Watched, worker: Worker) -> stacks.Dump | None:
        """Its Python stacks."""

    def interrupt(self, watched: Watched, worker: Worker, request: InFlight) -> bool:
        """Have the request ended by an exception."""


class Processes:
    """The processes of this host."""

    def send(self, pid: int, start: int, number: int) -> bool:
        """Through a descriptor of the process, so that no later one of the same pid is met."""
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_there(pid, start):
                return False
            signal.pidfd_send_signal(descriptor, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)

    def is_there(self, pid: int, start: int) -> bool:
        """A zombie has ended."""
        namespace = pid_namespace()
        return not is_dead(Owner(pid, start, namespace), namespace)

    def parent(self, pid: int) -> int:
        """As /proc says."""
        facts = process_facts(pid)
        return facts.parent if facts else 0

    def cpu_seconds(self, pid: int) -> float:
        """As /proc says."""
        facts = process_facts(pid)
        return facts.cpu_seconds if facts else 0.0

    def dump(self, watched: Watched, worker: Worker) -> stacks.Dump | None:
        """By faulthandler in the worker itself, else by py-spy where that is installed."""
        dump = None
        if worker.dump_signal:
            with watched.acting():
                file = stacks.open_file(_owner(worker))
            if file is not None:
                dump = stacks.ask(
                    file, lambda: self.send(worker.pid, worker.process_start, worker.dump_signal)
                )
        return dump or stacks.ask_py_spy(worker.pid)

    def interrupt(self, watched: Watched, worker: Worker, request: InFlight) -> bool:
        """By the worker's own pipe."""
        with watched.acting():
            return interrupting.order(_owner(worker), request.generation, request.thread)


def _owner(worker: Worker) -> Owner:
    return Owner(worker.pid, worker.process_start, pid_namespace())


class Case:
    """One request that is too old, and how far up the ladder its worker is."""

    def __init__(
        self, watched: Watched, request: InFlight, worker: Worker | None, limit: float
    ) -> None:
        self.watched = watched
        self.request = request
        self.worker = worker
        self.limit = limit
        self.ladder: Iterator[float] | None = None
        self.next_at = self.hurry_at = 0.0
        self.last_step = ""
        self.cpu_before = 0.0
        self.blamed = False
        self.said: set[str] = set()

    @property
    def key(self) -> tuple[str, int, int, int]:
        """What tells it from every other request."""
        request = self.request
        return self.watched.name, request.pid, request.process_start, request.generation

    def __str__(self) -> str:
        request = self.request
        return (
            f"{request.method} {request.path} from {request.client or 'an unknown client'}, "
            f"{request.age_seconds:.0f} s old, in worker {request.pid}"
        )


class Watchdog:
    """Looks at the requests in flight, and does something about those that are too old.

    stores: gives the stores to look at.   announce: is told of every event.   sleep is never called;
    whoever runs it calls `look` again after `pause()` seconds.
    """

    def __init__(
        self,
        policy: Policy,
        stores: Callable[[], Iterable[Watched]],
        announce: Announce,
        system: System | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._stores = stores
        self._announce = announce
        self._system = system or Processes()
        self._monotonic = monotonic
        self._cases: dict[tuple[str, int, int, int], Case] = {}
        self._climbing: Case | None = None
        self._kill_at = 0.0
        self._last_steps: dict[tuple[int, int], str] = {}
        self._failed: set[str] = set()

    def pause(self) -> float:
        """Seconds until the next look is due."""
        return min(_FAST_POLL, self._policy.poll) if self._climbing is not None else self._policy.poll

    def look(self) -> None:
        """One look. Never raises: a store that fails is said once, and looked at again."""
        if not self._policy.timeout and not any(self._policy.path_timeouts.values()):
            return
        looked_at = set()
        for watched in self._stores():
            try:
                self._look_at(watched)
                looked_at.add(watched.name)
                self._failed.discard(watched.name)
            except (StoreError, OSError) as error:
                if watched.name not in self._failed:
                    self._failed.add(watched.name)
                    log.warning("watchdog: store %s cannot be read: %s", watched.name, error)
        self._let_go(looked_at)

    def _let_go(self, looked_at: set[str]) -> None:
        """What lies in a store that cannot be seen any more must not hold up the others."""
        for key, case in list(self._cases.items()):
            if key[0] not in looked_at:
                if not self._system.is_there(case.request.pid, case.request.process_start):
                    self._is_over(self._cases.pop(key))
                elif case is self._climbing:
                    self._climbing, case.ladder = None, None

    def _look_at(self, watched: Watched) -> None:
        requests = watched.requests()
        workers = {(each.pid, each.process_start): each for each in watched.workers()}
        present = set()
        for request in requests:
            limit = self._policy.timeout_of(request.path)
            if not limit or request.age_seconds < limit:
                continue
            worker = workers.get((request.pid, request.process_start))
            case = Case(watched, request, worker, limit)
            known = self._cases.get(case.key)
            present.add(case.key)
            if known is None:
                self._cases[case.key] = case
                self._notice(case, requests)
            else:
                known.request, known.worker = request, worker or known.worker
        for key in [key for key in self._cases if key[0] == watched.name and key not in present]:
            self._is_over(self._cases.pop(key))
        climbing = self._climbing
        if climbing is None:
            climbing = self._climbing = self._next_victim(watched, list(workers.values()))
        if climbing is not None and climbing.watched.name == watched.name:
            self._climb(climbing)

    def _notice(self, case: Case, requests: list[InFlight]) -> None:
        """Tell of a request that is too old, with the stack of its thread."""
        request, worker = case.request, case.worker
        case.cpu_before = self._system.cpu_seconds(request.pid)
        beside = sum(other.pid == request.pid for other in requests) - 1
        self._announce(
            "overdue",
            f"{case}, thread {request.thread:#x}: more than {case.limit:g} s"
            + (f"; {_requests(beside)} more with it" if beside else ""),
            **_facts(case),
            beside=beside,
        )
        dump = self._system.dump(case.watched, worker) if worker is not None else None
        block = dump.of(request.thread) if dump is not None else None
        if block is None:
            self._announce(
                "no-stack",
                f"worker {request.pid} does not show where its thread {request.thread:#x} is"
                + ("" if dump is None else f"; it shows {len(dump.blocks)} others"),
                logging.INFO,
                pid=request.pid,
            )
            return
        for line in block[:MOST_STACK_LINES]:
            log.warning("overdue: worker %d: %s", request.pid, printable(line))

    def _is_over(self, case: Case) -> None:
        """A request is in flight no more."""
        request = case.request
        worker = request.pid, request.process_start
        gone = not self._system.is_there(*worker)
        last_step = self._last_steps.get(worker, "")
        if gone and not self._cases_of(*worker):
            self._last_steps.pop(worker, None)
        if case is self._climbing:
            self._climbing = None
            self._kill_at = self._monotonic() + self._policy.between
        if gone and last_step:
            self._announce("killed", f"{case}: its worker has ended after {last_step}", **_facts(case))
        elif gone:
            self._announce(
                "gone", f"{case}: its worker has ended by itself", logging.INFO, **_facts(case)
            )
        else:
            after = f" after {last_step}" if last_step else ""
            self._announce("ended", f"{case}: it has ended{after}", logging.INFO, **_facts(case))

    def _next_victim(self, watched: Watched, workers: list[Worker]) -> Case | None:
        """The oldest request that may be acted upon now."""
        if self._monotonic() < self._kill_at:
            return None
        cases = [case for case in self._cases.values() if case.watched.name == watched.name]
        for case in sorted(cases, key=lambda case: -case.request.age_seconds):
            reason = self._reason_to_leave(case, workers)
            if reason is None:
                return case
            if reason not in case.said:
                case.said.add(reason)
                self._announce("left-alone", f"{case}: {reason}", **_facts(case))
        return None

    def _reason_to_leave(self, case: Case, workers: list[Worker]) -> str | None:
        """Why a worker must not be touched; None when it may be."""
        worker = case.worker
        if self._policy.dry_run:
            return "only told of, since this is a dry run"
        if worker is None:
            return (
                "its worker is not on the scoreboard, so it is not known whether it would be replaced"
            )
        if not worker.respawns:
            return f"its worker is not ended, since nobody would start {worker.server} again"
        if not worker.parent or self._system.parent(worker.pid) != worker.parent:
            return "its worker is not ended, since the process that would start it again is gone"
        others = [other for other in workers if other.pid != worker.pid and other.state != "retiring"]
        if len(others) < self._policy.keep:
            return f"its worker is not ended, since fewer than {self._policy.keep} would be left"
        return None

    def _climb(self, case: Case) -> None:
        """Take the next step, if it is time for it and all is as it was."""
        if case.ladder is None:
            case.ladder = self._ladder(case)
        elif self._monotonic() < case.next_at and not self._may_hurry(case):
            return
        still = self._still(case)
        if still is None:
            return  # the next look finds that it is over
        case.request = still
        wait = next(case.ladder, None)
        now = self._monotonic()
        case.hurry_at = now + self._policy.step
        case.next_at = now + (self._policy.step if wait is None else wait)

    def _ladder(self, case: Case) -> Iterator[float]:
        """The steps; each says for how long to wait after it."""
        worker, step = case.worker, self._policy.step
        assert worker is not None  # noqa: S101 - else it is left alone
        if (
            self._policy.interrupt
            and worker.interruptible
            and self._system.interrupt(case.watched, worker, case.request)
        ):
            self._tell_step(case, "an exception in its thread", "interrupt")
            yield step
        if worker.retire_signal:
            beside = self._beside(case)
            self._signal(case, worker.retire_signal, self._to_retire(worker, beside))
            yield self._policy.grace if beside else step
        elif self._beside(case):
            self._tell_step(case, f"waiting for {_requests(self._beside(case))} beside it", "wait")
            yield self._policy.grace
        deadly = [signal.SIGTERM, signal.SIGABRT, signal.SIGKILL]
        for number in deadly:
            if number != worker.retire_signal:
                self._blame_all_of(worker)
                self._signal(case, number, signal.Signals(number).name + self._innocents(case))
                yield step
        while True:
            self._announce("stands", f"worker {worker.pid} does not end after SIGKILL", **_facts(case))
            yield 60.0

    def _may_hurry(self, case: Case) -> bool:
        """Whether those beside it, who were waited for, are done."""
        waited_for = case.last_step.startswith(("retiring", "waiting"))
        return waited_for and not self._beside(case) and self._monotonic() >= case.hurry_at

    def _still(self, case: Case) -> InFlight | None:
        """The request, if it is in flight in the same process; else None."""
        request = case.request
        if not self._system.is_there(request.pid, request.process_start):
            return None
        for found in case.watched.requests():
            if (found.pid, found.process_start, found.generation) == (
                request.pid,
                request.process_start,
                request.generation,
            ):
                return found
        return None

    def _beside(self, case: Case) -> int:
        """How many requests are with it in its worker that have done nothing wrong."""
        request = case.request
        too_old = {each.request.generation for each in self._cases.values()}
        return sum(
            (other.pid, other.process_start) == (request.pid, request.process_start)
            and other.generation not in too_old
            for other in case.watched.requests()
        )

    def _innocents(self, case: Case) -> str:
        beside = self._beside(case)
        return f", and {_requests(beside)} beside it will be lost" if beside else ""

    def _to_retire(self, worker: Worker, beside: int) -> str:
        text = f"retiring ({signal.Signals(worker.retire_signal).name})"
        if beside:
            text += f", and {_requests(beside)} beside it have {self._policy.grace:g} s to end"
        return text

    def _signal(self, case: Case, number: int, what: str) -> None:
        assert case.worker is not None  # noqa: S101 - else it is left alone
        self._tell_step(case, what, signal.Signals(number).name)
        if number == case.worker.retire_signal:
            case.watched.mark_retiring(case.worker)
        try:
            self._system.send(case.worker.pid, case.worker.process_start, number)
        except PermissionError as error:
            self._announce("not-permitted", f"worker {case.worker.pid}: {error}", **_facts(case))

    def _tell_step(self, case: Case, what: str, step: str) -> None:
        case.last_step = what
        self._last_steps[case.request.pid, case.request.process_start] = what
        self._announce("step", f"{case}: {what}", **_facts(case), step=step)

    def _blame_all_of(self, worker: Worker) -> None:
        for case in self._cases_of(worker.pid, worker.process_start):
            self._blame(case)

    def _cases_of(self, pid: int, start: int) -> list[Case]:
        return [
            case
            for case in self._cases.values()
            if (case.request.pid, case.request.process_start) == (pid, start)
        ]

    def _blame(self, case: Case) -> None:
        """The client pays for what it cost: the time that it kept its worker, as if it were CPU."""
        if case.blamed:
            return
        case.blamed = True
        request = case.request
        burnt = max(0.0, self._system.cpu_seconds(request.pid) - case.cpu_before)
        try:
            case.watched.blame(request, request.age_seconds, self._policy.ban)
        except StoreError as error:
            log.warning("watchdog: the client of a killed request was not charged: %s", error)
            return
        refused = (
            f", and is refused {request.path} for {self._policy.ban:g} s" if self._policy.ban else ""
        )
        self._announce(
            "blamed",
            f"{request.client or 'an unknown client'} is charged {request.age_seconds:.0f} s, of which "
            f"its worker burnt {burnt:.1f} s of CPU since it was noticed{refused}",
            logging.INFO,
            **_facts(case),
            cpu=f"{burnt:.1f}",
        )


def _requests(count: int) -> str:
    return f"{count} request{'' if count == 1 else 's'}"


def _facts(case: Case) -> dict[str, object]:
    """What a command is told in its environment."""
    request = case.request
    return {
        "pid": request.pid,
        "method": request.method,
        "path": request.path,
        "host": request.host,
        "client": request.client,
        "age": f"{request.age_seconds:.1f}",
        "thread": f"{request.thread:#x}",
        "store": case.watched.name,
    }

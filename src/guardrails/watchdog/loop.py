"""The watchdog: requests that take too long are shown with their stacks, and their workers replaced.

Successor of Apache::Watchdog::RunAway. It is a process of its own, since nothing in a stuck worker
runs. It reads the scoreboard; the age of a request is all that counts, not whether it puts out bytes.

The ladder, for one worker at a time: end that one request by an exception, where its worker takes
such orders; let the worker retire in its server's own way, so that it takes no more requests, and
wait for those that are with it; SIGTERM, SIGABRT, SIGKILL. Before each step it is looked at whether
the process and the request are still the same. A process that nobody would start again is only
spoken of. A step that fails is tried again, and never holds up anything else.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable

from guardrails.once import Once
from guardrails.store.contract import InFlight, Worker
from guardrails.store.processes import Owner
from guardrails.units import MICROSECONDS
from guardrails.watchdog.actions import Processes, System
from guardrails.watchdog.events import Announce
from guardrails.watchdog.overdue import OverdueRequest, Watched
from guardrails.watchdog.policy import Policy
from guardrails.watchdog.report import WatchdogReporter, requests_text

log = logging.getLogger("guardrails.watch")

MOST_SHOWN = 3
"""Workers whose stacks are asked for in one look: each takes a moment, and there may be many."""

_PENALIZE_TRIES = 10
"""Looks for which a step waits for a store that is busy, so that its client pays."""

_FAST_POLL = 0.1
"""Seconds between two looks while a worker is on the ladder."""

_REPEAT_SECONDS = 600.0
"""After so long a failure is logged again, if it lasts."""

_RETIRE_SIGNALS = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1})
"""What a worker may name as the signal for it to retire."""

INTERRUPT, RETIRE, WAIT, STANDS = "interrupt", "retire", "wait", "stands"
_EXCEPTION = "an exception in its thread"


class WatchdogLoop:
    """Looks at the requests in flight, and does something about those that are too old.

    stores: gives the stores to look at.   announce: is told of every event.   parent: only workers
    that this process has started; None is all.   is_watched: whether the workers of a parent, in a pid
    namespace, have a watchdog of their own. Nobody sleeps here: whoever runs it calls `look` again
    after `pause()`.
    """

    def __init__(
        self,
        policy: Policy,
        stores: Callable[[], Iterable[Watched]],
        announce: Announce,
        system: System | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        parent: int | None = None,
        is_watched: Callable[[int, int], bool] = lambda _namespace, _parent: False,
    ) -> None:
        self._policy = policy
        self._stores = stores
        self._system = system or Processes()
        self._monotonic = monotonic
        self._report = WatchdogReporter(announce, self._is_gone, monotonic)
        self._parent = parent
        self._is_watched = is_watched
        self._overdue: dict[tuple[str, Owner, int], OverdueRequest] = {}
        self._climbing: OverdueRequest | None = None
        self._ending: set[Owner] = set()
        self._kill_at = 0.0
        self._last_steps: dict[Owner, str] = {}
        self._failed: set[str] = set()
        self._first_time = Once(_REPEAT_SECONDS)
        self._watched: list[Watched] = []
        self._workers: dict[Owner, Worker] = {}
        self._blind = False

    def pause(self) -> float:
        """Seconds until the next look is due."""
        busy = self._climbing is not None or self._report.waits
        return min(_FAST_POLL, self._policy.poll) if busy else self._policy.poll

    def look(self) -> None:
        """One look. A store that fails is said once, and looked at again."""
        if self._policy.ends_nothing:
            return
        self._watched = list(self._stores())
        self._workers = {}
        for watched in self._watched:
            try:
                self._look_at(watched)
            except Exception as error:
                self._failed.add(watched.name)
                self._report_failure(watched, error)
            else:
                self._failed.discard(watched.name)
        self._let_go({watched.name for watched in self._watched})
        self._ending = {owner for owner in self._ending if self._system.is_there(owner)}
        try:
            if self._climbing is None:
                self._climbing = self._next_victim()
            if self._climbing is not None:
                self._try_to_climb(self._climbing)
            for watched in self._watched:
                self._show_some(watched)
        finally:
            self._report.ends()

    def _try_to_climb(self, overdue: OverdueRequest) -> None:
        """Where that fails, now or as its store was looked at, others must not wait for it."""
        try:
            if overdue.watched.name not in self._failed:
                self._climb(overdue)
                return
        except Exception as error:
            self._put_off(overdue, error)
        self._climbing = None

    def _put_off(self, overdue: OverdueRequest, error: Exception) -> None:
        """Something about it failed: it is tried again, after the others."""
        overdue.failed_at = self._monotonic()
        self._report_failure(overdue.watched, error)

    def _report_failure(self, watched: Watched, error: Exception) -> None:
        if self._first_time((watched.name, str(error)), now=self._monotonic()):
            log.warning("watchdog: store %s: %s; it is tried again", watched.name, error)

    def close(self) -> None:
        """Tell what is known by now of requests that are over. No look is taken after it."""
        self._report.ends(at_once=True)

    def _look_at(self, watched: Watched) -> None:
        requests = watched.store.requests()
        workers = {each.owner: each for each in watched.store.workers()}
        for owner, worker in workers.items():
            if owner not in self._workers or worker.state == "retiring":
                self._workers[owner] = worker
        mine: dict[tuple[int, int], bool] = {}
        present = set()
        for request in requests:
            overdue = OverdueRequest(
                watched, request, workers.get(request.owner), self._policy.timeout_of(request)
            )
            known = self._overdue.get(overdue.key)
            if known is not None:
                overdue.worker = overdue.worker or known.worker  # it may leave the board before it ends
            server = _server(overdue.worker)
            if server not in mine:
                mine[server] = self._is_mine(*server)
            if not mine[server] or not overdue.limit or request.age_seconds < overdue.limit:
                continue
            present.add(overdue.key)
            if known is None:
                self._overdue[overdue.key] = overdue
                self._notice(overdue, requests)
            else:
                known.request, known.worker = request, overdue.worker
        for key in [key for key in self._overdue if key[0] == watched.name and key not in present]:
            self._is_over(self._overdue.pop(key))

    def _is_mine(self, namespace: int, parent: int) -> bool:
        if self._parent is not None:
            return (namespace, parent) == (self._system.namespace(), self._parent)
        return not self._is_watched(namespace, parent)

    def _let_go(self, names: set[str]) -> None:
        """What lies in a store that is there no more must not hold up the others."""
        for key in [key for key in self._overdue if key[0] not in names]:
            overdue = self._overdue[key]
            if not self._system.is_there(overdue.request.owner):
                self._is_over(self._overdue.pop(key))
            elif overdue is self._climbing:
                self._climbing = None

    def _notice(self, overdue: OverdueRequest, requests: list[InFlight]) -> None:
        """Tell of a request that is too old."""
        request = overdue.request
        if self._is_here(request):
            overdue.cpu_before = self._system.cpu_seconds(request.pid)
            overdue.age_before = request.age_seconds
        self._report.overdue(overdue, sum(each.owner == request.owner for each in requests) - 1)

    def _is_here(self, request: InFlight) -> bool:
        return request.namespace == self._system.namespace()

    def _is_gone(self, overdue: OverdueRequest) -> bool:
        return self._is_here(overdue.request) and not self._system.is_there(overdue.request.owner)

    def _show_some(self, watched: Watched) -> None:
        """Show the stacks of requests that are too old, of a few workers at a time."""
        for _ in range(MOST_SHOWN):
            hidden = [
                c for c in self._overdue.values() if not c.shown and c.watched.name == watched.name
            ]
            if not hidden:
                return
            self._show(hidden[0])

    def _show(self, overdue: OverdueRequest) -> None:
        """Log where a request is, and all others that are too old in the same worker."""
        overdue_requests = [each for each in self._overdue_in_worker(overdue) if not each.shown]
        worker, dump = overdue.worker, None
        if worker is not None and self._is_here(overdue.request):
            try:
                dump = self._system.dump(worker, overdue.request.thread)
            except Exception as error:
                log.info("watchdog: worker %d cannot be asked for its stacks: %s", worker.pid, error)
        for each in overdue_requests:
            each.shown = True
            self._report.stack(each, dump)

    def _is_over(self, overdue: OverdueRequest) -> None:
        """A request is in flight no more, or cannot be seen any more. How it ended is told later."""
        owner = overdue.request.owner
        signalled = self._last_steps.get(owner)
        if not self._overdue_in_worker(overdue):
            self._last_steps.pop(owner, None)
        if overdue is self._climbing:
            self._climbing = None
        if overdue.signalled:
            self._kill_at = self._monotonic() + self._policy.kill_interval
        overdue.last_step = signalled or overdue.last_step
        # A worker that is told to end ends a moment after its last request.
        self._report.over(overdue, self._policy.signal_interval if signalled else 0.0)

    def _overdue_in_worker(self, overdue: OverdueRequest) -> list[OverdueRequest]:
        """All requests that are too old in the same worker."""
        return [each for each in self._overdue.values() if each.request.owner == overdue.request.owner]

    def _next_victim(self) -> OverdueRequest | None:
        """The oldest request that may be acted upon now; one that was begun with need not wait."""
        now = self._monotonic()
        waits = now < self._kill_at
        stores = {watched.name for watched in self._watched} - self._failed
        overdue_requests = [
            overdue
            for overdue in self._overdue.values()
            if overdue.watched.name in stores and (overdue.is_begun or not waits)
        ]

        def turn(overdue: OverdueRequest) -> tuple[bool, float]:
            failed = (
                now - overdue.failed_at < self._policy.kill_interval
            )  # the others first, for a while
            return failed, -overdue.request.age_seconds

        for overdue in sorted(overdue_requests, key=turn):
            try:
                reason = self._reason_to_leave(overdue)
            except Exception as error:
                self._put_off(overdue, error)
                continue
            steps = self._steps(overdue, reason)
            if steps:
                overdue.steps = [step for step in overdue.steps if step in steps] or steps
                return overdue
            if reason is not None:
                self._report.left_alone(overdue, reason)
        return None

    def _reason_to_leave(self, overdue: OverdueRequest) -> str | None:
        """Why a worker must not be ended; None when it may be."""
        if self._policy.dry_run:
            return "only told of, since this is a dry run"
        if not self._is_here(overdue.request):
            return "its worker is not ended, since it runs in another container"
        worker = overdue.worker
        if worker is None:
            return (
                "its worker is not on the scoreboard, so it is not known whether it would be replaced"
            )
        who = None
        if not worker.respawns:
            who = f"nobody would start {worker.server} again"
        elif not worker.parent or self._system.parent(worker.pid) != worker.parent:
            who = "the process that would start it again is gone"
        elif self._left_without(worker) < self._policy.least_workers:
            who = f"fewer than {self._policy.least_workers} would be left"
        return None if who is None else f"its worker is not ended, since {who}"

    def _left_without(self, worker: Worker) -> int:
        """How many others of its server serve, whichever store they are in."""
        return sum(
            other.pid != worker.pid
            and _server(other) == _server(worker)
            and other.state != "retiring"
            and other.owner not in self._ending
            for other in self._workers.values()
        )

    def _steps(self, overdue: OverdueRequest, reason: str | None) -> list[str | int]:
        """The ladder for one worker: only the exception, where it must not be ended."""
        worker = overdue.worker
        steps: list[str | int] = []
        if any(each.given_up for each in self._overdue_in_worker(overdue)):
            return steps
        if worker is None or self._policy.dry_run or not self._is_here(overdue.request):
            return steps
        if self._policy.interrupt and worker.interruptible and not overdue.interrupted:
            steps.append(INTERRUPT)
        if reason is not None:
            return steps
        retires = worker.retire_signal in _RETIRE_SIGNALS
        deadly = [signal.SIGTERM, signal.SIGABRT, signal.SIGKILL]
        steps.append(RETIRE if retires else WAIT)
        return [*steps, *(each for each in deadly if each != worker.retire_signal), STANDS]

    def _climb(self, overdue: OverdueRequest) -> None:
        """Take the next step, if it is time for it and all is as it was."""
        if not overdue.shown:
            self._show(overdue)
        if self._monotonic() < overdue.next_at and not self._may_hurry(overdue):
            return
        still = self._still(overdue)
        if still is not None:
            overdue.request = still
            self._go_on(overdue)
        elif not self._system.is_there(overdue.request.owner):
            self._overdue.pop(overdue.key, None)
            self._is_over(overdue)

    def _go_on(self, overdue: OverdueRequest) -> None:
        """The next step, unless there is none, or a reason against it by now."""
        step = overdue.steps[0] if overdue.steps else None
        if step == STANDS:
            self._report.stands(overdue)
            self._give_up(overdue)
            return
        reason = self._reason_to_leave(overdue) if step != INTERRUPT else None
        if step is None or reason is not None:
            self._climbing, overdue.steps = None, []
            if reason is not None:
                self._report.left_alone(overdue, reason)
            return
        overdue.burnt = max(0.0, self._system.cpu_seconds(overdue.request.pid) - overdue.cpu_before)
        wait = self._take(overdue, step)
        if wait is None:
            return  # it has ended just now, or is given up, or its store is busy
        overdue.steps.pop(0)
        now = self._monotonic()
        overdue.looks_alone, overdue.hurry_at, overdue.next_at = (
            0,
            now + self._policy.signal_interval,
            now + wait,
        )

    def _take(self, overdue: OverdueRequest, step: str | int) -> float | None:
        """Take one step: seconds to wait after it, or None where it is not taken, at least not yet."""
        worker = overdue.worker
        assert worker is not None  # noqa: S101 - else it has no ladder
        policy, beside = self._policy, self._beside(overdue)
        wait: float | None
        if not (self._penalize(overdue) if step == INTERRUPT else self._penalize_all(overdue)):
            wait = None
        elif step == INTERRUPT:
            overdue.interrupted = True
            if self._system.interrupt(worker, overdue.request):
                overdue.last_step = _EXCEPTION
                self._report.step(overdue, _EXCEPTION, INTERRUPT)
            wait = policy.signal_interval
        elif step == WAIT:
            if beside:
                self._report.step(overdue, f"waiting for {requests_text(beside)} beside it", WAIT)
            wait = policy.grace if beside else 0.0
        elif step == RETIRE:
            what = f"retiring ({signal.Signals(worker.retire_signal).name})"
            if beside:
                what += f", and {requests_text(beside)} beside it have {policy.grace:g} s to end"
            wait = self._send(
                overdue, worker.retire_signal, what, policy.grace if beside else policy.signal_interval
            )
        else:
            what = signal.Signals(int(step)).name
            if beside:
                what += f", and {requests_text(beside)} beside it may be lost"
            wait = self._send(overdue, int(step), what, policy.signal_interval)
        return wait

    def _send(self, overdue: OverdueRequest, number: int, what: str, wait: float) -> float | None:
        """Send a signal, after a last look at whether it is still for that request."""
        worker = overdue.worker
        assert worker is not None  # noqa: S101 - as above
        if self._still(overdue) is None:
            return None
        try:
            if not self._system.send(worker.owner, number):
                return None
        except OSError as error:
            self._report.not_permitted(overdue, error)
            self._give_up(overdue)
            return None
        self._last_steps[worker.owner] = what
        self._ending.add(worker.owner)
        overdue.signalled = True
        self._kill_at = max(self._kill_at, self._monotonic() + self._policy.kill_interval)
        self._report.step(overdue, what, signal.Signals(number).name)
        try:
            overdue.watched.store.mark_retiring(worker)
        except Exception as error:
            log.info("watchdog: worker %d is not shown as retiring: %s", worker.pid, error)
        return wait

    def _give_up(self, overdue: OverdueRequest) -> None:
        """Nothing more can be done about a worker, and the others have their turn."""
        for each in self._overdue_in_worker(overdue):
            each.given_up = True
        self._climbing, self._kill_at = None, self._monotonic() + self._policy.kill_interval

    def _may_hurry(self, overdue: OverdueRequest) -> bool:
        """Whether those beside it, who were waited for, are done: twice in a row, as some may queue."""
        alone = not self._beside(overdue) and not self._blind
        overdue.looks_alone = overdue.looks_alone + 1 if alone else 0
        return overdue.looks_alone > 1 and self._monotonic() >= overdue.hurry_at

    def _still(self, overdue: OverdueRequest) -> InFlight | None:
        """The request, if it is in flight in the same process; else None."""
        request = overdue.request
        if not self._system.is_there(request.owner):
            return None
        wanted = (request.owner, request.generation)
        found = overdue.watched.store.requests()
        return next((each for each in found if (each.owner, each.generation) == wanted), None)

    def _beside(self, overdue: OverdueRequest) -> int:
        """How many requests are with it in its worker, in any store, that have done nothing wrong.

        Who serves one in two stores is one thread. Of a store that fails it is not known who they are.
        """
        too_old = {each.request.thread for each in self._overdue_in_worker(overdue)}
        found = [overdue.watched.store.requests()]
        self._blind = False
        for watched in self._watched:
            if watched.name != overdue.watched.name:
                try:
                    found.append(watched.store.requests())
                except Exception:  # said where it is looked at
                    self._blind = True
        threads = {
            other.thread
            for requests in found
            for other in requests
            if other.owner == overdue.request.owner
        }
        return len(threads - too_old)

    def _penalize_all(self, overdue: OverdueRequest) -> bool:
        """Let the clients of all that are too old in a worker pay. False when this one has ended."""
        stands = True
        for each in self._overdue_in_worker(overdue):
            if not self._penalize(each) and each is overdue:
                stands = False
        return stands

    def _penalize(self, overdue: OverdueRequest) -> bool:
        """The client pays, once, for the time that it kept its worker, as if that were CPU.

        Before anything is done to it: afterwards the request may be over. False when it is, or when its
        store is busy just now.
        """
        if overdue.blamed:
            return True
        request = overdue.request
        try:
            done = overdue.watched.store.penalize(
                request,
                round(request.age_seconds * MICROSECONDS),
                round(self._policy.ban * MICROSECONDS),
            )
        except Exception as error:
            overdue.penalize_failures += 1
            if overdue.penalize_failures < _PENALIZE_TRIES:
                return False
            log.warning("watchdog: the client of a killed request was not charged: %s", error)
            return True
        if done is None:
            return False
        overdue.blamed = True
        self._report.blamed(overdue, done, self._policy.ban)
        return True


def _server(worker: Worker | None) -> tuple[int, int]:
    """Whose worker it is: a pid namespace, and a parent there. Zeros where that is not known."""
    return (0, 0) if worker is None else (worker.namespace, worker.parent)

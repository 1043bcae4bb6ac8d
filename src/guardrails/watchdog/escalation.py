"""The steps that end an overdue request, for one worker at a time.

1. The request is ended by an exception, where its worker allows that.
2. If no other worker accepts connections, the server is asked to start one more.
3. The worker retires in its server's own way: it takes no more requests, and the others that it has
   may end. A worker without such a way is left alone until they have ended, and so is the last one
   that accepts connections where no other can be started.
4. SIGTERM, SIGABRT and SIGKILL.

Before each step the escalation looks whether the process and the request are still the same. The
watchdog ends only workers that rules.py allows. A step that fails is tried again.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

from guardrails.store.processes import Owner
from guardrails.store.records import InFlight
from guardrails.units import MICROSECONDS
from guardrails.watchdog.actions import System
from guardrails.watchdog.overdue import OverdueRequest, ScoreboardView
from guardrails.watchdog.policy import Policy
from guardrails.watchdog.report import WatchdogReporter, requests_text
from guardrails.watchdog.rules import EndingRules
from guardrails.worker.extra_worker import START_SECONDS

log = logging.getLogger("guardrails.watch")

_PENALIZE_TRIES = 10
"""Looks for which a step waits for a busy store, so that the client is charged."""

_RETIRE_SIGNALS = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1})
"""The signals that a worker may name as its server's way to retire it."""

INTERRUPT, ADD, RETIRE, WAIT, GIVE_UP = "interrupt", "add", "retire", "wait", "give up"
"""The steps that are named. Any other step is the number of a signal."""

_EXCEPTION = "an exception in its thread"


class Escalation:
    """Takes the steps against overdue requests.

    Args:
        policy: what the watchdog may do.
        system: the processes of this host.
        report: writes the log lines and events.
        view: what the last look at the scoreboards found.
        monotonic: returns the time in seconds.
    """

    def __init__(
        self,
        policy: Policy,
        system: System,
        report: WatchdogReporter,
        view: ScoreboardView,
        monotonic: Callable[[], float],
    ) -> None:
        self.current: OverdueRequest | None = None
        """The request against which steps are taken now."""
        self._policy = policy
        self._system = system
        self._report = report
        self._view = view
        self._monotonic = monotonic
        self._next_worker_at = 0.0
        self._last_steps: dict[Owner, str] = {}
        self._rules = EndingRules(policy, system, view)

    def must_wait(self, overdue: OverdueRequest) -> bool:
        """Whether another worker was sent a signal a moment ago, and this one was sent none yet.

        Where no worker of the server takes further requests, there is nothing to wait for.
        """
        if overdue.is_under_way or self._monotonic() >= self._next_worker_at:
            return False
        return self._rules.server_is_healthy(overdue.worker)

    def plan(self, overdue: OverdueRequest) -> bool:
        """Choose the steps against a request; return whether there are any now."""
        reason = self._rules.reason_against(overdue)
        steps = self._steps(overdue, reason)
        if steps:
            # Steps that were taken before a store failed are not taken again.
            overdue.steps = [step for step in overdue.steps if step in steps] or steps
        elif reason is not None:
            self._report.left_alone(overdue, reason)
        return bool(steps)

    def advance(self, overdue: OverdueRequest) -> None:
        """Take the next step, if it is due and the request is still the same."""
        if self._monotonic() < overdue.next_at and not self._may_hurry(overdue):
            return
        found = self._find(overdue)
        if found is not None:
            overdue.request = found
            self._next_step(overdue)
        elif not self._system.is_there(overdue.request.owner):
            self._view.overdue.pop(overdue.key, None)
            self.request_ended(overdue)

    def request_ended(self, overdue: OverdueRequest) -> None:
        """Note that a request is no longer in flight, and is no longer in the view."""
        owner = overdue.request.owner
        _hand_back(overdue)
        signalled = self._last_steps.get(owner)
        if not self._view.overdue_in_worker(overdue):
            self._last_steps.pop(owner, None)
        if overdue is self.current:
            self.current = None
        if overdue.is_signalled:
            self._next_worker_at = self._monotonic() + self._policy.kill_interval
        overdue.last_step = signalled or overdue.last_step
        # A worker that is told to end does so a moment after its last request.
        self._report.request_ended(overdue, self._policy.signal_interval if signalled else 0.0)

    def close(self) -> None:
        """Take no further step."""
        if self.current is not None:
            _hand_back(self.current)

    def forget_ended_workers(self) -> None:
        """Forget the workers that have ended after a signal."""
        ending = self._view.ending
        ending -= {owner for owner in ending if not self._system.is_there(owner)}

    def _steps(self, overdue: OverdueRequest, reason: str | None) -> list[str | int]:
        """The steps that may be taken; at most the exception where the worker must not be ended."""
        worker = overdue.worker
        steps: list[str | int] = []
        if any(each.is_given_up for each in self._view.overdue_in_worker(overdue)):
            return steps
        here = overdue.request.namespace == self._system.namespace()
        if worker is None or self._policy.dry_run or not here:
            return steps
        if self._policy.interrupt and worker.interruptible and not overdue.is_interrupted:
            steps.append(INTERRUPT)
        if reason is not None:
            return steps
        if worker.retire_signal not in _RETIRE_SIGNALS:
            steps.append(WAIT)
        elif self._rules.nobody_accepts_without(worker):
            steps += [ADD, RETIRE]
        else:
            steps.append(RETIRE)
        signals = [signal.SIGTERM, signal.SIGABRT, signal.SIGKILL]
        return [*steps, *(each for each in signals if each != worker.retire_signal), GIVE_UP]

    def _next_step(self, overdue: OverdueRequest) -> None:
        """Take the next step, unless there is none or a reason against it by now."""
        step = overdue.steps[0] if overdue.steps else None
        if step == GIVE_UP:
            self._report.survived(overdue)
            self._give_up(overdue)
            return
        reason = self._rules.reason_against(overdue) if step != INTERRUPT else None
        if step is None or reason is not None:
            self.current, overdue.steps = None, []
            _hand_back(overdue)
            if reason is not None:
                self._report.left_alone(overdue, reason)
            return
        cpu = self._system.cpu_seconds(overdue.request.pid)
        overdue.cpu_used = max(0.0, cpu - overdue.cpu_before)
        wait = self._take(overdue, step)
        if wait is None:
            return  # it has ended just now, or is given up, or its store is busy
        overdue.steps.pop(0)
        now = self._monotonic()
        overdue.looks_alone = 0
        overdue.hurry_at, overdue.next_at = now + self._policy.signal_interval, now + wait

    def _take(self, overdue: OverdueRequest, step: str | int) -> float | None:
        """Take one step; return the seconds to wait after it, or None where it was not taken."""
        worker = overdue.worker
        assert worker is not None  # noqa: S101 - without a worker there are no steps
        policy, others = self._policy, self._view.others_in_worker(overdue)
        wait: float | None
        if step == ADD:
            wait = self._add_worker(overdue)
        elif not (self._penalize(overdue) if step == INTERRUPT else self._penalize_all(overdue)):
            wait = None
        elif step == INTERRUPT:
            overdue.is_interrupted = True
            if self._system.interrupt(worker, overdue.request):
                overdue.last_step = _EXCEPTION
                self._report.step(overdue, _EXCEPTION, INTERRUPT)
            wait = policy.signal_interval
        elif step == WAIT:
            if others:
                self._report.step(overdue, f"waiting for {requests_text(others)} beside it", WAIT)
            wait = policy.grace if others else 0.0
        elif step == RETIRE and overdue.extra is not None and not overdue.extra.has_come():
            _hand_back(overdue)
            self._wait_instead(overdue)
            wait = None
        elif step == RETIRE:
            what = f"retiring ({signal.Signals(worker.retire_signal).name})"
            if others:
                what += f", and {requests_text(others)} beside it have {policy.grace:g} s to end"
            if self._rules.is_orphan(worker):
                what += "; its server has ended, so nothing takes its place"
            wait = policy.grace if others else policy.signal_interval
            # Before the signal: the server must not replace this worker when it ends.
            _hand_back(overdue)
            wait = self._send(overdue, worker.retire_signal, what, wait)
        else:
            what = signal.Signals(int(step)).name
            if others:
                what += f", and {requests_text(others)} beside it may be lost"
            wait = self._send(overdue, int(step), what, policy.signal_interval)
        return wait

    def _add_worker(self, overdue: OverdueRequest) -> float:
        """Ask for one more worker; return how long to wait for it at most."""
        worker = overdue.worker
        assert worker is not None  # noqa: S101 - as above
        overdue.extra = overdue.extra or self._system.add_worker(worker)
        if overdue.extra is None:
            self._wait_instead(overdue)
            return 0.0
        what = "another worker is started first, since no other one accepts connections"
        self._report.step(overdue, what, ADD)
        return START_SECONDS

    def _wait_instead(self, overdue: OverdueRequest) -> None:
        """Let the worker accept connections until its other requests have had their time to end."""
        overdue.steps = [WAIT if step == RETIRE else step for step in overdue.steps]

    def _send(self, overdue: OverdueRequest, number: int, what: str, wait: float) -> float | None:
        """Send a signal, after a last look whether the request is still in flight. As `_take`."""
        worker = overdue.worker
        assert worker is not None  # noqa: S101 - as above
        if self._find(overdue) is None:
            return None
        try:
            if not self._system.send(worker.owner, number):
                return None
        except OSError as error:
            self._report.not_permitted(overdue, error)
            self._give_up(overdue)
            return None
        self._last_steps[worker.owner] = what
        self._view.ending.add(worker.owner)
        overdue.is_signalled = True
        earliest = self._monotonic() + self._policy.kill_interval
        self._next_worker_at = max(self._next_worker_at, earliest)
        self._report.step(overdue, what, signal.Signals(number).name)
        try:
            overdue.watched.store.mark_retiring(worker)
        except Exception as error:
            log.info("watchdog: worker %d is not shown as retiring: %s", worker.pid, error)
        return wait

    def _give_up(self, overdue: OverdueRequest) -> None:
        """Do nothing more about a worker, so that the others have their turn."""
        for each in self._view.overdue_in_worker(overdue):
            each.is_given_up = True
        self.current = None
        self._next_worker_at = self._monotonic() + self._policy.kill_interval

    def _may_hurry(self, overdue: OverdueRequest) -> bool:
        """Whether the other requests of the worker have ended before their time is over.

        Two looks in a row must find none: a request may have queued for the thread that became free.
        While another worker is being started, that one is all there is to wait for.
        """
        if overdue.extra is not None and RETIRE in overdue.steps:
            return overdue.extra.is_ready(
                {owner.pid for owner in self._view.workers}, self._monotonic()
            )
        alone = not self._view.others_in_worker(overdue) and not self._view.is_partial
        overdue.looks_alone = overdue.looks_alone + 1 if alone else 0
        return overdue.looks_alone > 1 and self._monotonic() >= overdue.hurry_at

    def _find(self, overdue: OverdueRequest) -> InFlight | None:
        """The request as it is now; None where it is not in flight in the same process any more."""
        request = overdue.request
        if not self._system.is_there(request.owner):
            return None
        wanted = (request.owner, request.generation)
        found = overdue.watched.store.requests()
        return next((each for each in found if (each.owner, each.generation) == wanted), None)

    def _penalize_all(self, overdue: OverdueRequest) -> bool:
        """Penalize the clients of all overdue requests in a worker. As `_penalize`, of this one."""
        done = True
        for each in self._view.overdue_in_worker(overdue):
            if not self._penalize(each) and each is overdue:
                done = False
        return done

    def _penalize(self, overdue: OverdueRequest) -> bool:
        """Charge the client, once, for the time that it has held its worker, as if that were CPU.

        That comes before the step, since the request may be over after it.

        Returns:
            Whether the step may follow. False when the request has ended, or its store is busy.
        """
        if overdue.is_penalized:
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
            log.warning("watchdog: the client of an overdue request was not charged: %s", error)
            return True
        if done is None:
            return False
        overdue.is_penalized = True
        self._report.penalized(overdue, done, self._policy.ban)
        return True


def _hand_back(overdue: OverdueRequest) -> None:
    """Let the server have as many workers as before, once that of a request has ended."""
    if overdue.extra is not None:
        overdue.extra.hand_back()

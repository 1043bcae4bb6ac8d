"""The watchdog: it reports requests that take too long, with their stacks, and replaces their workers.

Successor of Apache::Watchdog::RunAway. It is a process of its own, since nothing runs in a stuck
worker. It reads the scoreboard of each store. Only the age of a request counts, and not whether the
request sends any output. What is done about an overdue request is in escalation.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from guardrails.once import Once
from guardrails.store.records import InFlight, Worker
from guardrails.watchdog.actions import Processes, System
from guardrails.watchdog.death_watch import DeathWatch
from guardrails.watchdog.escalation import Escalation
from guardrails.watchdog.events import Notify
from guardrails.watchdog.overdue import (
    OverdueRequest,
    ScoreboardView,
    WatchedStore,
    overdue_key,
)
from guardrails.watchdog.policy import Policy
from guardrails.watchdog.report import WatchdogReporter

log = logging.getLogger("guardrails.watch")

MOST_SHOWN = 3
"""Workers that are asked for their stacks in one look: each takes a moment, and there may be many."""

_FAST_POLL = 0.1
"""Seconds between two looks while steps are taken against a worker."""

_REPEAT_SECONDS = 600.0
"""After so long a failure is logged again, if it lasts."""


class WatchdogLoop:
    """Looks at the requests in flight, and acts on those that are overdue.

    Nothing here sleeps: the caller calls `look` again `pause()` seconds later.

    Args:
        policy: when a request is overdue, and what may be done about it.
        stores: returns the stores to look at.
        notify: is called with each event.
        system: the processes of this host.
        monotonic: returns the time in seconds.
        parent: only workers that this process has started are watched; None for all.
        is_watched: whether the workers of a parent in a pid namespace have their own watchdog.
    """

    def __init__(
        self,
        policy: Policy,
        stores: Callable[[], Iterable[WatchedStore]],
        notify: Notify,
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
        self._parent = parent
        self._is_watched = is_watched
        self._view = ScoreboardView()
        self._report = WatchdogReporter(notify, self._has_ended, monotonic)
        self._escalation = Escalation(policy, self._system, self._report, self._view, monotonic)
        self._deaths = DeathWatch(notify, self._system, self._view, self._is_mine, monotonic)
        self._first_time = Once(_REPEAT_SECONDS)

    def pause(self) -> float:
        """Return the seconds until the next look is due."""
        is_busy = self._escalation.current is not None or self._report.has_unreported_ends
        return min(_FAST_POLL, self._policy.poll) if is_busy else self._policy.poll

    def look(self) -> None:
        """Look once at all stores. A store that fails is logged, and looked at again the next time."""
        if self._policy.ends_nothing:
            return
        view = self._view
        view.begin(self._stores())
        for watched in view.stores:
            try:
                self._look_at(watched)
            except Exception as error:
                view.failed.add(watched.name)
                self._log_failure(watched, error)
            else:
                view.failed.discard(watched.name)
        self._drop_lost_stores()
        try:
            self._deaths.look()
        except Exception as error:
            if self._first_time(("deaths", str(error)), now=self._monotonic()):
                log.warning("watchdog: which workers have died is not known: %s", error)
        self._escalation.forget_ended_workers()
        try:
            self._act()
            for watched in view.stores:
                self._show_some(watched)
        finally:
            self._report.report_ends()

    @property
    def has_workers(self) -> bool:
        """Whether the last look found a living worker of the server that is watched."""
        return any(self._is_mine(*_server_of(each)) for each in self._view.workers.values())

    @property
    def stores(self) -> list[WatchedStore]:
        """The stores of the last look."""
        return self._view.stores

    def close(self) -> None:
        """Report what is known by now of requests that have ended. No look follows."""
        self._escalation.close()
        self._report.report_ends(at_once=True)

    def _look_at(self, watched: WatchedStore) -> None:
        requests = watched.store.requests()
        workers = {each.owner: each for each in watched.store.workers()}
        for owner, each in workers.items():
            if owner not in self._view.workers or each.state == "retiring":
                self._view.workers[owner] = each
        all_overdue = self._view.overdue
        mine: dict[tuple[int, int], bool] = {}
        present = set()
        for request in requests:
            key = overdue_key(watched, request)
            known = all_overdue.get(key)
            # A worker may leave the scoreboard before it ends.
            worker = workers.get(request.owner) or (known.worker if known else None)
            server = _server_of(worker)
            if server not in mine:
                mine[server] = self._is_mine(*server)
            limit = self._policy.timeout_of(request)
            if not mine[server] or not limit or request.age_seconds < limit:
                continue
            present.add(key)
            if known is None:
                all_overdue[key] = OverdueRequest(watched, request, worker, limit)
                self._report_overdue(all_overdue[key], requests)
            else:
                known.request, known.worker = request, worker
        for key in [key for key in all_overdue if key[0] == watched.name and key not in present]:
            self._escalation.request_ended(all_overdue.pop(key))

    def _is_mine(self, namespace: int, parent: int) -> bool:
        if self._parent is not None:
            return (namespace, parent) == (self._system.namespace(), self._parent)
        return not self._is_watched(namespace, parent)

    def _drop_lost_stores(self) -> None:
        """Take no more steps for a store that is gone: the requests of other stores must not wait."""
        names = {watched.name for watched in self._view.stores}
        for key in [key for key in self._view.overdue if key[0] not in names]:
            overdue = self._view.overdue[key]
            if not self._system.is_there(overdue.request.owner):
                self._escalation.request_ended(self._view.overdue.pop(key))
            elif overdue is self._escalation.current:
                self._escalation.current = None

    def _report_overdue(self, overdue: OverdueRequest, requests: list[InFlight]) -> None:
        request = overdue.request
        if self._is_here(request):
            overdue.cpu_before = self._system.cpu_seconds(request.pid)
            overdue.age_before = request.age_seconds
        in_worker = sum(each.owner == request.owner for each in requests)
        self._report.overdue(overdue, in_worker - 1)

    def _is_here(self, request: InFlight) -> bool:
        return request.namespace == self._system.namespace()

    def _has_ended(self, overdue: OverdueRequest) -> bool:
        """Whether the worker is known to have ended, which another container does not show."""
        return self._is_here(overdue.request) and not self._system.is_there(overdue.request.owner)

    def _act(self) -> None:
        """Take the next step against one worker, and choose that worker first if there is none."""
        escalation = self._escalation
        if escalation.current is None:
            escalation.current = self._choose()
        overdue = escalation.current
        if overdue is None:
            return
        if overdue.watched.name in self._view.failed:
            escalation.current = None
            return
        try:
            if not overdue.stack_is_shown:
                self._show(overdue)
            escalation.advance(overdue)
        except Exception as error:
            self._postpone(overdue, error)
            escalation.current = None

    def _choose(self) -> OverdueRequest | None:
        """The oldest request against which a step may be taken now."""
        now = self._monotonic()
        stores = self._view.readable()

        def turn(overdue: OverdueRequest) -> tuple[bool, float]:
            has_failed = now - overdue.failed_at < self._policy.kill_interval
            return has_failed, -overdue.request.age_seconds

        for overdue in sorted(self._view.overdue.values(), key=turn):
            if overdue.watched.name not in stores or self._escalation.must_wait(overdue):
                continue
            try:
                if self._escalation.plan(overdue):
                    return overdue
            except Exception as error:
                self._postpone(overdue, error)
        return None

    def _postpone(self, overdue: OverdueRequest, error: Exception) -> None:
        """Something about a request failed: try again, but the others first."""
        overdue.failed_at = self._monotonic()
        self._log_failure(overdue.watched, error)

    def _log_failure(self, watched: WatchedStore, error: Exception) -> None:
        if self._first_time((watched.name, str(error)), now=self._monotonic()):
            log.warning("watchdog: store %s: %s; it is tried again", watched.name, error)

    def _show_some(self, watched: WatchedStore) -> None:
        """Log the stacks of overdue requests, of a few workers at a time."""
        for _ in range(MOST_SHOWN):
            hidden = [
                each
                for each in self._view.overdue.values()
                if not each.stack_is_shown and each.watched.name == watched.name
            ]
            if not hidden:
                return
            self._show(hidden[0])

    def _show(self, overdue: OverdueRequest) -> None:
        """Log the stack of a request, and of all other overdue ones in the same worker."""
        in_worker = self._view.overdue_in_worker(overdue)
        hidden = [each for each in in_worker if not each.stack_is_shown]
        worker, dump = overdue.worker, None
        if worker is not None and self._is_here(overdue.request):
            try:
                dump = self._system.dump(worker, overdue.request.thread)
            except Exception as error:
                log.info("watchdog: worker %d cannot be asked for its stacks: %s", worker.pid, error)
        for each in hidden:
            each.stack_is_shown = True
            self._report.stack(each, dump)


def _server_of(worker: Worker | None) -> tuple[int, int]:
    """The server of a worker: a pid namespace, and a parent there. Zeros where that is not known."""
    return (0, 0) if worker is None else (worker.namespace, worker.parent)

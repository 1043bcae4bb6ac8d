"""Reports workers that have died, with the requests that they had in flight.

The stores record the deaths. The watchdog adds what it saw of the worker at its last look: the CPU that
the worker had used, and how many processes of its cgroup the kernel had killed for lack of memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from guardrails.once import Once
from guardrails.store.dead_workers import in_flight_text
from guardrails.store.processes import Owner
from guardrails.store.records import Death, Worker
from guardrails.watchdog.actions import System
from guardrails.watchdog.events import Notify
from guardrails.watchdog.overdue import ScoreboardView

OFTEN, WINDOW = 5, 300.0
"""So many deaths of workers of one server within so many seconds are reported as `dying-often`."""

_REPEAT_SECONDS = 600.0
_EXITS_IN_ORDER = "gunicorn"
"""The server whose workers run Python's exit handlers whenever they are not killed. Of others, only a
worker with a request in flight is known to have died."""


class LastSeen(NamedTuple):
    """What a look saw of a worker.

    Attributes:
        worker: the worker.
        oom_file: the file that counts the out-of-memory kills of its cgroup; None without one.
        at: when that was, in seconds.
    """

    worker: Worker
    oom_file: Path | None
    at: float


class DeathWatch:
    """Reports the deaths of workers.

    Args:
        notify: is called with each event.
        system: the processes of this host.
        view: what the last look at the scoreboards found.
        is_mine: whether the workers of a parent in a pid namespace are watched.
        monotonic: returns the time in seconds.
    """

    def __init__(
        self,
        notify: Notify,
        system: System,
        view: ScoreboardView,
        is_mine: Callable[[int, int], bool],
        monotonic: Callable[[], float],
    ) -> None:
        self._notify = notify
        self._system = system
        self._view = view
        self._is_mine = is_mine
        self._monotonic = monotonic
        self._began = monotonic()
        self._last_numbers: dict[str, int] = {}
        self._last_seen: dict[Owner, LastSeen] = {}
        self._oom_kills: dict[Path, int] = {}
        # A worker may die between two parts of one look, so those of the look before count too.
        self._ended_by_watchdog: set[Owner] = set()
        self._recent: dict[int, deque[tuple[float, str]]] = {}
        self._first_time = Once(_REPEAT_SECONDS)

    def look(self) -> None:
        """Report the workers that have died since the last look. All stores have been looked at."""
        of_worker: dict[Owner, list[Death]] = {}
        for watched in self._view.stores:
            if watched.name in self._view.failed:
                continue
            known = self._last_numbers.get(watched.name)
            deaths = list(watched.store.deaths(known or 0))
            self._last_numbers[watched.name] = deaths[-1].number if deaths else known or 0
            if known is None:
                # The others were found dead before this watchdog began.
                since = self._monotonic() - self._began
                deaths = [death for death in deaths if death.seconds_ago <= since]
            for owner in dict.fromkeys(death.owner for death in deaths):
                found = [death for death in deaths if death.owner == owner]
                # One request may have passed through several stores.
                if owner not in of_worker or of_worker[owner][0].in_flight < found[0].in_flight:
                    of_worker[owner] = found
        expected = self._view.ending | self._ended_by_watchdog
        for owner, found in of_worker.items():
            if owner not in expected:
                self._report(owner, found)
        self._ended_by_watchdog = set(self._view.ending)
        self._remember(self._view.workers.values())

    def _report(self, owner: Owner, deaths: list[Death]) -> None:
        death, seen = deaths[0], self._last_seen.get(owner)
        parent = seen.worker.parent if seen else death.parent
        if owner.namespace != self._system.namespace() or not self._is_mine(owner.namespace, parent):
            return
        in_order = seen is None or not seen.worker.server.startswith(_EXITS_IN_ORDER)
        if not death.in_flight and in_order:
            return
        message = f"worker {owner.pid} has died with {in_flight_text(deaths)}"
        facts: dict[str, object] = {"pid": owner.pid, "in_flight": death.in_flight}
        if death.in_flight:
            age = f"{death.age_seconds:.1f}"
            facts |= {"method": death.method, "path": death.path, "host": death.host}
            facts |= {"client": death.client, "age": age}
        if seen is not None:
            message += self._cpu(seen, facts) + self._oom(seen, facts)
        self._notify("died", message, **facts)
        path = f"{death.method} {death.path}" if death.in_flight else ""
        self._count(parent, path)

    def _cpu(self, seen: LastSeen, facts: dict[str, object]) -> str:
        """What the worker had used of its limit of CPU, where it has one."""
        used, limits = seen.worker.cpu_seconds, seen.worker.limits.get("CPU", (-1, -1))
        limit = limits[1] if limits[1] >= 0 else limits[0]
        if used is None:
            return ""
        facts["cpu"] = f"{used:.1f}"
        if limit < 0:
            return ""
        facts["cpu_limit"] = limit
        ago = self._monotonic() - seen.at
        return (
            f"; {ago:.0f} s before it was found dead it had used {used:.0f} s of its {limit} s of CPU"
        )

    def _oom(self, seen: LastSeen, facts: dict[str, object]) -> str:
        """How many processes of its cgroup the kernel has killed for lack of memory meanwhile."""
        file = seen.oom_file
        count = None if file is None else self._system.oom_kills(file)
        if file is None or count is None or file not in self._oom_kills:
            return ""
        killed = max(0, count - self._oom_kills[file])
        facts["oom_kills"] = killed
        return f"; the kernel has killed {killed} of its cgroup for lack of memory" if killed else ""

    def _count(self, parent: int, request: str) -> None:
        now = self._monotonic()
        recent = self._recent.setdefault(parent, deque(maxlen=1000))
        recent.append((now, request))
        while recent[0][0] < now - WINDOW:
            recent.popleft()
        if len(recent) < OFTEN or not self._first_time(parent, now=now):
            return
        message = f"{len(recent)} workers of server {parent} have died within {WINDOW / 60:g} minutes"
        requests = [each for _, each in recent if each]
        facts: dict[str, object] = {"parent": parent, "deaths": len(recent)}
        if requests:
            most = max(set(requests), key=requests.count)
            message += f"; {most} was in flight in {requests.count(most)} of them"
            facts["request"] = most
        self._notify("dying-often", message, **facts)

    def _remember(self, workers: Iterable[Worker]) -> None:
        now = self._monotonic()
        known, self._last_seen = self._last_seen, {}
        for worker in workers:
            before = known.get(worker.owner)
            file = self._system.oom_file(worker.pid) if before is None else before.oom_file
            self._last_seen[worker.owner] = LastSeen(worker, file, now)
        counts = {each.oom_file for each in self._last_seen.values() if each.oom_file is not None}
        self._oom_kills = {
            file: count for file in counts if (count := self._system.oom_kills(file)) is not None
        }

"""Whether a worker may be ended, and which workers of its server would be left."""

from __future__ import annotations

from collections.abc import Iterator

from guardrails.store.records import Worker
from guardrails.watchdog.actions import System
from guardrails.watchdog.overdue import OverdueRequest, ScoreboardView
from guardrails.watchdog.policy import Policy
from guardrails.worker.server import accepts_until_idle


class EndingRules:
    """Says which workers may be ended.

    Args:
        policy: what the watchdog may do.
        system: the processes of this host.
        view: what the last look at the scoreboards found.
    """

    def __init__(self, policy: Policy, system: System, view: ScoreboardView) -> None:
        self._policy = policy
        self._system = system
        self._view = view

    def reason_against(self, overdue: OverdueRequest) -> str | None:
        """Return why the worker of a request must not be ended; None when it may be."""
        worker = overdue.worker
        why = None
        if self._policy.dry_run:
            return "only reported, since this is a dry run"
        if overdue.request.namespace != self._system.namespace():
            why = "it runs in another container"
        elif worker is None:
            why = "it is not on the scoreboard, so it is unknown whether it would be restarted"
        elif not worker.respawns:
            if not self._policy.respawned:
                why = f"{worker.server} has no supervisor that would restart it"
        elif not worker.parent or not self._system.parent(worker.pid):
            why = "the process that would restart it is unknown"
        elif not self.is_orphan(worker) and self._left_without(worker) < self._policy.least_workers:
            why = f"fewer than {self._policy.least_workers} would be left"
        return None if why is None else f"its worker is not ended, since {why}"

    def is_orphan(self, worker: Worker) -> bool:
        """Return whether the parent that a worker had when it registered has ended.

        The kernel gives a process another parent only then. An orphan serves nobody: it only keeps the
        port of its server. A server of a single process may have been started by a shell that ended.
        """
        parent = self._system.parent(worker.pid)
        return worker.respawns and 0 not in (parent, worker.parent) and parent != worker.parent

    def accepts(self, worker: Worker) -> bool:
        """Return whether a worker takes further requests, as far as the scoreboard shows."""
        if worker.state == "retiring" or worker.owner in self._view.ending:
            return False
        return len(self._overdue_ages(worker)) < max(1, worker.threads)

    def server_is_healthy(self, worker: Worker | None) -> bool:
        """Return whether some worker of the same server serves requests."""
        return worker is not None and any(map(self._serves, (worker, *self._others(worker))))

    def _serves(self, worker: Worker) -> bool:
        """Whether a worker takes further requests, and none is overdue or some came or ended since.

        Other threads of a worker may be free, and yet not run: one that hangs in C code may hold the
        interpreter's lock.
        """
        ages = self._overdue_ages(worker)
        return self.accepts(worker) and (not ages or worker.last_seen_seconds < min(ages))

    def _overdue_ages(self, worker: Worker) -> list[float]:
        overdue = self._view.overdue.values()
        return [each.request.age_seconds for each in overdue if each.request.owner == worker.owner]

    def nobody_accepts_without(self, worker: Worker) -> bool:
        """Return whether no worker takes further requests once this one retires, and this one does."""
        return (
            self.accepts(worker)
            and not self._another_accepts(worker)
            and not accepts_until_idle(worker.server)
            and not self.is_orphan(worker)
        )

    def _another_accepts(self, worker: Worker) -> bool:
        return any(map(self.accepts, self._others(worker)))

    def _left_without(self, worker: Worker) -> int:
        """How many other workers of its server serve, whatever their stores."""
        return sum(
            other.state != "retiring" and other.owner not in self._view.ending
            for other in self._others(worker)
        )

    def _others(self, worker: Worker) -> Iterator[Worker]:
        """The other workers of its server, whatever their stores."""
        for other in self._view.workers.values():
            same_server = (other.namespace, other.parent) == (worker.namespace, worker.parent)
            if same_server and other.pid != worker.pid:
                yield other

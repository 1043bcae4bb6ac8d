"""When a request is overdue, and what the watchdog may do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from guardrails.paths import path_readings
from guardrails.store.layout import ROW_PATH_BYTES
from guardrails.store.records import InFlight


@dataclass(frozen=True)
class Policy:
    """When a request is overdue, and what the watchdog may do about it. Times are in seconds.

    Args:
        timeout: age at which a request is overdue; 0 means never.
        poll: time between two looks at the scoreboard.
        path_timeouts: other time-outs by path prefix. The longest prefix counts; 0 means never.
        interrupt: first raise an exception in the thread of the request, where the worker allows it.
        grace: time that the other requests of a retiring worker have to end.
        signal_interval: time between two signals to one worker.
        least_workers: never leave fewer workers of a server alive than this.
        kill_interval: time between the end of one worker and the first signal to the next.
        ban: time for which the client of an ended request is refused the same path; 0 for no ban.
        dry_run: only report; end no request and no worker.
        respawned: a supervisor outside, such as systemd, starts the server again when it has ended, so
            that a server of a single process may be ended as well.
    """

    timeout: float = 180.0
    poll: float = 5.0
    path_timeouts: Mapping[str, float] = field(default_factory=dict)
    interrupt: bool = False
    grace: float = 30.0
    signal_interval: float = 3.0
    least_workers: int = 0
    kill_interval: float = 10.0
    ban: float = 0.0
    dry_run: bool = False
    respawned: bool = False

    @property
    def ends_nothing(self) -> bool:
        """Whether no request is ever overdue, so that only the monitor has something to do."""
        return not self.timeout and not any(self.path_timeouts.values())

    def timeout_of(self, request: InFlight) -> float:
        """Return the age at which a request is overdue, in seconds; 0 means never.

        A server or an app may read one path in several ways. A prefix counts only if all readings
        fall under it. Of a path that was cut short, the rest is unknown, so it counts only in its
        usual spelling.
        """
        found, longest = self.timeout, -1
        if not self.path_timeouts or (len(request.path) >= ROW_PATH_BYTES and not request.usual_path):
            return found
        readings = path_readings(request.path)
        for prefix, seconds in self.path_timeouts.items():
            if len(prefix) > longest and readings.all_under((prefix,)):
                found, longest = seconds, len(prefix)
        return found

"""When a watchdog bites, and how hard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from guardrails.paths import path_readings
from guardrails.store.records import InFlight

_SHOWN = 128
"""Bytes of a path that a row shows."""


@dataclass(frozen=True)
class Policy:
    """When the watchdog bites. Durations in seconds.

    timeout: the age at which a request is too old; 0 is never.   poll: from look to look.
    path_timeouts: others for paths under a prefix; the longest prefix counts, and 0 is never.
    interrupt: begin with an exception in the request's thread, where the worker takes such orders.
    grace: how long to wait for the other requests of a worker that is told to retire.
    step: how long to wait between the signals.   least_workers: no worker is killed that would leave
    fewer of its server alive.   between: from the end of one worker to the next.   ban: how long the
    client of a killed request is refused the same path.   dry_run: only tell.
    """

    timeout: float = 180.0
    poll: float = 5.0
    path_timeouts: Mapping[str, float] = field(default_factory=dict)
    interrupt: bool = False
    grace: float = 30.0
    step: float = 3.0
    least_workers: int = 0
    between: float = 10.0
    ban: float = 0.0
    dry_run: bool = False

    @property
    def ends_nothing(self) -> bool:
        """Whether no request is ever too old: only the monitor has something to do."""
        return not self.timeout and not any(self.path_timeouts.values())

    def timeout_of(self, request: InFlight) -> float:
        """The age at which that request is too old; 0 is never.

        A path may be read in several ways: an exemption, or a longer time, holds only if all of them
        fall under it. Of a path that was cut the rest is not known, so it must be in its usual
        spelling.
        """
        found, longest = self.timeout, -1
        if not self.path_timeouts or (len(request.path) >= _SHOWN and not request.usual_path):
            return found
        readings = path_readings(request.path)
        for prefix, seconds in self.path_timeouts.items():
            if len(prefix) > longest and readings.all_under((prefix,)):
                found, longest = seconds, len(prefix)
        return found

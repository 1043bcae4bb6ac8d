"""One WARNING for each ban that begins. Clients cause bans, so each minute has a few lines only."""

from __future__ import annotations

import logging
import time

from guardrails.store.contract import StoreRequest
from guardrails.units import format_duration

log = logging.getLogger("guardrails")

MOST_LINES = 20
"""How many bans are logged one by one in each period. The others are counted."""

_PERIOD_SECONDS = 60.0

monotonic = time.monotonic


class BanLog:
    """Logs the bans that begin in one process.

    Any thread may call, and no lock is held: a fork could leave one held for good. Two threads that
    call at the same moment may log a line too many, or count one too few.
    """

    def __init__(self) -> None:
        self._period_ends = 0.0
        self._lines = 0
        self._left_out = 0

    def begins(self, guard: str, request: StoreRequest, microseconds: int) -> None:
        """Log that a guard bans the client of a request.

        Args:
            guard: the guard's name.
            request: the request that was refused.
            microseconds: how long the ban is.
        """
        now = monotonic()
        if now >= self._period_ends:
            left_out, self._left_out, self._lines = self._left_out, 0, 0
            self._period_ends = now + _PERIOD_SECONDS
            if left_out:
                log.warning("%d more bans have begun since the last line about one", left_out)
        self._lines += 1
        if self._lines > MOST_LINES:
            self._left_out += 1
            return
        duration = format_duration(microseconds)
        log.warning(
            "%.200s bans %s for %s, after %.20a %.200a%s",
            guard,
            request.client,
            duration if duration[0].isdigit() else f"1 {duration}",
            request.method,
            request.path,
            "; further bans within a minute are only counted" if self._lines == MOST_LINES else "",
        )

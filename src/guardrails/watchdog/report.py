"""What a watchdog says: each event in words for the log, and in facts for a command."""

from __future__ import annotations

import logging
from collections.abc import Callable

from guardrails.store.contract import Penalty
from guardrails.watchdog.events import Announce, printable
from guardrails.watchdog.overdue import OverdueRequest
from guardrails.worker import stacks

log = logging.getLogger("guardrails.watch")

MOST_STACK_LINES = 60


class WatchdogReporter:
    """Tells of requests that are too old: what was seen, what was done, and how they ended.

    announce: is told of every event.   is_gone: whether the worker of a request is known to have
    ended.   monotonic: the time in seconds.
    """

    def __init__(
        self,
        announce: Announce,
        is_gone: Callable[[OverdueRequest], bool],
        monotonic: Callable[[], float],
    ) -> None:
        self._announce = announce
        self._is_gone = is_gone
        self._monotonic = monotonic
        self._over: list[OverdueRequest] = []

    def overdue(self, overdue: OverdueRequest, beside: int) -> None:
        """A request is too old."""
        message = f"{overdue}, thread {overdue.request.thread:#x}: more than {overdue.limit:g} s"
        message += f"; {requests_text(beside)} more with it" if beside else ""
        self._announce("overdue", message, **overdue.facts(), beside=beside)

    def stack(self, overdue: OverdueRequest, dump: stacks.Dump | None) -> None:
        """Where it is, by the stacks of its worker; None where it shows none."""
        request = overdue.request
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

    def left_alone(self, overdue: OverdueRequest, reason: str) -> None:
        """Nothing is done about it, for that reason, which is told once."""
        if overdue.first_time(reason):
            self._announce("left-alone", f"{overdue}: {reason}", **overdue.facts())

    def blamed(self, overdue: OverdueRequest, done: Penalty, ban: float) -> None:
        """What its client has to bear, if anything. ban: seconds."""
        what = [f"is charged {overdue.request.age_seconds:.0f} s"] if done.meters else []
        what += [f"is refused the same for {ban:g} s"] if done.banned else []
        if what:
            who = overdue.request.client or "an unknown client"
            self._announce("blamed", f"{who} {', and '.join(what)}", logging.INFO, **overdue.facts())

    def step(self, overdue: OverdueRequest, what: str, step: str) -> None:
        """A step was taken."""
        seconds = overdue.request.age_seconds - overdue.age_before
        if seconds >= 1:
            what += f"; its worker has burnt {overdue.burnt:.1f} s of CPU in the last {seconds:.0f} s"
        self._announce(
            "step", f"{overdue}: {what}", **overdue.facts(), step=step, cpu=f"{overdue.burnt:.1f}"
        )

    def not_permitted(self, overdue: OverdueRequest, error: OSError) -> None:
        """Its worker cannot be sent a signal."""
        self._announce("not-permitted", f"worker {overdue.request.pid}: {error}", **overdue.facts())

    def stands(self, overdue: OverdueRequest) -> None:
        """Its worker has survived everything."""
        message = f"worker {overdue.request.pid} does not end after SIGKILL"
        self._announce("stands", message, **overdue.facts())

    def over(self, overdue: OverdueRequest, wait: float) -> None:
        """It is in flight no more. wait: seconds within which its worker is expected to end."""
        overdue.tell_at = self._monotonic() + wait
        self._over.append(overdue)

    @property
    def waits(self) -> bool:
        """Whether there are ends to tell of."""
        return bool(self._over)

    def ends(self, *, at_once: bool = False) -> None:
        """Tell of the requests that are over, each when it is known what became of its worker."""
        for overdue in list(self._over):
            is_gone = self._is_gone(overdue)
            if is_gone or at_once or self._monotonic() >= overdue.tell_at:
                self._over.remove(overdue)
                self._end(overdue, is_gone=is_gone)

    def _end(self, overdue: OverdueRequest, *, is_gone: bool) -> None:
        last = overdue.last_step
        if is_gone and last:
            self._announce("killed", f"{overdue}: its worker has ended after {last}", **overdue.facts())
        elif is_gone:
            message = f"{overdue}: its worker has ended by itself"
            self._announce("gone", message, logging.INFO, **overdue.facts())
        else:
            after = f" after {last}" if last else ""
            self._announce("ended", f"{overdue}: it has ended{after}", logging.INFO, **overdue.facts())


def requests_text(count: int) -> str:
    """So many requests."""
    return f"{count} request{'' if count == 1 else 's'}"

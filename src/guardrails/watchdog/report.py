"""What a watchdog reports: each event as a log line, and as facts for a command."""

from __future__ import annotations

import logging
from collections.abc import Callable

from guardrails.store.records import Penalty
from guardrails.watchdog.events import Notify, printable
from guardrails.watchdog.overdue import OverdueRequest
from guardrails.watchdog.stack_dump import Dump

log = logging.getLogger("guardrails.watch")

MOST_STACK_LINES = 60


class WatchdogReporter:
    """Reports overdue requests: what was found, what was done, and how they ended.

    Args:
        notify: is called with each event.
        has_ended: returns whether the worker of a request is known to have ended.
        monotonic: returns the time in seconds.
    """

    def __init__(
        self,
        notify: Notify,
        has_ended: Callable[[OverdueRequest], bool],
        monotonic: Callable[[], float],
    ) -> None:
        self._notify = notify
        self._has_ended = has_ended
        self._monotonic = monotonic
        self._over: list[OverdueRequest] = []

    def overdue(self, overdue: OverdueRequest, beside: int) -> None:
        """A request is overdue.

        Args:
            overdue: the request.
            beside: how many other requests its worker has in the same store.
        """
        message = f"{overdue}, thread {overdue.request.thread:#x}: more than {overdue.limit:g} s"
        message += f"; {requests_text(beside)} more in that worker" if beside else ""
        self._notify("overdue", message, **overdue.facts(), beside=beside)

    def stack(self, overdue: OverdueRequest, dump: Dump | None) -> None:
        """Log the stack of a request's thread.

        Args:
            overdue: the request.
            dump: the stacks of its worker; None where the worker shows none.
        """
        request = overdue.request
        block = dump.of(request.thread) if dump is not None else None
        if block is None:
            self._notify(
                "no-stack",
                f"worker {request.pid} does not show the stack of its thread {request.thread:#x}"
                + ("" if dump is None else f"; it shows {len(dump.blocks)} others"),
                logging.INFO,
                pid=request.pid,
            )
            return
        for line in block[:MOST_STACK_LINES]:
            log.warning("overdue: worker %d: %s", request.pid, printable(line))

    def left_alone(self, overdue: OverdueRequest, reason: str) -> None:
        """Nothing is done about a request. Each reason is reported once."""
        if overdue.first_time(reason):
            self._notify("left-alone", f"{overdue}: {reason}", **overdue.facts())

    def penalized(self, overdue: OverdueRequest, done: Penalty, ban: float) -> None:
        """Its client was charged or banned, or neither.

        Args:
            overdue: the request.
            done: what the store did.
            ban: how long the client is refused, in seconds.
        """
        what = [f"is charged {overdue.request.age_seconds:.0f} s"] if done.meters else []
        what += [f"is refused the same path for {ban:g} s"] if done.banned else []
        if what:
            client = overdue.request.client or "an unknown client"
            self._notify("blamed", f"{client} {', and '.join(what)}", logging.INFO, **overdue.facts())

    def step(self, overdue: OverdueRequest, what: str, step: str) -> None:
        """A step was taken.

        Args:
            overdue: the request.
            what: the step as a part of a sentence.
            step: the step as one word, for a command.
        """
        seconds = overdue.request.age_seconds - overdue.age_before
        if seconds >= 1:
            what += f"; its worker has used {overdue.cpu_used:.1f} s of CPU in the last {seconds:.0f} s"
        cpu = f"{overdue.cpu_used:.1f}"
        self._notify("step", f"{overdue}: {what}", **overdue.facts(), step=step, cpu=cpu)

    def not_permitted(self, overdue: OverdueRequest, error: OSError) -> None:
        """The system does not let this process signal its worker."""
        self._notify("not-permitted", f"worker {overdue.request.pid}: {error}", **overdue.facts())

    def survived(self, overdue: OverdueRequest) -> None:
        """Its worker still exists after SIGKILL."""
        message = f"worker {overdue.request.pid} does not end after SIGKILL"
        self._notify("stands", message, **overdue.facts())

    def request_ended(self, overdue: OverdueRequest, wait: float) -> None:
        """A request is no longer in flight, which `report_ends` reports.

        Args:
            overdue: the request.
            wait: seconds within which its worker is expected to end too.
        """
        overdue.report_at = self._monotonic() + wait
        self._over.append(overdue)

    @property
    def has_unreported_ends(self) -> bool:
        """Whether there are ends to report."""
        return bool(self._over)

    def report_ends(self, *, at_once: bool = False) -> None:
        """Report the requests that have ended, each when it is known whether its worker has, too.

        Args:
            at_once: report all of them now.
        """
        for overdue in list(self._over):
            has_ended = self._has_ended(overdue)
            if has_ended or at_once or self._monotonic() >= overdue.report_at:
                self._over.remove(overdue)
                self._report_end(overdue, worker_has_ended=has_ended)

    def _report_end(self, overdue: OverdueRequest, *, worker_has_ended: bool) -> None:
        last = overdue.last_step
        if worker_has_ended and last:
            self._notify("killed", f"{overdue}: its worker has ended after {last}", **overdue.facts())
        elif worker_has_ended:
            message = f"{overdue}: its worker has ended by itself"
            self._notify("gone", message, logging.INFO, **overdue.facts())
        else:
            after = f" after {last}" if last else ""
            self._notify("ended", f"{overdue}: it has ended{after}", logging.INFO, **overdue.facts())


def requests_text(count: int) -> str:
    """Return "1 request", "2 requests" and so on."""
    return f"{count} request{'' if count == 1 else 's'}"

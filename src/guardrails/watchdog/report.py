"""What a watchdog says: each event in words for the log, and in facts for a command."""

from __future__ import annotations

import logging
from collections.abc import Callable

from guardrails.store.contract import Blamed
from guardrails.watchdog.events import Announce, printable
from guardrails.watchdog.overdue import Case
from guardrails.worker import stacks

log = logging.getLogger("guardrails.watch")

MOST_STACK_LINES = 60


class Telling:
    """Tells of requests that are too old: what was seen, what was done, and how they ended.

    announce: is told of every event.   is_gone: whether the worker of a request is known to have
    ended.   monotonic: the time in seconds.
    """

    def __init__(
        self,
        announce: Announce,
        is_gone: Callable[[Case], bool],
        monotonic: Callable[[], float],
    ) -> None:
        self._announce = announce
        self._is_gone = is_gone
        self._monotonic = monotonic
        self._over: list[Case] = []

    def overdue(self, case: Case, beside: int) -> None:
        """A request is too old."""
        message = f"{case}, thread {case.request.thread:#x}: more than {case.limit:g} s"
        message += f"; {in_words(beside)} more with it" if beside else ""
        self._announce("overdue", message, **case.facts(), beside=beside)

    def stack(self, case: Case, dump: stacks.Dump | None) -> None:
        """Where it is, by the stacks of its worker; None where it shows none."""
        request = case.request
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

    def left_alone(self, case: Case, reason: str) -> None:
        """Nothing is done about it, for that reason, which is told once."""
        if reason not in case.said:
            case.said.add(reason)
            self._announce("left-alone", f"{case}: {reason}", **case.facts())

    def blamed(self, case: Case, done: Blamed, ban: float) -> None:
        """What its client has to bear, if anything. ban: seconds."""
        what = [f"is charged {case.request.age_seconds:.0f} s"] if done.meters else []
        what += [f"is refused the same for {ban:g} s"] if done.banned else []
        if what:
            who = case.request.client or "an unknown client"
            self._announce("blamed", f"{who} {', and '.join(what)}", logging.INFO, **case.facts())

    def step(self, case: Case, what: str, step: str) -> None:
        """A step was taken."""
        seconds = case.request.age_seconds - case.age_before
        if seconds >= 1:
            what += f"; its worker has burnt {case.burnt:.1f} s of CPU in the last {seconds:.0f} s"
        self._announce("step", f"{case}: {what}", **case.facts(), step=step, cpu=f"{case.burnt:.1f}")

    def not_permitted(self, case: Case, error: OSError) -> None:
        """Its worker cannot be sent a signal."""
        self._announce("not-permitted", f"worker {case.request.pid}: {error}", **case.facts())

    def stands(self, case: Case) -> None:
        """Its worker has survived everything."""
        message = f"worker {case.request.pid} does not end after SIGKILL"
        self._announce("stands", message, **case.facts())

    def over(self, case: Case, wait: float) -> None:
        """It is in flight no more. wait: seconds within which its worker is expected to end."""
        case.tell_at = self._monotonic() + wait
        self._over.append(case)

    @property
    def waits(self) -> bool:
        """Whether there are ends to tell of."""
        return bool(self._over)

    def ends(self, *, at_once: bool = False) -> None:
        """Tell of the requests that are over, each when it is known what became of its worker."""
        for case in list(self._over):
            is_gone = self._is_gone(case)
            if is_gone or at_once or self._monotonic() >= case.tell_at:
                self._over.remove(case)
                self._end(case, is_gone=is_gone)

    def _end(self, case: Case, *, is_gone: bool) -> None:
        last = case.last_step
        if is_gone and last:
            self._announce("killed", f"{case}: its worker has ended after {last}", **case.facts())
        elif is_gone:
            message = f"{case}: its worker has ended by itself"
            self._announce("gone", message, logging.INFO, **case.facts())
        else:
            after = f" after {last}" if last else ""
            self._announce("ended", f"{case}: it has ended{after}", logging.INFO, **case.facts())


def in_words(count: int) -> str:
    """So many requests."""
    return f"{count} request{'' if count == 1 else 's'}"

"""What the demo claims, and whether it was observed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from app import IMAGES_AT_ONCE
from clients import Answer, Crowd
from observer import Kill
from replay import Log

from guardrails.store.records import GuardCounters

LATEST_SECONDS = 1.5
LONGEST_SECONDS = 60
GREEDY_PATH = "/morphing/"
SIMULTANEOUS = 0.25
"""Seconds after the kill within which a request may still have reached the dying worker."""

BLOCK, SPEED, CPU, AT_ONCE = (
    "block-agents",
    "speed-limit client",
    "cpu-throttle client",
    "max-concurrent /morphing all",
)


@dataclass
class Side:
    """One of the two runs.

    Attributes:
        crowd: all clients and their answers.
        flood: when the flood of /morphing/ began and ended.
        desks: how many images were drawn at once, at most.
    """

    crowd: Crowd = field(default_factory=Crowd)
    flood: tuple[float, float] = (0.0, 0.0)
    desks: int = 0

    def readers(self) -> dict[str, list[Answer]]:
        """The answers of /news/ to its readers before, during and after the flood."""
        began, ended = self.flood
        parts: dict[str, list[Answer]] = {"before": [], "during": [], "after": []}
        for answer in self.crowd.of("reader"):
            late = answer.sent >= ended
            parts["before" if answer.sent < began else "after" if late else "during"].append(answer)
        return parts


@dataclass
class Evidence:
    """All that was seen."""

    log: Log
    bare: Side = field(default_factory=Side)
    guarded: Side = field(default_factory=Side)
    kill: Kill | None = None
    patience: list[Answer] = field(default_factory=list)
    slots_held: int = -1
    counters: dict[str, GuardCounters] = field(default_factory=dict)
    alarms: dict[str, int] = field(default_factory=dict)
    server_log: str = ""
    left_processes: list[int] = field(default_factory=list)
    left_files: list[Path] = field(default_factory=list)
    seconds: float = 0.0


class Claim(NamedTuple):
    """A sentence, and whether it was observed. of_machine: it only depends on this machine's speed."""

    holds: bool
    text: str
    of_machine: bool = False

    @property
    def fails(self) -> bool:
        """Guardrails did not do what it promises."""
        return not self.holds and not self.of_machine


class Times(NamedTuple):
    """Response times in milliseconds."""

    count: int
    median: float
    p95: float
    worst: float


def times(answers: list[Answer]) -> Times:
    seconds = [answer.seconds * 1000 for answer in answers if not answer.lost]
    if len(seconds) < 2:
        return Times(len(seconds), *(seconds or [0.0]) * 3)
    return Times(len(seconds), median(seconds), quantiles(seconds, n=20)[-1], max(seconds))


def check(evidence: Evidence) -> list[Claim]:
    """Every claim, in the order of the story."""
    return [
        *_answers(evidence),
        *_replay(evidence),
        *_greedy(evidence),
        *_blocked(evidence),
        *_readers(evidence),
        *_killed(evidence),
        *_counters(evidence),
        *_nothing_left(evidence),
    ]


def _answers(evidence: Evidence) -> Iterator[Claim]:
    bare, answers = evidence.bare.crowd.answers, evidence.guarded.crowd.answers
    lost = [answer for answer in answers if answer.lost]
    kill = evidence.kill
    torn = [
        answer
        for answer in lost
        if kill and answer.sent < kill.at + SIMULTANEOUS and answer.done > kill.at - SIMULTANEOUS
    ]
    yield Claim(
        not any(answer.lost for answer in bare) and lost == torn,
        f"each of {len(bare) + len(answers)} requests was answered; lost with the killed worker, where "
        f"they were open: {len(lost)}",
    )


def _replay(evidence: Evidence) -> Iterator[Claim]:
    log, crowd = evidence.log, evidence.guarded.crowd
    fast, rest = crowd.of("log, true speed"), crowd.of("log, in a hurry")
    yield Claim(
        len(fast) == len(log.true_speed) and len(rest) == len(log.in_a_hurry),
        f"{len(fast) + len(rest)} lines of the log were sent; {log.not_http} are no HTTP",
    )
    latest = max((answer.late for answer in fast), default=LATEST_SECONDS)
    yield Claim(
        latest < LATEST_SECONDS,
        f"its {len(log.minutes)} busiest minutes went at true speed, at most {latest:.2f} s late",
        of_machine=True,
    )
    speeders = {answer.order.address for answer in fast if answer.refused_by == SPEED}
    probes = [answer for answer in fast if answer.order.address in speeders]
    yield Claim(
        len(speeders) == 1 and all(answer.order.target.endswith("/.env") for answer in probes),
        f"at true speed the speed limit refused nobody but {len(speeders)} scanner, which looked for "
        f"{len(probes)} .env files in 4 s",
    )


def _greedy(evidence: Evidence) -> Iterator[Claim]:
    flood = evidence.guarded.crowd.of("greedy client")
    refused = [answer for answer in flood if answer.refused_by]
    yield Claim(
        {answer.refused_by for answer in refused} <= {CPU, AT_ONCE}
        and len(refused) > len(flood) / 2
        and all(answer.status == 503 and answer.retry_after for answer in refused),
        f"the greedy client was refused {len(refused)} of {len(flood)} times, each time with a "
        "Retry-After",
    )
    before, after = evidence.patience
    yield Claim(
        before.status == 503 and after.status == 200,
        f"told to wait {before.retry_after} s, it did once, and was admitted",
    )
    most, most_without = evidence.guarded.desks, evidence.bare.desks
    yield Claim(
        1 <= most <= IMAGES_AT_ONCE < most_without,
        f"never more than {most} images at once over both workers; {most_without} without guardrails",
    )


def _blocked(evidence: Evidence) -> Iterator[Claim]:
    answers = [answer for answer in evidence.guarded.crowd.of("blocked agent") if not answer.lost]
    yield Claim(
        bool(answers) and all((a.status, a.refused_by) == (403, BLOCK) for a in answers),
        f"the blocked agent got 403 each of {len(answers)} times",
    )


def _readers(evidence: Evidence) -> Iterator[Claim]:
    readers = [answer for answer in evidence.guarded.crowd.of("reader") if not answer.lost]
    yield Claim(
        bool(readers) and all(answer.status == 200 for answer in readers),
        f"no reader of /news/ was refused in {len(readers)} requests",
    )
    bare = times(evidence.bare.readers()["during"])
    guarded = times(evidence.guarded.readers()["during"])
    yield Claim(
        0 < guarded.p95 < bare.p95,
        f"during the flood 95 % of them waited at most {guarded.p95:.0f} ms; {bare.p95:.0f} ms "
        "without guardrails",
    )


def _killed(evidence: Evidence) -> Iterator[Claim]:
    answers, kill = evidence.guarded.crowd.answers, evidence.kill
    after = {answer.worker for answer in answers if kill and answer.sent > kill.at and answer.worker}
    torn = [a for a in answers if a.lost and kill and a.order.target == kill.path]
    yield Claim(
        kill is not None and bool(torn) and kill.slots > 0 and len(after - {str(kill.pid)}) == 2,
        f"a worker was killed and another took its place; images half drawn: {len(torn)}",
    )
    yield Claim(evidence.slots_held == 0, f"slots held at the end: {evidence.slots_held}")


def _counters(evidence: Evidence) -> Iterator[Claim]:
    """Each guard counts what it refuses. An answer names the first of several guards that refuse.

    So a guard's counter is at least the number of answers that name it. It is at most that number
    and all answers that name a guard before it. The killed worker's requests may be counted too.
    """
    answers = evidence.guarded.crowd.answers
    lost = sum(answer.lost for answer in answers)
    agree, earlier = True, 0
    for guard in (BLOCK, SPEED, CPU, AT_ONCE):
        counted = evidence.counters.get(guard, GuardCounters())
        named = sum(answer.refused_by == guard for answer in answers)
        admitted = sum(answer.admitted and covers(guard, answer) for answer in answers)
        agree = agree and named > 0
        agree = agree and named <= counted.refused <= named + earlier + lost
        agree = agree and admitted <= counted.admitted <= admitted + lost
        earlier += named
    yield Claim(agree, "each guard refused somebody, and its counters agree with what clients saw")


def covers(guard: str, answer: Answer) -> bool:
    """Whether a guard of app.py covers a request."""
    path = answer.order.target.partition("?")[0]
    if guard == AT_ONCE:
        return path == GREEDY_PATH
    return path != "/robots.txt" and not path.startswith("/static/")


def _nothing_left(evidence: Evidence) -> Iterator[Claim]:
    processes, files = evidence.left_processes, evidence.left_files
    yield Claim(not processes, f"processes left: {len(processes)}")
    yield Claim(not files, f"files left: {len(files)}")
    yield Claim(
        evidence.seconds < LONGEST_SECONDS,
        f"all in {evidence.seconds:.0f} s, of {LONGEST_SECONDS}",
        of_machine=True,
    )

"""An access log as requests to send again: its busiest minutes at true speed, the rest faster.

A minute that is busy for longer than TRUE_SPEED_SECONDS does not fit and goes with the rest. The
chosen minutes are sent at the same time, since no address is in two of them. Each keeps its pace.
The log has whole seconds: the lines of one second are spread over it evenly.
"""

import gzip
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

LOG = Path(__file__).with_name("access_adver_tools_2021.log.gz")
TRUE_SPEED_SECONDS = 23
BUSY_MINUTES = 8

_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_LINE = re.compile(
    rf"(?P<address>\S+) \S+ \S+ \[(?P<time>[^]]+)\] {_QUOTED} \d+ \S+ {_QUOTED} {_QUOTED}"
)
_REQUEST = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.[01]")
_ESCAPE = re.compile(r"\\x([0-9A-Fa-f]{2})")


class Order(NamedTuple):
    """A request to send, `due` so many seconds after the beginning."""

    source: str
    due: float
    address: str
    method: str
    target: str
    agent: str


class Line(NamedTuple):
    """A line of the log that is HTTP."""

    when: datetime
    address: str
    method: str
    target: str
    agent: str

    @property
    def minute(self) -> datetime:
        return self.when.replace(second=0)

    def order(self, source: str, due: float) -> Order:
        return Order(source, due, self.address, self.method, self.target, self.agent)


class Log(NamedTuple):
    """A log as it will be replayed."""

    true_speed: list[Order]
    in_a_hurry: list[Order]
    minutes: list[tuple[datetime, int]]
    not_http: int


def read_log(hurry_seconds: float) -> Log:
    """Read the log and set a time for each of its lines."""
    with gzip.open(LOG, "rt", encoding="latin-1") as file:
        found = [parse_line(text) for text in file]
    lines = sorted(line for line in found if line is not None)
    minutes = defaultdict(list)
    for line in lines:
        minutes[line.minute].append(line)
    busy = busiest_minutes(minutes)
    rest = [line for line in lines if line.minute not in busy]
    true_speed = []
    for index, minute in enumerate(sorted(busy)):
        offsets = spread(line.when.timestamp() for line in minutes[minute])
        delay = (TRUE_SPEED_SECONDS - offsets[-1]) * index / len(busy)
        true_speed += [
            line.order("log, true speed", delay + offset)
            for line, offset in zip(minutes[minute], offsets, strict=True)
        ]
    return Log(
        true_speed=sorted(true_speed, key=lambda order: order.due),
        in_a_hurry=[
            line.order("log, in a hurry", hurry_seconds * number / len(rest))
            for number, line in enumerate(rest)
        ],
        minutes=[(minute, len(minutes[minute])) for minute in sorted(busy)],
        not_http=len(found) - len(lines),
    )


def parse_line(text: str) -> Line | None:
    """A line of the combined format; None for what cannot be sent as HTTP, such as a TLS greeting."""
    line = _LINE.fullmatch(text.rstrip("\n"))
    if line is None:
        return None
    request, agent = _unescape(line[3]), _unescape(line[5])
    parts = _REQUEST.fullmatch(request)
    if parts is None or not agent.isprintable():
        return None
    when = datetime.strptime(line["time"], "%d/%b/%Y:%H:%M:%S %z").astimezone(UTC)
    return Line(when, line["address"], parts[1], parts[2], "" if agent == "-" else agent)


def busiest_minutes(minutes: dict[datetime, list[Line]]) -> set[datetime]:
    """Return the busiest minutes that fit, of which no two share an address."""
    chosen: set[datetime] = set()
    taken: set[str] = set()
    for minute in sorted(minutes, key=lambda minute: -len(minutes[minute])):
        lines = minutes[minute]
        addresses = {line.address for line in lines}
        lasts = (lines[-1].when - lines[0].when).total_seconds() + 1
        if lasts <= TRUE_SPEED_SECONDS and not addresses & taken:
            chosen.add(minute)
            taken |= addresses
        if len(chosen) == BUSY_MINUTES:
            break
    return chosen


def spread(seconds: Iterable[float]) -> list[float]:
    """Return offsets from the first line; lines of the same second are spread over that second."""
    seconds = list(seconds)
    first, together, before = seconds[0], Counter(seconds), Counter()
    offsets = []
    for second in seconds:
        offsets.append(second - first + before[second] / together[second])
        before[second] += 1
    return offsets


def mask(address: str) -> str:
    """An address as it may be shown: addresses in logs are personal data."""
    return address.rpartition(".")[0] + ".*"


def _unescape(text: str) -> str:
    """What nginx has written as \\xHH."""
    return _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)

"""What a store is: two primitives, three verbs, and the rules that every store keeps.

The primitives
    A *meter* is an instant per key (gcra.py). A *slot* is held while a response is open. A guard
    asks for them with a `Requirement`.

The verbs
    `enter` decides about one request, `leave` ends it, `update` charges or releases in between.
    Each is atomic: all workers that share the store see it happen at once.

The rules
    1. `enter` looks at everything first. Admitted: all is charged. Refused: nothing is, and the
       refusing demands' bans are raised in the same step.
    2. A demand that runs dry decides alone after that: it charges itself only if the request goes
       on and it would have admitted it, and what it would raise is raised on a shadow.
    3. The visit is filled in before anything is committed, so whoever made it can always leave.
    4. `leave` may be called any number of times, from any thread; in another process (after a
       fork) it does nothing.
    5. The store owns the clock: monotonic, integer microseconds.
    6. StoreBusyError means "not now, ask again"; any other StoreError means that it cannot.
    7. Nothing here knows HTTP.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from guardrails.errors import ConfigurationError
from guardrails.store.processes import Owner

log = logging.getLogger("guardrails")

ON, DRY_RUN, OFF = "on", "dry-run", "off"
"""The words of the switch, for a whole store or for one guard."""

MOST_SLOTS = 8
"""How many slots one request can hold."""

SWITCH_WORDS = (ON, DRY_RUN, OFF)

REAP_INTERVAL = 250_000
"""Microseconds between two looks for slots that nobody will release."""

SHORTEST_RETRY = 1_000_000
"""Microseconds that a client refused for want of a slot is told to wait, at the least."""


@dataclass(frozen=True, slots=True, eq=False)
class Meter:
    """A leaky bucket, all figures in microseconds. gcra.py says what each of them does.

    need: room that the request must find.   cost: what an admission charges.
    limit: how far ahead of now the instant may be.   slack: how far beyond it a delay may reach.
    resume: once refused, a key is admitted again at this excess (equal to limit: at once).
    horizon: an instant further ahead than this is garbage and read as now.
    """

    name: str
    need: int
    cost: int
    limit: int
    resume: int
    horizon: int
    slack: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """At most `limit` holders at once; `max_hold` microseconds free what nobody released.

    until_return: it is given back when the app returns, not when the response is closed.
    """

    name: str
    limit: int
    max_hold: int
    until_return: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Requirement:
    """What one guard asks of a store. Built once per guard, and asked with a key per request.

    refused: the guard has refused by itself; the store counts it and raises its ban.
    ban_only: asked only because of its ban, for a request that the guard is not about.
    ban: the meter that says "banned", by the request's ban_key; a refusal raises it to `ban_for` ahead.
    shadow_ban: stands in for `ban` where the demand runs dry.
    wait: microseconds that a request may be held back for a slot.
    cpu: how much the meters are charged, when it is known, for each unit of CPU that was used.
    """

    guard: str
    meters: tuple[Meter, ...] = ()
    slots: tuple[Slot, ...] = ()
    ban: Meter | None = None
    shadow_ban: Meter | None = None
    ban_for: int = 0
    wait: int = 0
    refused: bool = False
    ban_only: bool = False
    cpu: float = 0.0


class Debit(NamedTuple):
    """A charge after the fact: `amount` microseconds on a meter, clamped to its horizon."""

    meter: Meter
    key: bytes
    amount: int


class KeyedRequirement(NamedTuple):
    """A demand, the key it is asked for (None: the visit's own), and whether it runs dry."""

    requirement: Requirement
    key: bytes | None
    dry_run: bool


class RouteRequirements(tuple[KeyedRequirement, ...]):
    """Asks that come again and again, always for the same method, host and path.

    prepared: where a store may keep what it has worked out for them.   charged: those whose meters
    are charged with CPU.   until_return: the slots that are given back when the app returns.
    """

    compiled: Any = None

    def __init__(self, _asks: Iterable[KeyedRequirement] = ()) -> None:
        self.charged = charged(self)
        self.until_return = until_return(self)


def charged(requirements: Iterable[KeyedRequirement]) -> tuple[KeyedRequirement, ...]:
    """Those asks whose meters are charged with CPU."""
    return tuple(keyed for keyed in requirements if keyed.requirement.cpu)


def until_return(requirements: Iterable[KeyedRequirement]) -> tuple[Slot, ...]:
    """The slots that are given back when the app returns."""
    return tuple(
        slot for keyed in requirements for slot in keyed.requirement.slots if slot.until_return
    )


class StoreRequest:
    """One request's stay: what it asks, and once entered what it holds.

    (row, generation, pid) is the admission; the row is counted from the first. The caller makes the
    visit, so that whatever happens after, it can be left.

    key: who asks, for the asks that have no key of their own.   ban_key: who is banned by a
    refusal; nobody, when it is empty.   resource: the path that stands for all of its spellings.
    may_wait: whether the request may be held back.
    """

    key = b""
    ban_key = b""
    client = ""
    method = ""
    host = ""
    path = ""
    resource = ""
    may_wait = False
    thread = 0
    row = -1
    generation = 0
    entered = False

    def __init__(self, requirements: Sequence[KeyedRequirement], pid: int, **facts: Any) -> None:
        self.requirements = requirements
        self.pid = pid
        self.__dict__.update(facts)


class Refusal(NamedTuple):
    """A demand that refuses, or would.

    retry: microseconds until it would admit, None when waiting cannot help; for a slot an estimate
    by Little's law, the mean time that it is held over how many there are.
    never: the cost is beyond what could ever be admitted.
    """

    keyed: KeyedRequirement
    retry: int | None
    banned: bool = False
    by_slot: bool = False
    never: bool = False


class EnterResult(NamedTuple):
    """The answer of `enter`. Times in microseconds.

    delay: hold an admitted request back for so long.
    refusals: who refuses, in the order asked. dry_run_refusals: who would have.
    dry_run_delay: for how long demands that run dry would have held it back.
    remaining: how many more such requests the tightest demand would admit now, or None.
    number: identifies the decision within its store.
    """

    admitted: bool
    delay: int
    refusals: tuple[Refusal, ...]
    dry_run_refusals: tuple[Refusal, ...]
    dry_run_delay: int
    remaining: int | None
    number: int


class InFlight(NamedTuple):
    """A request that is being served, as the scoreboard shows it.

    generation: its number, which no other request of this store ever has.   process_start: when its
    process was started, in the system's clock ticks, which tells it from a later one of the same
    pid.   namespace: of its pid, which elsewhere is another process.   path: cut at 128 bytes.
    usual_path: whether all of it, cut or not, is in its usual spelling.   thread: as
    `threading.get_ident()` numbers it.   row: its place.
    """

    pid: int
    generation: int
    age_seconds: float
    client: str
    method: str
    host: str
    path: str
    slots: int
    thread: int = 0
    process_start: int = 0
    row: int = -1
    namespace: int = 0
    usual_path: bool = True

    @property
    def owner(self) -> Owner:
        """Its process, told apart from every other."""
        return Owner(self.pid, self.process_start, self.namespace)


class WorkerFacts(NamedTuple):
    """What a worker says of itself when it begins.

    server: what runs it.   threads: how many requests it serves at once, 0 where unknown.
    respawns: whether somebody starts another one when it ends.   retire_signal: the signal that
    makes it finish its requests and end, 0 where there is none.   dump_signal: the signal that makes
    it write down its stacks, 0 likewise.   interruptible: whether one of its requests can be ended.
    asked_by_signal: whether it is asked for its stacks by a signal of its own, and not at its pipe.
    """

    server: str = "unknown"
    threads: int = 0
    respawns: bool = False
    retire_signal: int = 0
    dump_signal: int = 0
    interruptible: bool = False
    asked_by_signal: bool = False


class Worker(NamedTuple):
    """A process that serves requests, as the scoreboard shows it.

    state: "idle", "serving" or "retiring".   requests: how many it has finished.   cpu_seconds,
    resident_bytes and limits are the system's, read at the moment of asking, and None or empty where
    it does not say; limits are (soft, hard) by name, -1 for unlimited.   The rest: see WorkerFacts
    and InFlight.
    """

    pid: int
    namespace: int
    process_start: int
    parent: int
    server: str
    state: str
    requests: int
    in_flight: int
    age_seconds: float
    last_seen_seconds: float
    cpu_seconds: float | None
    resident_bytes: int | None
    threads: int
    respawns: bool
    retire_signal: int
    dump_signal: int
    interruptible: bool
    asked_by_signal: bool
    limits: dict[str, tuple[int, int]]

    @property
    def owner(self) -> Owner:
        """The process, told apart from every other."""
        return Owner(self.pid, self.process_start, self.namespace)


Shown = TypeVar("Shown", InFlight, Worker)


class Records(list[Shown]):
    """What a scoreboard shows: plain values, and JSON."""

    def to_json(self) -> str:
        """A list of objects, with the fields by their names."""
        return json.dumps([record._asdict() for record in self])


class GuardCounters(NamedTuple):
    """What a guard has done since the store was made, over all workers."""

    admitted: int = 0
    refused: int = 0
    delayed: int = 0
    dry_run_refused: int = 0


class Penalty(NamedTuple):
    """What a client has to bear.   meters: how many were charged.   banned: whether it is refused."""

    meters: int = 0
    banned: bool = False


PENALTY_GUARD = "watchdog"
"""Whose name a refusal carries for a request that was killed, and who counts it."""

PENALIZED = KeyedRequirement(Requirement(PENALTY_GUARD), None, False)

LONGEST_RETIREMENT = 60_000_000
"""Microseconds after which a worker that retires keeps no other one from doing so."""


def monotonic_microseconds() -> int:
    """The clock of a store: the same for all processes of one boot."""
    return time.monotonic_ns() // 1000


def check_switch_word(word: str) -> str:
    """Refuse a word that the switch does not know."""
    if word not in SWITCH_WORDS:
        raise ConfigurationError(
            f"switch: {word!r} is not a position of the switch: use "
            + ", ".join(map(repr, SWITCH_WORDS))
        )
    return word


def warn_of_unknown_guard(guard: str | None, known: Iterable[str]) -> None:
    """A slip in a guard's name would else look like a switch that does not work."""
    if guard is not None and guard not in known:
        log.warning(
            "switch: no guard %r has been met in this store yet; it knows %s",
            guard,
            ", ".join(map(repr, known)) or "none",
        )


class Store(Protocol):
    """State behind the guards. The module's docstring has the rules."""

    def enter(self, open_request: StoreRequest, *, final: bool = True) -> EnterResult | None:
        """Decide about a request. None when the store is switched off.

        final: False while the caller would still wait: a refusal then leaves no trace.
        """

    def update(
        self, open_request: StoreRequest, debits: Sequence[Debit], release: Sequence[Slot] = ()
    ) -> None:
        """Charge `debits`, and give back the slots in `release`, of a request that goes on."""

    def leave(self, open_request: StoreRequest, debits: Sequence[Debit] = ()) -> None:
        """Charge `debits` and give back the row with every slot it still holds."""

    def sleep(self, microseconds: int) -> None:
        """Let so much of the store's time pass."""

    def pseudonym(self, key: bytes) -> str:
        """How a key is shown that must not be read: a keyed hash, the same for all workers."""

    def requests(self) -> Records[InFlight]:
        """Everything in flight, over all workers that live."""

    def workers(self) -> Records[Worker]:
        """The processes that serve requests with this store, those that live."""

    def register(self, facts: WorkerFacts) -> None:
        """Show this process among the workers. May be said again."""

    def begin_retiring(self) -> bool:
        """Show this worker as retiring, unless another one is: one at a time."""

    def mark_retiring(self, worker: Worker) -> None:
        """Show a worker as retiring that somebody else asked to end."""

    def penalize(self, request: InFlight, microseconds: int, ban_for: int) -> Penalty | None:
        """Charge the client of a request that is to be killed with its whole time.

        Its meters of CPU are charged `microseconds`, and for `ban_for` microseconds it is refused what
        it asked for. What was done of that; None when that request is over.
        """

    def slots_held(self) -> Mapping[str, int]:
        """How many slots are held, over all keys, by the name of the guard."""

    def counters(self) -> Mapping[str, GuardCounters]:
        """What each guard has done, over all workers."""

    def alarms(self) -> Mapping[str, int]:
        """What the store had to mend or give up, by name."""

    def switch(self, word: str | None = None, guard: str | None = None) -> str:
        """Set, or with no word read, the switch of the store or of one guard."""

    def reset(self) -> None:
        """Forget every meter and counter. What is held stays held."""

    def close(self) -> None:
        """Let go of what the process holds of the store."""

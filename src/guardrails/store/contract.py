"""What a store is: two primitives, three verbs, and the rules that every store keeps.

The primitives
    A *meter* is an instant per key: see gcra.py. A *slot* is held while a response is open. A guard
    asks for them with a `Requirement`.

The verbs
    `enter` decides about one request, `update` charges it or releases slots in between, `leave` ends
    it. Each verb is atomic for all workers that share the store.

The rules
    1. `enter` checks every requirement before it charges any. If the request is admitted, all are
       charged. If it is refused, none is, and the bans of the guards that refuse are set in the same
       step.
    2. A requirement in a dry run decides for itself alone. It is charged if the request is admitted
       and it would have admitted it too. Its bans are kept apart from the real ones.
    3. `enter` writes row and generation into the `StoreRequest` before it commits anything. The caller
       made that object, so the caller can always leave.
    4. `leave` may be called any number of times, from any thread. In another process, after a fork,
       it does nothing.
    5. The store owns the clock: monotonic, in integer microseconds.
    6. StoreBusyError means that the same call may succeed later. Any other StoreError means that the
       store cannot do its work.
    7. A store knows nothing of HTTP.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from guardrails.errors import ConfigurationError
from guardrails.store.records import (
    Death,
    GuardCounters,
    InFlight,
    Penalty,
    Records,
    Worker,
    WorkerFacts,
)

log = logging.getLogger("guardrails")

ON, DRY_RUN, OFF = "on", "dry-run", "off"
"""The positions of the switch, for a whole store or for one guard."""

SWITCH_WORDS = (ON, DRY_RUN, OFF)

MOST_SLOTS = 8
"""How many slots one request can hold."""

REAP_INTERVAL = 250_000
"""Microseconds between two searches for slots that no process will release."""

SHORTEST_RETRY = 1_000_000
"""The shortest `Refusal.retry` of a request that finds no free slot, in microseconds."""

LONGEST_RETIREMENT = 60_000_000
"""Microseconds for which a retiring worker keeps other workers from retiring."""


@dataclass(frozen=True, slots=True, eq=False)
class Meter:
    """A leaky bucket for each key, by the generic cell rate algorithm: see gcra.py.

    Attributes:
        name: identifies the meter within the store.
        need: how much room the request must find, in microseconds.
        cost: what an admission charges, in microseconds.
        limit: how full the bucket may be, in microseconds.
        resume: how full the bucket may be for a key that was refused, in microseconds. If it is equal
            to `limit`, a refusal makes no difference.
        horizon: how far ahead of now a stored instant can be, in microseconds. An instant beyond it is
            garbage and is read as now.
        slack: how far beyond `limit` the bucket may be for a request that can be delayed, in
            microseconds (0).
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
    """A cap on the requests of one key that are in flight at once.

    Attributes:
        name: identifies the slot within the store.
        limit: how many requests may hold it at once.
        max_hold: after how long it is taken from a request that did not release it, in microseconds.
        until_return: True if it is released when the app returns; by default it is released when the
            response is closed.
    """

    name: str
    limit: int
    max_hold: int
    until_return: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Requirement:
    """What one guard asks of a store. Built once for each guard, and used with a key per request.

    Attributes:
        guard: the guard's name, under which its decisions are counted.
        meters: the meters that must have room.
        slots: the slots that must be free.
        ban: the meter whose instant is the end of a client's ban, by the request's `ban_key`; None if
            the guard does not ban.
        shadow_ban: the meter that is used instead of `ban` in a dry run.
        ban_for: how long a refusal bans the client, in microseconds. With 0 (the default) a refusal
            sets no ban; a ban that stands still refuses.
        wait: how long a request may wait for a slot, in microseconds (0).
        waits_briefly: True if a request may wait a few milliseconds for a slot, since its client's last
            request may hold it until the response is closed.
        refused: True if the guard has refused the request without the store. The store counts the
            refusal and sets the ban.
        ban_only: True if only the guard's ban concerns the request, because the guard does not cover
            it.
        cpu: how many microseconds each microsecond of CPU charges on the meters (0).
    """

    guard: str
    meters: tuple[Meter, ...] = ()
    slots: tuple[Slot, ...] = ()
    ban: Meter | None = None
    shadow_ban: Meter | None = None
    ban_for: int = 0
    wait: int = 0
    waits_briefly: bool = False
    refused: bool = False
    ban_only: bool = False
    cpu: float = 0.0


class Debit(NamedTuple):
    """A charge after the fact. It never refuses, and never takes a meter beyond its horizon.

    Attributes:
        meter: the meter that is charged.
        key: the key for which it is charged.
        amount: how much, in microseconds.
    """

    meter: Meter
    key: bytes
    amount: int


class KeyedRequirement(NamedTuple):
    """A requirement for one request.

    Attributes:
        requirement: what the guard asks.
        key: the key that is counted; None means the key of the `StoreRequest`.
        dry_run: True if the requirement is checked and charged, but refuses nothing.
    """

    requirement: Requirement
    key: bytes | None
    dry_run: bool


class RouteRequirements(tuple[KeyedRequirement, ...]):
    """Requirements that many requests share, all with the same method, host and path.

    Attributes:
        charged: those whose meters are charged with CPU.
        until_return: the slots that are released when the app returns.
        compiled: a store may keep here what it has computed for them.
    """

    compiled: Any = None

    def __init__(self, _requirements: Iterable[KeyedRequirement] = ()) -> None:
        self.charged = charged(self)
        self.until_return = until_return(self)


def charged(requirements: Iterable[KeyedRequirement]) -> tuple[KeyedRequirement, ...]:
    """Return the requirements whose meters are charged with CPU."""
    return tuple(keyed for keyed in requirements if keyed.requirement.cpu)


def until_return(requirements: Iterable[KeyedRequirement]) -> tuple[Slot, ...]:
    """Return the slots that are released when the app returns."""
    return tuple(
        slot for keyed in requirements for slot in keyed.requirement.slots if slot.until_return
    )


class StoreRequest:
    """One request, from before it enters a store until after it has left it.

    Args:
        requirements: what the guards ask for it.
        pid: the process that serves it.
        facts: values of the attributes below.

    Attributes:
        key: the key of the requirements whose key is None.
        ban_key: the key that a refusal bans; empty if there is none.
        client: the client's address, for the scoreboard; so are `method`, `host` and `path`.
        resource: the path that stands for all of its spellings.
        may_wait: whether the request can be delayed.
        thread: the thread that serves it, for the scoreboard.
        row: set by `enter`: the offset of its row from the first row, in words; -1 if it has none.
        generation: set by `enter`: its number. With `row` and `pid` it identifies the admission. A
            request may also be left if `enter` failed after it had set this.
        entered: set by `enter`: whether the request was admitted.
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
    """A requirement that refuses a request, or would refuse it.

    Attributes:
        keyed: the requirement.
        retry: microseconds until it would admit the request; None if waiting cannot help. For a slot
            this is an estimate after Little's law: the mean time for which the slot is held, divided
            by its limit.
        banned: True if a ban refuses, not a meter or slot.
        by_slot: True if a slot refuses.
        never: True if the cost is more than the meter could ever admit.
    """

    keyed: KeyedRequirement
    retry: int | None
    banned: bool = False
    by_slot: bool = False
    never: bool = False


def for_want_of_slots(refusals: Iterable[Refusal]) -> bool:
    """Return whether nothing but slots refuses: the request may be admitted when one is free."""
    return all(refusal.by_slot and not refusal.never for refusal in refusals)


class EnterResult(NamedTuple):
    """The answer of `enter`.

    Attributes:
        admitted: whether the request may go on.
        delay: how long an admitted request has to be held back, in microseconds.
        refusals: the requirements that refuse, in the order of the request.
        dry_run_refusals: the requirements in a dry run that would refuse.
        dry_run_delay: how long requirements in a dry run would hold the request back, in
            microseconds.
        remaining: how many more such requests the tightest requirement would admit now; None if no
            requirement counts.
        number: identifies the decision within its store.
    """

    admitted: bool
    delay: int
    refusals: tuple[Refusal, ...]
    dry_run_refusals: tuple[Refusal, ...]
    dry_run_delay: int
    remaining: int | None
    number: int


PENALTY_GUARD = "watchdog"
"""The guard's name in a refusal that follows from a penalty; such refusals are counted under it."""

PENALIZED = KeyedRequirement(Requirement(PENALTY_GUARD), None, False)
"""The requirement in a refusal that follows from a penalty."""


def monotonic_microseconds() -> int:
    """Return the clock of a store: the same for all processes of one boot."""
    return time.monotonic_ns() // 1000


def sleep_seconds(seconds: float) -> None:
    """Sleep, where the clock is no test's. gevent may replace `time.sleep` after the import of this."""
    time.sleep(seconds)


def check_switch_word(word: str) -> str:
    """Return the word if it is a position of the switch.

    Raises:
        ConfigurationError: it is none.
    """
    if word not in SWITCH_WORDS:
        raise ConfigurationError(
            f"switch: {word!r} is not a position of the switch: use "
            + ", ".join(map(repr, SWITCH_WORDS))
        )
    return word


def check_known_guard(guard: str | None, known: Iterable[str], problem: str = "") -> None:
    """Refuse to switch a guard that the store does not know.

    Args:
        guard: the guard's name; None for the whole store.
        known: the names of the guards that there are.
        problem: why the store may not know a guard that there is.

    Raises:
        ConfigurationError: names the guards that there are.
    """
    if guard is not None and guard not in known:
        raise ConfigurationError(
            f"switch: {guard!r} is not a guard of this store: the guards are "
            + (", ".join(map(repr, sorted(known))) or "none: no worker has served a request yet")
            + problem
        )


def warn_of_switched(store: object, position: str, guard: str) -> None:
    """Say that a switch has changed. `guard` is empty for the whole store."""
    of_guard = f" of {guard!r}" if guard else ""
    log.warning('store %r: the switch%s was set to "%s"', store, of_guard, position)


class Store(Protocol):
    """The state behind the guards. The module's docstring has the rules.

    Every method may raise StoreBusyError, after which the same call may succeed, or another
    StoreError. Keys are bytes and times are integer microseconds, unless a method says otherwise.
    """

    def enter(self, open_request: StoreRequest, *, final: bool = True) -> EnterResult | None:
        """Decide about a request, and charge it if it is admitted.

        Args:
            open_request: the request. `row`, `generation` and `entered` are set. A request that has
                entered already may enter again with other requirements: it keeps its row.
            final: False if the caller would wait for a slot. A refusal by nothing but slots is then
                not counted, and sets no ban.

        Returns:
            The decision; None if the store is switched off.
        """

    def update(
        self, open_request: StoreRequest, debits: Sequence[Debit], release: Sequence[Slot] = ()
    ) -> None:
        """Charge a request that goes on, and release some of its slots.

        Args:
            open_request: the request.
            debits: what is charged.
            release: the slots that are released (none).
        """

    def leave(self, open_request: StoreRequest, debits: Sequence[Debit] = ()) -> None:
        """End a request: charge it, release all of its slots, and free its row.

        Args:
            open_request: the request. A second call releases nothing.
            debits: what is charged (nothing).
        """

    def sleep(self, microseconds: int) -> None:
        """Sleep on the store's clock: a test's clock moves forward, and the call returns at once."""

    def pseudonym(self, key: bytes) -> str:
        """Return a keyed hash of a key, the same in all workers, to show instead of the key."""

    def requests(self) -> Records[InFlight]:
        """Return the requests in flight of all living workers."""

    def workers(self) -> Records[Worker]:
        """Return the living processes that serve requests with this store."""

    def deaths(self, after: int = 0) -> Records[Death]:
        """Return the workers that died, with the requests that they had in flight, the oldest first.

        Args:
            after: the number of the last record that the caller knows; 0 for all that are kept.
        """

    def register(self, facts: WorkerFacts) -> None:
        """Show this process among the workers. A second call replaces what the first one said.

        Args:
            facts: what the worker reports about itself.
        """

    def begin_retiring(self) -> bool:
        """Show this worker as retiring, unless another one is retiring.

        Returns:
            Whether this worker may retire now. Workers retire one at a time; one that has been
            retiring for a minute is no longer waited for.
        """

    def mark_retiring(self, worker: Worker) -> None:
        """Show a worker as retiring that another process has told to end."""

    def penalize(self, request: InFlight, microseconds: int, ban_for: int) -> Penalty | None:
        """Charge the client of a request that a watchdog is about to end.

        Args:
            request: the request, as `requests()` showed it.
            microseconds: for how much time its client's CPU meters are charged.
            ban_for: for how long the client is refused the same resource; 0 for not at all.

        Returns:
            What was done; None if that request is over.
        """

    def declare(self, guards: Sequence[str]) -> None:
        """Make guards known, so that each can be switched before it has met a request.

        Nothing is opened for this. A store that is opened later knows them from then on.

        Args:
            guards: their names.
        """

    def slots_held(self) -> Mapping[str, int]:
        """Return how many slots are held, over all keys and workers, by the slot's name."""

    def counters(self) -> Mapping[str, GuardCounters]:
        """Return what each guard has done, over all workers, by its name."""

    def alarms(self) -> Mapping[str, int]:
        """Return how often the store had to repair or discard something, by the kind of event."""

    def switch(self, word: str | None = None, guard: str | None = None) -> str:
        """Set or read the switch of the whole store or of one guard.

        Args:
            word: "on", "dry-run" or "off"; None (the default) to read the position.
            guard: the guard's name; None (the default) for the whole store.

        Returns:
            The position of the switch after the call.

        Raises:
            ConfigurationError: the word is not a position, or there is no such guard.
        """

    def reset(self) -> None:
        """Clear all meters, bans, penalties and counters. Slots that are held stay held."""

    def close(self) -> None:
        """Release what this process has open for the store."""

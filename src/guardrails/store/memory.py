"""The memory store: dicts and a lock. It is the readable specification of every other store.

It is shared by the threads of one process only, so with several workers each counts for itself.
"""

import hashlib
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from guardrails.errors import InsideError, StoreError
from guardrails.store import gcra
from guardrails.store.contract import (
    DRY_RUN,
    MOST_SLOTS,
    OFF,
    ON,
    PENALIZED,
    REAP_INTERVAL,
    SHORTEST_RETRY,
    Debit,
    EnterResult,
    GuardCounters,
    InFlight,
    KeyedRequirement,
    Meter,
    Penalty,
    Records,
    Refusal,
    Slot,
    StoreRequest,
    Worker,
    WorkerFacts,
    check_switch_word,
    monotonic_microseconds,
    warn_of_unknown_guard,
)
from guardrails.store.processes import limits_of, process_facts, this_process

_FIRST_PURGE = 16384


class _Held(NamedTuple):
    slot: Slot
    key: bytes
    since: int


class _Row(NamedTuple):
    """What is in flight. It does not hold the visit, which gives back when it is dropped."""

    pid: int
    client: str
    method: str
    host: str
    path: str
    started: int
    thread: int
    penalty_key: bytes | None
    resource: str
    usual_path: bool
    held: list[_Held]
    charged: dict[Meter, float]


class _Look(NamedTuple):
    """What one ask found: a refusal, or how long to delay and how much is left."""

    refusal: Refusal | None
    delay: int = 0
    remaining: int | None = None


def _key(keyed: KeyedRequirement, open_request: StoreRequest) -> bytes:
    return open_request.key if keyed.key is None else keyed.key


class MemoryStore:
    """State in the memory of one process. See contract.py for its verbs.

    clock: a callable that returns monotonic microseconds. Where it has a method `sleep(seconds)`,
    as `guardrails.testing.Clock` does, delays pass on it and nobody really sleeps.
    """

    def __init__(self, clock: Callable[[], int] = monotonic_microseconds) -> None:
        self._clock = clock
        self._sleep: Callable[[float], object] = getattr(clock, "sleep", time.sleep)
        self._lock = threading.Lock()
        self._owner = 0
        self._under_way = False
        self._purge_at = _FIRST_PURGE
        self._pid = os.getpid()
        self._secret = secrets.token_bytes(16)
        self._cells: dict[tuple[str, bytes], int] = {}
        self._rows: dict[int, _Row] = {}
        self._held: Counter[tuple[str, bytes]] = Counter()
        self._service_times: dict[str, int] = {}
        self._counters: dict[str, Counter[str]] = {}
        self._alarms: Counter[str] = Counter()
        self._switch = {"": ON}
        self._number = 0
        self._reaped = -REAP_INTERVAL
        self._penalties: dict[tuple[bytes, str], int] = {}
        self._facts: WorkerFacts | None = None
        self._began = self._seen = 0
        self._served = self._retiring_since = 0

    def __repr__(self) -> str:
        return "memory:"

    def enter(self, open_request: StoreRequest, *, final: bool = True) -> EnterResult | None:
        if open_request.pid != self._pid:
            self._forget_parent(open_request.pid)
        with self._exclusive():
            if self._switch[""] == OFF:
                return None
            self._begin()
            now = self._clock()
            if len(self._cells) >= self._purge_at:
                self._purge(now)
            result = self._decide(open_request, now)
            if any(refusal.by_slot for refusal in result.refusals) and self._reap(now):
                result = self._decide(open_request, now)
            if result.admitted:
                self._take_row(open_request, now)
                self._admit(open_request, now)
            if result.admitted or final:
                for refusal in result.refusals:
                    self._refuse(refusal, refusal.keyed.requirement.ban, "refused", open_request, now)
                for refusal in result.dry_run_refusals:
                    shadow = refusal.keyed.requirement.shadow_ban
                    self._refuse(refusal, shadow, "dry_run_refused", open_request, now)
            self._under_way = False
            return result

    def update(
        self, open_request: StoreRequest, debits: Sequence[Debit], release: Sequence[Slot] = ()
    ) -> None:
        if open_request.pid != os.getpid():
            return
        with self._exclusive():
            self._begin()
            now = self._clock()
            self._debit(debits, now)
            row = self._rows.get(open_request.generation)
            if row is not None:
                for held in [held for held in row.held if held.slot in release]:
                    self._give_back(row, held, now)
            self._under_way = False

    def leave(self, open_request: StoreRequest, debits: Sequence[Debit] = ()) -> None:
        if open_request.pid != os.getpid():
            return
        with self._exclusive():
            self._begin()
            now = self._clock()
            self._debit(debits, now)
            row = self._rows.pop(open_request.generation, None)
            if row is not None:
                for held in list(row.held):
                    self._give_back(row, held, now)
                self._served += 1
                self._seen = now
            self._under_way = False

    def sleep(self, microseconds: int) -> None:
        self._sleep(microseconds / 1_000_000)

    def pseudonym(self, key: bytes) -> str:
        return hashlib.blake2b(key, key=self._secret, digest_size=8).hexdigest()

    def requests(self) -> Records[InFlight]:
        with self._exclusive():
            now = self._clock()
            me = this_process()
            return Records(
                InFlight(
                    pid=row.pid,
                    generation=generation,
                    age_seconds=(now - row.started) / 1_000_000,
                    client=row.client,
                    method=row.method,
                    host=row.host,
                    path=row.path,
                    slots=len(row.held),
                    thread=row.thread,
                    process_start=me.start,
                    namespace=me.namespace,
                    usual_path=row.usual_path,
                )
                for generation, row in self._rows.items()
            )

    def workers(self) -> Records[Worker]:
        with self._exclusive():
            facts = self._facts
            if facts is None:
                return Records()
            now = self._clock()
            me = this_process()
            system = process_facts(me.pid)
            state = "serving" if self._rows else "idle"
            return Records(
                [
                    Worker(
                        pid=me.pid,
                        namespace=me.namespace,
                        process_start=me.start,
                        parent=os.getppid(),
                        server=facts.server,
                        state="retiring" if self._retiring_since else state,
                        requests=self._served,
                        in_flight=len(self._rows),
                        age_seconds=(now - self._began) / 1_000_000,
                        last_seen_seconds=(now - self._seen) / 1_000_000,
                        cpu_seconds=system.cpu_seconds if system else None,
                        resident_bytes=system.resident_bytes if system else None,
                        threads=facts.threads,
                        respawns=facts.respawns,
                        retire_signal=facts.retire_signal,
                        dump_signal=facts.dump_signal,
                        interruptible=facts.interruptible,
                        asked_by_signal=facts.asked_by_signal,
                        limits=limits_of(me.pid),
                    )
                ]
            )

    def register(self, facts: WorkerFacts) -> None:
        with self._exclusive():
            if self._facts is None:
                self._began = self._seen = self._clock()
            self._facts = facts

    def begin_retiring(self) -> bool:
        with self._exclusive():
            self._retiring_since = self._clock()
            return True  # nobody else is here

    def mark_retiring(self, worker: Worker) -> None:
        if worker.pid == os.getpid():
            self.begin_retiring()

    def penalize(self, request: InFlight, microseconds: int, ban_for: int) -> Penalty | None:
        with self._exclusive():
            self._begin()
            now = self._clock()
            row = self._rows.get(request.generation)
            done = None if row is None else Penalty()
            if row is not None and row.penalty_key is not None:
                key = row.penalty_key
                debits = [
                    Debit(meter, key, int(microseconds * rate) + 1)
                    for meter, rate in row.charged.items()
                ]
                self._debit(debits, now)
                done = Penalty(len(debits), bool(ban_for and row.resource))
                if done.banned:
                    self._penalties[key, row.resource] = now + ban_for
            self._under_way = False
            return done

    def slots_held(self) -> Mapping[str, int]:
        with self._exclusive():
            held: Counter[str] = Counter()
            for (name, _key), count in self._held.items():
                held[name] += count
            return dict(held)

    def counters(self) -> Mapping[str, GuardCounters]:
        with self._exclusive():
            return {name: GuardCounters(**counter) for name, counter in self._counters.items()}

    def alarms(self) -> Mapping[str, int]:
        with self._exclusive():
            return dict(self._alarms)

    def switch(self, word: str | None = None, guard: str | None = None) -> str:
        with self._exclusive():
            if word is not None:
                self._switch[guard or ""] = check_switch_word(word)
                warn_of_unknown_guard(guard, self._counters)
            return self._switch.get(guard or "", ON)

    def reset(self) -> None:
        with self._exclusive():
            self._cells.clear()
            self._penalties.clear()
            self._counters.clear()
            self._service_times.clear()

    def close(self) -> None:
        """Nothing to let go of."""

    def _exclusive(self) -> threading.Lock:
        """The lock to hold; never the one that this thread holds already."""
        me = threading.get_ident()
        if self._owner == me and self._lock.locked():
            raise InsideError("memory store: called from within itself; ask again")
        return self._lock

    def _begin(self) -> None:
        """Mend what an exception cut off, as from a signal: the rows are the truth, not the totals."""
        self._owner = threading.get_ident()
        if self._under_way:
            self._held = Counter(
                (held.slot.name, held.key) for row in self._rows.values() for held in row.held
            )
        self._under_way = True

    def _decide(self, open_request: StoreRequest, now: int) -> EnterResult:
        """Look at everything, change nothing."""
        self._number += 1
        enforced: list[Refusal] = []
        dry: list[Refusal] = []
        delay, dry_delay, remaining = 0, 0, None
        banned = [
            refusal
            for keyed in open_request.requirements
            if (refusal := self._banned(keyed, open_request, now))
        ]
        banned += self._penalty_refusals(open_request, now)
        if banned:
            return EnterResult(False, 0, tuple(banned), (), 0, 0, self._number)
        for keyed in open_request.requirements:
            position = self._position(keyed)
            if position == OFF:
                continue
            look = self._look(keyed, open_request, now, dry_run=position == DRY_RUN)
            if look.refusal is not None:
                (dry if position == DRY_RUN else enforced).append(look.refusal)
            elif position == ON:
                delay = max(delay, look.delay)
                if look.remaining is not None:
                    remaining = min(look.remaining, look.remaining if remaining is None else remaining)
            else:
                dry_delay = max(dry_delay, look.delay)
        return EnterResult(
            admitted=not enforced,
            delay=0 if enforced else delay,
            refusals=tuple(enforced),
            dry_run_refusals=tuple(dry),
            dry_run_delay=dry_delay,
            remaining=0 if enforced else remaining,
            number=self._number,
        )

    def _banned(self, keyed: KeyedRequirement, open_request: StoreRequest, now: int) -> Refusal | None:
        """Who is banned is refused by that alone."""
        if self._position(keyed) != ON:
            return None
        left = self._ban_left(keyed.requirement.ban, open_request, now)
        return Refusal(keyed, left, banned=True) if left else None

    def _ban_left(self, ban: Meter | None, open_request: StoreRequest, now: int) -> int:
        if ban is None or not open_request.ban_key:
            return 0
        word = self._cells.get((ban.name, open_request.ban_key), 0)
        return gcra.meter_base(word, now, ban.horizon) - now

    def _penalty_refusals(self, open_request: StoreRequest, now: int) -> list[Refusal]:
        """Whose request for this resource was killed a while ago."""
        if not self._penalties or not open_request.ban_key:
            return []
        until = self._penalties.get((open_request.ban_key, open_request.resource), 0)
        enforced = any(self._position(keyed) == ON for keyed in open_request.requirements)
        return [Refusal(PENALIZED, until - now, banned=True)] if until > now and enforced else []

    def _position(self, keyed: KeyedRequirement) -> str:
        """Where the switch stands for one ask: the strictest word of store, guard and request."""
        words = (self._switch[""], self._switch.get(keyed.requirement.guard, ON))
        if OFF in words:
            return OFF
        return DRY_RUN if keyed.dry_run or DRY_RUN in words else ON

    def _look(
        self, keyed: KeyedRequirement, open_request: StoreRequest, now: int, *, dry_run: bool
    ) -> _Look:
        requirement = keyed.requirement
        key = _key(keyed, open_request)
        if dry_run and (left := self._ban_left(requirement.shadow_ban, open_request, now)):
            return _Look(Refusal(keyed, left, banned=True))
        if requirement.refused:
            return _Look(Refusal(keyed, requirement.ban_for or None))
        refused = never = by_slot = False
        retry, delay, remaining = requirement.ban_for, 0, []
        for meter in requirement.meters:
            word = self._cells.get((meter.name, key), 0)
            excess = gcra.meter_excess(word, now, meter)
            limit = gcra.meter_limit(word, now, meter)
            if excess > limit + (meter.slack if open_request.may_wait else 0):
                refused = True
                never = never or meter.need > meter.limit + meter.slack
                retry = max(retry, excess - meter.resume)
            delay = max(delay, excess - limit)
            if meter.need:
                remaining.append((limit - excess) // meter.need)
        for slot in requirement.slots:
            held = self._held[slot.name, key]
            if held >= slot.limit:
                refused = by_slot = True
                mean = self._service_times.get(slot.name, 0)
                retry = max(retry, SHORTEST_RETRY, mean // slot.limit)
            remaining.append(slot.limit - held - 1)
        if refused:
            return _Look(Refusal(keyed, None if never else retry, by_slot=by_slot, never=never))
        return _Look(None, max(delay, 0), max(0, min(remaining)) if remaining else None)

    def _take_row(self, open_request: StoreRequest, now: int) -> None:
        """The one step that can fail, so it comes before anything is charged."""
        held = self._rows[open_request.generation].held if open_request.entered else ()
        if (
            len(held) + sum(len(keyed.requirement.slots) for keyed in open_request.requirements)
            > MOST_SLOTS
        ):
            raise StoreError(f"a request can hold {MOST_SLOTS} slots, and this one asks for more")
        if not open_request.entered:
            open_request.generation = self._number
            open_request.entered = True
            self._rows[open_request.generation] = _Row(
                open_request.pid,
                open_request.client[:48],
                open_request.method[:16],
                open_request.host[:64],
                open_request.path[:128].replace("\0", "?"),
                now,
                open_request.thread,
                open_request.key if open_request.ban_key else None,
                open_request.resource,
                open_request.resource == (open_request.path.rstrip("/") or "/"),
                [],
                {},
            )

    def _admit(self, open_request: StoreRequest, now: int) -> None:
        """Charge every ask that admits: the enforced ones all do, a dry one decides alone."""
        for keyed in open_request.requirements:
            position = self._position(keyed)
            if position == OFF:
                continue
            look = self._look(keyed, open_request, now, dry_run=position == DRY_RUN)
            if look.refusal is None:
                self._charge(keyed, open_request, now)
                if keyed.requirement.cpu and keyed.key is None and position == ON:
                    self._rows[open_request.generation].charged[keyed.requirement.meters[0]] = (
                        keyed.requirement.cpu
                    )
                if keyed.requirement.ban_only:
                    continue
                self._count(keyed, "admitted")
                if look.delay:
                    self._count(keyed, "delayed")

    def _charge(self, keyed: KeyedRequirement, open_request: StoreRequest, now: int) -> None:
        key = _key(keyed, open_request)
        for meter in keyed.requirement.meters:
            word = self._cells.get((meter.name, key), 0)
            tat = gcra.meter_base(word, now, meter.horizon) + meter.cost
            if tat > now:
                self._cells[meter.name, key] = gcra.meter_word(tat)
        for slot in keyed.requirement.slots:
            self._rows[open_request.generation].held.append(_Held(slot, key, now))
            self._held[slot.name, key] += 1

    def _refuse(
        self, refusal: Refusal, ban: Meter | None, count: str, open_request: StoreRequest, now: int
    ) -> None:
        """Mark the meters that refused, and raise the ban: never while it stands already."""
        requirement = refusal.keyed.requirement
        key = _key(refusal.keyed, open_request)
        self._count(refusal.keyed, count)
        if refusal.banned:
            return
        for meter in requirement.meters:
            word = self._cells.get((meter.name, key), 0)
            slack = meter.slack if open_request.may_wait else 0
            if meter.resume < meter.limit < gcra.meter_excess(word, now, meter) - slack:
                self._cells[meter.name, key] = word | gcra.REFUSED_UNTIL_RESUME
        if ban is not None and open_request.ban_key:
            self._cells[ban.name, open_request.ban_key] = gcra.meter_word(now + requirement.ban_for)

    def _debit(self, debits: Sequence[Debit], now: int) -> None:
        for meter, key, amount in debits:
            word = self._cells.get((meter.name, key), 0)
            base = gcra.meter_base(word, now, meter.horizon)
            tat = min(base + amount, now + meter.horizon)
            marked = bool(word & gcra.REFUSED_UNTIL_RESUME) and base > now
            if tat > now:
                self._cells[meter.name, key] = gcra.meter_word(tat, marked=marked)

    def _give_back(self, row: _Row, held: _Held, now: int) -> None:
        self._drop(row, held)
        mean = self._service_times.get(held.slot.name, 0)
        lasted = now - held.since
        self._service_times[held.slot.name] = mean + (lasted - mean) // 8 if mean else lasted

    def _drop(self, row: _Row, held: _Held) -> None:
        row.held.remove(held)
        self._held[held.slot.name, held.key] -= 1
        if not self._held[held.slot.name, held.key]:
            del self._held[held.slot.name, held.key]

    def _reap(self, now: int) -> bool:
        """Free the slots that were held beyond their `max_hold`; True when there were any."""
        if now < self._reaped + REAP_INTERVAL:
            return False
        self._reaped = now
        freed = 0
        for row in self._rows.values():
            for held in [held for held in row.held if now > held.since + held.slot.max_hold]:
                self._drop(row, held)
                freed += 1
        self._alarms["held_too_long"] += freed
        return bool(freed)

    def _count(self, keyed: KeyedRequirement, what: str) -> None:
        counter = self._counters.setdefault(keyed.requirement.guard, Counter())
        counter[what] += 1

    def _forget_parent(self, pid: int) -> None:
        """After a fork nobody here will leave for the parent's requests, nor release its lock."""
        self._pid = pid
        self._lock = threading.Lock()
        self._rows.clear()
        self._held.clear()

    def _purge(self, now: int) -> None:
        """Forget what has passed, whenever twice as much has come together."""
        self._penalties = {what: until for what, until in self._penalties.items() if until > now}
        self._cells = {cell: word for cell, word in self._cells.items() if word >> gcra.MARK_BITS > now}
        self._purge_at = max(_FIRST_PURGE, 2 * len(self._cells))

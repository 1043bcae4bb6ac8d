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
    BLAME,
    DRY_RUN,
    MOST_SLOTS,
    OFF,
    ON,
    REAP_INTERVAL,
    SHORTEST_RETRY,
    Ask,
    Blamed,
    Debit,
    GuardCounters,
    InFlight,
    Meter,
    Records,
    Refusal,
    Slot,
    Verdict,
    Visit,
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
    blamed_key: bytes | None
    resource: str
    usual_path: bool
    held: list[_Held]
    charged: dict[Meter, float]


class _Look(NamedTuple):
    """What one ask found: a refusal, or how long to delay and how much is left."""

    refusal: Refusal | None
    delay: int = 0
    remaining: int | None = None


def _key(ask: Ask, visit: Visit) -> bytes:
    return visit.key if ask.key is None else ask.key


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
        self._blamed: dict[tuple[bytes, str], int] = {}
        self._facts: WorkerFacts | None = None
        self._began = self._seen = 0
        self._served = self._retiring_since = 0

    def __repr__(self) -> str:
        return "memory:"

    def enter(self, visit: Visit, *, final: bool = True) -> Verdict | None:
        if visit.pid != self._pid:
            self._forget_parent(visit.pid)
        with self._exclusive():
            if self._switch[""] == OFF:
                return None
            self._begin()
            now = self._clock()
            if len(self._cells) >= self._purge_at:
                self._purge(now)
            verdict = self._decide(visit, now)
            if any(refusal.by_slot for refusal in verdict.refusals) and self._reap(now):
                verdict = self._decide(visit, now)
            if verdict.admitted:
                self._take_row(visit, now)
                self._admit(visit, now)
            if verdict.admitted or final:
                for refusal in verdict.refusals:
                    self._refuse(refusal, refusal.ask.demand.ban, "refused", visit, now)
                for refusal in verdict.dry_run_refusals:
                    shadow = refusal.ask.demand.shadow_ban
                    self._refuse(refusal, shadow, "dry_run_refused", visit, now)
            self._under_way = False
            return verdict

    def update(self, visit: Visit, debits: Sequence[Debit], release: Sequence[Slot] = ()) -> None:
        if visit.pid != os.getpid():
            return
        with self._exclusive():
            self._begin()
            now = self._clock()
            self._debit(debits, now)
            row = self._rows.get(visit.generation)
            if row is not None:
                for held in [held for held in row.held if held.slot in release]:
                    self._give_back(row, held, now)
            self._under_way = False

    def leave(self, visit: Visit, debits: Sequence[Debit] = ()) -> None:
        if visit.pid != os.getpid():
            return
        with self._exclusive():
            self._begin()
            now = self._clock()
            self._debit(debits, now)
            row = self._rows.pop(visit.generation, None)
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

    def blame(self, request: InFlight, microseconds: int, ban_for: int) -> Blamed | None:
        with self._exclusive():
            self._begin()
            now = self._clock()
            row = self._rows.get(request.generation)
            done = None if row is None else Blamed()
            if row is not None and row.blamed_key is not None:
                key = row.blamed_key
                debits = [
                    Debit(meter, key, int(microseconds * rate) + 1)
                    for meter, rate in row.charged.items()
                ]
                self._debit(debits, now)
                done = Blamed(len(debits), bool(ban_for and row.resource))
                if done.banned:
                    self._blamed[key, row.resource] = now + ban_for
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
            self._blamed.clear()
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

    def _decide(self, visit: Visit, now: int) -> Verdict:
        """Look at everything, change nothing."""
        self._number += 1
        enforced: list[Refusal] = []
        dry: list[Refusal] = []
        delay, dry_delay, remaining = 0, 0, None
        banned = [refusal for ask in visit.asks if (refusal := self._banned(ask, visit, now))]
        banned += self._blamed_refusals(visit, now)
        if banned:
            return Verdict(False, 0, tuple(banned), (), 0, 0, self._number)
        for ask in visit.asks:
            position = self._position(ask)
            if position == OFF:
                continue
            look = self._look(ask, visit, now, dry_run=position == DRY_RUN)
            if look.refusal is not None:
                (dry if position == DRY_RUN else enforced).append(look.refusal)
            elif position == ON:
                delay = max(delay, look.delay)
                if look.remaining is not None:
                    remaining = min(look.remaining, look.remaining if remaining is None else remaining)
            else:
                dry_delay = max(dry_delay, look.delay)
        return Verdict(
            admitted=not enforced,
            delay=0 if enforced else delay,
            refusals=tuple(enforced),
            dry_run_refusals=tuple(dry),
            dry_run_delay=dry_delay,
            remaining=0 if enforced else remaining,
            number=self._number,
        )

    def _banned(self, ask: Ask, visit: Visit, now: int) -> Refusal | None:
        """Who is banned is refused by that alone."""
        if self._position(ask) != ON:
            return None
        left = self._ban_left(ask.demand.ban, visit, now)
        return Refusal(ask, left, banned=True) if left else None

    def _ban_left(self, ban: Meter | None, visit: Visit, now: int) -> int:
        if ban is None or not visit.ban_key:
            return 0
        word = self._cells.get((ban.name, visit.ban_key), 0)
        return gcra.meter_base(word, now, ban.horizon) - now

    def _blamed_refusals(self, visit: Visit, now: int) -> list[Refusal]:
        """Whose request for this resource was killed a while ago."""
        if not self._blamed or not visit.ban_key:
            return []
        until = self._blamed.get((visit.ban_key, visit.resource), 0)
        enforced = any(self._position(ask) == ON for ask in visit.asks)
        return [Refusal(BLAME, until - now, banned=True)] if until > now and enforced else []

    def _position(self, ask: Ask) -> str:
        """Where the switch stands for one ask: the strictest word of store, guard and request."""
        words = (self._switch[""], self._switch.get(ask.demand.guard, ON))
        if OFF in words:
            return OFF
        return DRY_RUN if ask.dry_run or DRY_RUN in words else ON

    def _look(self, ask: Ask, visit: Visit, now: int, *, dry_run: bool) -> _Look:
        demand = ask.demand
        key = _key(ask, visit)
        if dry_run and (left := self._ban_left(demand.shadow_ban, visit, now)):
            return _Look(Refusal(ask, left, banned=True))
        if demand.refused:
            return _Look(Refusal(ask, demand.ban_for or None))
        refused = never = by_slot = False
        retry, delay, remaining = demand.ban_for, 0, []
        for meter in demand.meters:
            word = self._cells.get((meter.name, key), 0)
            excess = gcra.meter_excess(word, now, meter)
            limit = gcra.meter_limit(word, now, meter)
            if excess > limit + (meter.slack if visit.may_wait else 0):
                refused = True
                never = never or meter.need > meter.limit + meter.slack
                retry = max(retry, excess - meter.resume)
            delay = max(delay, excess - limit)
            if meter.need:
                remaining.append((limit - excess) // meter.need)
        for tally in demand.tallies:
            word = self._cells.get((tally.name, key), 0)
            count = gcra.tally_count(word, now)
            if count >= tally.limit:
                refused = True
                retry = max(retry, (word >> gcra.SMALL_BITS) - now)
            remaining.append(tally.limit - count - 1)
        for slot in demand.slots:
            held = self._held[slot.name, key]
            if held >= slot.limit:
                refused = by_slot = True
                mean = self._service_times.get(slot.name, 0)
                retry = max(retry, SHORTEST_RETRY, mean // slot.limit)
            remaining.append(slot.limit - held - 1)
        if refused:
            return _Look(Refusal(ask, None if never else retry, by_slot=by_slot, never=never))
        return _Look(None, max(delay, 0), max(0, min(remaining)) if remaining else None)

    def _take_row(self, visit: Visit, now: int) -> None:
        """The one step that can fail, so it comes before anything is charged."""
        held = self._rows[visit.generation].held if visit.entered else ()
        if len(held) + sum(len(ask.demand.slots) for ask in visit.asks) > MOST_SLOTS:
            raise StoreError(f"a request can hold {MOST_SLOTS} slots, and this one asks for more")
        if not visit.entered:
            visit.generation = self._number
            visit.entered = True
            self._rows[visit.generation] = _Row(
                visit.pid,
                visit.client[:48],
                visit.method[:16],
                visit.host[:64],
                visit.path[:128].replace("\0", "?"),
                now,
                visit.thread,
                visit.key if visit.ban_key else None,
                visit.resource,
                visit.resource == (visit.path.rstrip("/") or "/"),
                [],
                {},
            )

    def _admit(self, visit: Visit, now: int) -> None:
        """Charge every ask that admits: the enforced ones all do, a dry one decides alone."""
        for ask in visit.asks:
            position = self._position(ask)
            if position == OFF:
                continue
            look = self._look(ask, visit, now, dry_run=position == DRY_RUN)
            if look.refusal is None:
                self._charge(ask, visit, now)
                if ask.demand.cpu and ask.key is None and position == ON:
                    self._rows[visit.generation].charged[ask.demand.meters[0]] = ask.demand.cpu
                if ask.demand.ban_only:
                    continue
                self._count(ask, "admitted")
                if look.delay:
                    self._count(ask, "delayed")

    def _charge(self, ask: Ask, visit: Visit, now: int) -> None:
        key = _key(ask, visit)
        for meter in ask.demand.meters:
            word = self._cells.get((meter.name, key), 0)
            tat = gcra.meter_base(word, now, meter.horizon) + meter.cost
            if tat > now:
                self._cells[meter.name, key] = gcra.meter_word(tat)
        for tally in ask.demand.tallies:
            word = self._cells.get((tally.name, key), 0)
            self._cells[tally.name, key] = gcra.tally_word(word, now, tally)
        for slot in ask.demand.slots:
            self._rows[visit.generation].held.append(_Held(slot, key, now))
            self._held[slot.name, key] += 1

    def _refuse(self, refusal: Refusal, ban: Meter | None, count: str, visit: Visit, now: int) -> None:
        """Mark the meters that refused, and raise the ban: never while it stands already."""
        demand = refusal.ask.demand
        key = _key(refusal.ask, visit)
        self._count(refusal.ask, count)
        if refusal.banned:
            return
        for meter in demand.meters:
            word = self._cells.get((meter.name, key), 0)
            slack = meter.slack if visit.may_wait else 0
            if meter.resume < meter.limit < gcra.meter_excess(word, now, meter) - slack:
                self._cells[meter.name, key] = word | gcra.MARK
        if ban is not None and visit.ban_key:
            self._cells[ban.name, visit.ban_key] = gcra.meter_word(now + demand.ban_for)

    def _debit(self, debits: Sequence[Debit], now: int) -> None:
        for meter, key, amount in debits:
            word = self._cells.get((meter.name, key), 0)
            base = gcra.meter_base(word, now, meter.horizon)
            tat = min(base + amount, now + meter.horizon)
            marked = bool(word & gcra.MARK) and base > now
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

    def _count(self, ask: Ask, what: str) -> None:
        counter = self._counters.setdefault(ask.demand.guard, Counter())
        counter[what] += 1

    def _forget_parent(self, pid: int) -> None:
        """After a fork nobody here will leave for the parent's requests, nor release its lock."""
        self._pid = pid
        self._lock = threading.Lock()
        self._rows.clear()
        self._held.clear()

    def _purge(self, now: int) -> None:
        """Forget what has passed, whenever twice as much has come together."""
        self._blamed = {what: until for what, until in self._blamed.items() if until > now}
        self._cells = {
            cell: word for cell, word in self._cells.items() if word >> gcra.SMALL_BITS > now
        }
        self._purge_at = max(_FIRST_PURGE, 2 * len(self._cells))

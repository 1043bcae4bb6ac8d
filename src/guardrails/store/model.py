"""The rules of contract.py on dicts: the readable specification of every store.

Nothing here locks: memory.py calls it under a lock. Every time is in microseconds, and `now` is given
by the caller.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from guardrails.errors import StoreError
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
    KeyedRequirement,
    Meter,
    Refusal,
    Slot,
    StoreRequest,
    for_want_of_slots,
)
from guardrails.store.records import Penalty

_FIRST_PURGE = 16384


class HeldSlot(NamedTuple):
    """A slot that a row holds: for which key, and since when."""

    slot: Slot
    key: bytes
    since: int


class Row(NamedTuple):
    """A request in flight.

    It has no reference to the `StoreRequest`: when the last reference to that is dropped, the request
    leaves.

    penalty_key: the client's key, for `penalize`; None if the client cannot be penalized.
    charged: the CPU meters that `penalize` charges, with what each microsecond costs.
    """

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
    held: list[HeldSlot]
    charged: dict[Meter, float]


class _Check(NamedTuple):
    """What one requirement says about a request: a refusal, or the delay and what remains."""

    refusal: Refusal | None
    delay: int = 0
    remaining: int | None = None


def _key(keyed: KeyedRequirement, open_request: StoreRequest) -> bytes:
    return open_request.key if keyed.key is None else keyed.key


class Model:
    """A store's state, and what the verbs do to it."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.words: dict[tuple[str, bytes], int] = {}
        self.slot_counts: Counter[tuple[str, bytes]] = Counter()
        self.counters: dict[str, Counter[str]] = {}
        self.alarms: Counter[str] = Counter()
        self.switch = {"": ON}
        self._service_times: dict[str, int] = {}
        self._penalties: dict[tuple[bytes, str], int] = {}
        self._number = 0
        self._purge_at = _FIRST_PURGE
        self._reaped = -REAP_INTERVAL

    def enter(self, open_request: StoreRequest, now: int, *, final: bool) -> EnterResult:
        """Decide about a request. If it is admitted, charge it; if not, mark and ban."""
        if len(self.words) >= self._purge_at:
            self._purge(now)
        result = self._decide(open_request, now)
        if any(refusal.by_slot for refusal in result.refusals) and self._reap(now):
            result = self._decide(open_request, now)
        if result.admitted:
            self._take_row(open_request, now)
            self._admit(open_request, now)
        if result.admitted or final or not for_want_of_slots(result.refusals):
            for refusal in result.refusals:
                self._refuse(refusal, refusal.keyed.requirement.ban, "refused", open_request, now)
            for refusal in result.dry_run_refusals:
                shadow = refusal.keyed.requirement.shadow_ban
                self._refuse(refusal, shadow, "dry_run_refused", open_request, now)
        return result

    def release(self, generation: int, slots: Sequence[Slot], now: int) -> None:
        """Release some slots of a request that goes on."""
        row = self.rows.get(generation)
        if row is not None:
            for held in [held for held in row.held if held.slot in slots]:
                self._release(row, held, now)

    def leave(self, generation: int, now: int) -> bool:
        """Drop a row with all of its slots. Return whether it was there."""
        row = self.rows.pop(generation, None)
        if row is None:
            return False
        for held in list(row.held):
            self._release(row, held, now)
        return True

    def debit(self, debits: Sequence[Debit], now: int) -> None:
        """Charge meters after the fact, up to their horizon."""
        for meter, key, amount in debits:
            word = self.words.get((meter.name, key), 0)
            base = gcra.meter_base(word, now, meter.horizon)
            tat = min(base + amount, now + meter.horizon)
            marked = bool(word & gcra.REFUSED_UNTIL_RESUME) and base > now
            if tat > now:
                self.words[meter.name, key] = gcra.meter_word(tat, marked=marked)

    def penalize(self, generation: int, microseconds: int, ban_for: int, now: int) -> Penalty | None:
        """Charge the client of a request in flight, and refuse it the same resource for a while."""
        row = self.rows.get(generation)
        if row is None:
            return None
        key = row.penalty_key
        if key is None:
            return Penalty()
        debits = [
            Debit(meter, key, int(microseconds * rate) + 1) for meter, rate in row.charged.items()
        ]
        self.debit(debits, now)
        banned = bool(ban_for and row.resource)
        if banned:
            self._penalties[key, row.resource] = now + ban_for
        return Penalty(len(debits), banned)

    def recount(self) -> None:
        """Count the slots anew. The rows are the truth, and the counts are derived from them."""
        self.slot_counts = Counter(
            (held.slot.name, held.key) for row in self.rows.values() for held in row.held
        )

    def reset(self) -> None:
        """Clear everything but the rows, the switch and the names of the guards."""
        self.words.clear()
        self._penalties.clear()
        self.counters = {guard: Counter() for guard in self.counters}
        self._service_times.clear()

    def drop_rows(self) -> None:
        """Drop all requests in flight, and the slots they hold."""
        self.rows.clear()
        self.slot_counts.clear()

    def _decide(self, open_request: StoreRequest, now: int) -> EnterResult:
        """Check every requirement, and change nothing."""
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
            check = self._check(keyed, open_request, now, dry_run=position == DRY_RUN)
            if check.refusal is not None:
                (dry if position == DRY_RUN else enforced).append(check.refusal)
            elif position == ON:
                delay = max(delay, check.delay)
                if check.remaining is not None:
                    remaining = min(
                        check.remaining, check.remaining if remaining is None else remaining
                    )
            else:
                dry_delay = max(dry_delay, check.delay)
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
        """Return the refusal of a ban that stands. Meters and slots are then not checked."""
        if self._position(keyed) != ON:
            return None
        left = self._ban_left(keyed.requirement.ban, open_request, now)
        return Refusal(keyed, left, banned=True) if left else None

    def _ban_left(self, ban: Meter | None, open_request: StoreRequest, now: int) -> int:
        if ban is None or not open_request.ban_key:
            return 0
        word = self.words.get((ban.name, open_request.ban_key), 0)
        return gcra.meter_base(word, now, ban.horizon) - now

    def _penalty_refusals(self, open_request: StoreRequest, now: int) -> list[Refusal]:
        """Return a refusal if the client is penalized for this resource."""
        if not self._penalties or not open_request.ban_key:
            return []
        until = self._penalties.get((open_request.ban_key, open_request.resource), 0)
        enforced = any(self._position(keyed) == ON for keyed in open_request.requirements)
        return [Refusal(PENALIZED, until - now, banned=True)] if until > now and enforced else []

    def _position(self, keyed: KeyedRequirement) -> str:
        """The switch's position for one requirement: the mildest of store, guard and request."""
        words = (self.switch[""], self.switch.get(keyed.requirement.guard, ON))
        if OFF in words:
            return OFF
        return DRY_RUN if keyed.dry_run or DRY_RUN in words else ON

    def _check(
        self, keyed: KeyedRequirement, open_request: StoreRequest, now: int, *, dry_run: bool
    ) -> _Check:
        requirement = keyed.requirement
        key = _key(keyed, open_request)
        if dry_run and (left := self._ban_left(requirement.shadow_ban, open_request, now)):
            return _Check(Refusal(keyed, left, banned=True))
        if requirement.refused:
            return _Check(Refusal(keyed, requirement.ban_for or None))
        refused = never = by_slot = False
        retry, delay, remaining = requirement.ban_for, 0, []
        for meter in requirement.meters:
            word = self.words.get((meter.name, key), 0)
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
            held = self.slot_counts[slot.name, key]
            if held >= slot.limit:
                refused = by_slot = True
                mean = self._service_times.get(slot.name, 0)
                retry = max(retry, SHORTEST_RETRY, mean // slot.limit)
            remaining.append(slot.limit - held - 1)
        if refused:
            return _Check(Refusal(keyed, None if never else retry, by_slot=by_slot, never=never))
        return _Check(None, max(delay, 0), max(0, min(remaining)) if remaining else None)

    def _take_row(self, open_request: StoreRequest, now: int) -> None:
        """Give the request a row. Only this step can fail, so it comes before any charge."""
        held = self.rows[open_request.generation].held if open_request.entered else ()
        if (
            len(held) + sum(len(keyed.requirement.slots) for keyed in open_request.requirements)
            > MOST_SLOTS
        ):
            raise StoreError(f"a request can hold {MOST_SLOTS} slots, and this one asks for more")
        if not open_request.entered:
            open_request.generation = self._number
            open_request.entered = True
            self.rows[open_request.generation] = Row(
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
        """Charge every requirement that admits. One in a dry run may refuse: it charges nothing."""
        for keyed in open_request.requirements:
            position = self._position(keyed)
            if position == OFF:
                continue
            check = self._check(keyed, open_request, now, dry_run=position == DRY_RUN)
            if check.refusal is None:
                self._charge(keyed, open_request, now)
                if keyed.requirement.cpu and keyed.key is None and position == ON:
                    self.rows[open_request.generation].charged[keyed.requirement.meters[0]] = (
                        keyed.requirement.cpu
                    )
                if keyed.requirement.ban_only:
                    continue
                self._count(keyed, "admitted")
                if check.delay:
                    self._count(keyed, "delayed")

    def _charge(self, keyed: KeyedRequirement, open_request: StoreRequest, now: int) -> None:
        key = _key(keyed, open_request)
        for meter in keyed.requirement.meters:
            word = self.words.get((meter.name, key), 0)
            tat = gcra.meter_base(word, now, meter.horizon) + meter.cost
            if tat > now:
                self.words[meter.name, key] = gcra.meter_word(tat)
        for slot in keyed.requirement.slots:
            self.rows[open_request.generation].held.append(HeldSlot(slot, key, now))
            self.slot_counts[slot.name, key] += 1

    def _refuse(
        self, refusal: Refusal, ban: Meter | None, counter: str, open_request: StoreRequest, now: int
    ) -> None:
        """Count a refusal, mark the meters that refused, and set the ban unless it stands."""
        requirement = refusal.keyed.requirement
        key = _key(refusal.keyed, open_request)
        self._count(refusal.keyed, counter)
        if refusal.banned:
            return
        for meter in requirement.meters:
            word = self.words.get((meter.name, key), 0)
            slack = meter.slack if open_request.may_wait else 0
            if meter.resume < meter.limit < gcra.meter_excess(word, now, meter) - slack:
                self.words[meter.name, key] = word | gcra.REFUSED_UNTIL_RESUME
        if ban is not None and requirement.ban_for and open_request.ban_key:
            self.words[ban.name, open_request.ban_key] = gcra.meter_word(now + requirement.ban_for)

    def _release(self, row: Row, held: HeldSlot, now: int) -> None:
        self._drop_slot(row, held)
        mean = self._service_times.get(held.slot.name, 0)
        lasted = now - held.since
        self._service_times[held.slot.name] = mean + (lasted - mean) // 8 if mean else lasted

    def _drop_slot(self, row: Row, held: HeldSlot) -> None:
        row.held.remove(held)
        self.slot_counts[held.slot.name, held.key] -= 1
        if not self.slot_counts[held.slot.name, held.key]:
            del self.slot_counts[held.slot.name, held.key]

    def _reap(self, now: int) -> bool:
        """Free the slots held for longer than their `max_hold`; return whether there were any."""
        if now < self._reaped + REAP_INTERVAL:
            return False
        self._reaped = now
        freed = 0
        for row in self.rows.values():
            for held in [held for held in row.held if now > held.since + held.slot.max_hold]:
                self._drop_slot(row, held)
                freed += 1
        self.alarms["held_too_long"] += freed
        return bool(freed)

    def _count(self, keyed: KeyedRequirement, counter: str) -> None:
        self.counters.setdefault(keyed.requirement.guard, Counter())[counter] += 1

    def _purge(self, now: int) -> None:
        """Drop words and penalties whose time has passed. Runs whenever the words have doubled."""
        self._penalties = {client: until for client, until in self._penalties.items() if until > now}
        self.words = {place: word for place, word in self.words.items() if word >> gcra.MARK_BITS > now}
        self._purge_at = max(_FIRST_PURGE, 2 * len(self.words))

"""How a request enters the shared store. All of it runs under the lock of one file.

The answers are exactly those of model.py, which is easier to read. Here every check uses numbers that
were computed before (`CompiledRoute`, `CompiledRequirement`), and all charges are written at the end.
"""

from collections.abc import Callable, Sequence
from typing import Any

from guardrails.store.contract import (
    MOST_SLOTS,
    PENALIZED,
    SHORTEST_RETRY,
    EnterResult,
    KeyedRequirement,
    Refusal,
    RouteRequirements,
    Slot,
    StoreRequest,
    for_want_of_slots,
)
from guardrails.store.engine.file import CompiledRoute, StoreFile, merged
from guardrails.store.gcra import MARK_BITS, REFUSED_UNTIL_RESUME
from guardrails.store.layout import (
    A_GARBAGE,
    G_ADMITTED,
    G_DELAYED,
    G_DRY_RUN_REFUSED,
    G_REFUSED,
    G_SWITCH,
    H_SWITCH,
    H_SWITCHED,
    HAS_PENALTIES,
    L_MEAN,
    ONE_CELL,
    ONE_SLOT,
    R_CHARGED,
    R_FIRST_SLOT,
    R_GENERATION,
    R_SLOTS,
    REQUEST_TEXT,
    ROW_CONTENT,
    S_DEADLINE,
    S_KEY,
    S_RECORD,
    S_SINCE,
    SLOT_WORDS,
)

SWITCHED_DRY, SWITCHED_OFF = 1, 2

REAP_FIRST = "reap first"
"""The answer when a slot refuses, and it is time to check whether its holders are alive."""

_UNBOUNDED = 2**62
read_cell = ONE_CELL.unpack_from
write_slot = ONE_SLOT.pack_into
_new: Callable[..., Any] = tuple.__new__  # several times faster than the named constructor


class Charges:
    """What an admission will write, once all requirements have been checked."""

    __slots__ = ("cells", "charged", "counters", "delay", "dry_delay", "remaining", "slots")

    def __init__(self) -> None:
        self.cells: list[tuple[int, int, int]] = []
        self.slots: list[tuple[int, Slot, int]] = []
        self.counters: list[int] = []
        self.charged: list[int] = []
        self.delay = self.dry_delay = 0
        self.remaining = _UNBOUNDED


def enter(
    file: StoreFile, open_request: StoreRequest, final: bool, number: int
) -> EnterResult | str | None:
    """Decide about a request.

    This is the fast path: no bans, dry runs, delays or refusals. It changes nothing before it is
    certain that the request is admitted. Every other case is left to `enter_slow`.

    Returns:
        The result; None if the store is switched off; a text if the store cannot decide.
    """
    words = file.words
    requirements = open_request.requirements
    switched = words[H_SWITCHED]
    if (
        (switched and switched != HAS_PENALTIES)
        or open_request.entered
        or type(requirements) is not RouteRequirements
    ):
        return enter_slow(file, open_request, final, number)
    compiled = requirements.compiled
    if compiled is None or compiled.token is not file.token:
        compiled = file.compile_route(requirements)
    if not compiled.simple:
        return enter_slow(file, open_request, final, number)
    now = file.now = file.clock()
    if switched and file.penalty_left(open_request, now):
        return enter_slow(file, open_request, final, number)
    hashed = file.hashes.get(open_request.key) or file.key_hash(open_request.key)
    buffer = file.map
    cells, slot_counts = file.cells, file.slot_counts
    first, mask = cells.first, cells.mask
    if compiled.bans and open_request.ban_key:
        banned = file.key_hash(open_request.ban_key)
        for const in compiled.bans:
            place = cells.find(banned ^ const)
            if place >= 0 and words[place + 1] >> MARK_BITS > now:
                return enter_slow(file, open_request, final, number)
    remaining = _UNBOUNDED
    written = []
    for by_client, const, need, cost, limit, horizon in compiled.meters:
        cell = const ^ hashed if by_client else const
        place = first + ((cell & mask) << 1)
        found, word = read_cell(buffer, place << 3)
        if found != cell:
            place = cells.find(cell)
            word = words[place + 1] if place >= 0 else 0
        base = word >> MARK_BITS
        if base <= now:
            base = now
        elif word & REFUSED_UNTIL_RESUME or base > now + horizon:
            return enter_slow(file, open_request, final, number)
        room = limit - (base + need - now)
        if room < 0:
            return enter_slow(file, open_request, final, number)
        if need:
            room //= need
            if room < remaining:
                remaining = room
        if cost:
            written.append((place, cell, (base + cost) << MARK_BITS))
    taken = []
    for by_client, const, limit, max_hold, record in compiled.slots:
        cell = const ^ hashed if by_client else const
        place = slot_counts.first + ((cell & slot_counts.mask) << 1)
        found, held = read_cell(buffer, place << 3)
        if found != cell:
            place = slot_counts.find(cell)
            held = words[place + 1] if place >= 0 else 0
        room = limit - 1 - held
        if room < 0:
            return enter_slow(file, open_request, final, number)
        if room < remaining:
            remaining = room
        taken.append((place, cell, held, now + max_hold, record))
    row = file.free_rows.pop() if file.free_rows else file.take_row()
    if row < 0 or words[row] or len(taken) > MOST_SLOTS:
        return enter_slow(file, open_request, final, number)

    # From here on nothing can fail.
    open_request.row, open_request.generation = row - file.first_row, number
    ROW_CONTENT.pack_into(
        buffer,
        (row + 1) << 3,
        file.owner_bytes,
        now,
        open_request.thread,
        len(taken),
        hashed if open_request.ban_key else 0,
        compiled.charged,
        compiled.resource or file.resource_hash(open_request),
        open_request.client.encode("latin-1", "replace"),
        compiled.request_text or _request_text(compiled, open_request),
    )
    at = (row + R_FIRST_SLOT) << 3
    for _place, cell, _held, deadline, record in taken:
        write_slot(buffer, at, cell, now, deadline, record)
        at += SLOT_WORDS << 3
    words[row] = number
    open_request.entered = True
    for place, cell, held, _deadline, _record in taken:
        # A count that the loop has just added may have taken this place.
        if place >= 0 and words[place] == cell:
            words[place + 1] = held + 1
        else:
            slot_counts.add(cell, 1)
    for place, cell, word in written:
        # A cell that the loop has just added may have displaced this one.
        if place >= 0 and words[place] == cell:
            words[place + 1] = word
        else:
            file.write_cell(-1, cell, word, now)
    for counter in compiled.counters:
        words[counter] += 1
    result: EnterResult = _new(
        EnterResult,
        (True, 0, (), (), 0, remaining if remaining != _UNBOUNDED else None, number),
    )
    return result


def enter_slow(
    file: StoreFile, open_request: StoreRequest, final: bool, number: int
) -> EnterResult | str | None:
    """Decide about any request: also refusals, dry runs, bans, delays, switches, a second `enter`."""
    words = file.words
    # Also where the store is off: `SharedStore` checks the file's name by this clock.
    now = file.now = file.clock()
    switch = words[H_SWITCH]
    if switch == SWITCHED_OFF:
        return None
    by_guard = words[H_SWITCHED]
    dry_refusals: list[Refusal] = []
    charges = Charges()
    positions = [
        (keyed, _position(file, keyed, switch, by_guard)) for keyed in open_request.requirements
    ]
    refusals = _banned(file, open_request, now, positions) if open_request.ban_key else []
    if by_guard & HAS_PENALTIES and not all(position for _, position in positions):
        left = file.penalty_left(open_request, now)
        if left:
            refusals.append(Refusal(PENALIZED, left, banned=True))
    for keyed, position in () if refusals else positions:
        if position == SWITCHED_OFF:
            continue
        dry = position == SWITCHED_DRY
        refusal = _check(file, keyed, open_request, charges, now, dry)
        if refusal is not None:
            (dry_refusals if dry else refusals).append(refusal)
    if not refusals:
        problem = _commit(file, open_request, charges, now, number)
        if problem is not None:
            return problem
    elif now >= file.reap_at and any(refusal.by_slot for refusal in refusals):
        return REAP_FIRST
    if final or not refusals or not for_want_of_slots(refusals):
        for refusal in refusals:
            _refuse(file, refusal, open_request, now, dry=False)
        for refusal in dry_refusals:
            _refuse(file, refusal, open_request, now, dry=True)
    if refusals:
        return EnterResult(False, 0, tuple(refusals), tuple(dry_refusals), charges.dry_delay, 0, number)
    remaining = charges.remaining if charges.remaining != _UNBOUNDED else None
    return EnterResult(
        True, charges.delay, (), tuple(dry_refusals), charges.dry_delay, remaining, number
    )


def _position(file: StoreFile, keyed: KeyedRequirement, switch: int, by_guard: int) -> int:
    """The switch's position for one requirement: the mildest of store, guard and request."""
    position = max(switch, SWITCHED_DRY if keyed.dry_run else 0)
    if not by_guard:
        return position
    compiled = file.compiled.get(keyed.requirement) or file.compile_requirement(keyed.requirement)
    return max(position, file.words[compiled.counter + G_SWITCH])


def _banned(
    file: StoreFile,
    open_request: StoreRequest,
    now: int,
    positions: Sequence[tuple[KeyedRequirement, int]],
) -> list[Refusal]:
    """The refusals of bans that stand. Meters and slots are then not checked."""
    refusals = []
    for keyed, position in positions:
        if not position and keyed.requirement.ban is not None:
            compiled = file.compiled.get(keyed.requirement) or file.compile_requirement(
                keyed.requirement
            )
            left = _ban_left(file, compiled.ban, open_request, now)
            if left:
                refusals.append(_new(Refusal, (keyed, left, True, False, False)))
    return refusals


def _ban_left(
    file: StoreFile, ban: tuple[int, int] | None, open_request: StoreRequest, now: int
) -> int:
    """For how much longer the request's client is banned; 0 if it is not."""
    if ban is None or not open_request.ban_key:
        return 0
    place = file.cells.find(file.key_hash(open_request.ban_key) ^ ban[0])
    left = (file.words[place + 1] >> MARK_BITS) - now if place >= 0 else 0
    return left if 0 < left <= ban[1] else 0


def _check(
    file: StoreFile,
    keyed: KeyedRequirement,
    open_request: StoreRequest,
    charges: Charges,
    now: int,
    dry: bool,
) -> Refusal | None:
    """Check one requirement. Return its refusal, or add its charges to `charges`."""
    requirement = keyed.requirement
    compiled = file.compiled.get(requirement) or file.compile_requirement(requirement)
    words, cells = file.words, file.cells
    if dry and (left := _ban_left(file, compiled.shadow_ban, open_request, now)):
        return Refusal(keyed, left, banned=True)
    if requirement.refused:
        return Refusal(keyed, requirement.ban_for or None)
    if requirement.ban_only:
        return None
    hashed = file.key_hash(open_request.key if keyed.key is None else keyed.key)
    refused = never = by_slot = False
    retry, delay, remaining = requirement.ban_for, 0, _UNBOUNDED
    written: list[tuple[int, int, int]] = []
    for const, need, cost, limit, resume, slack, horizon in compiled.meters:
        cell = hashed ^ const
        place = cells.first + ((cell & cells.mask) << 1)
        if words[place] != cell:
            place = cells.find(cell)
        word = words[place + 1] if place >= 0 else 0
        base = word >> MARK_BITS
        if base <= now:
            base, word = now, 0
        elif base > now + horizon:
            base, word = now, 0
            words[A_GARBAGE] += 1
        excess = base + need - now
        allowed = resume if word & REFUSED_UNTIL_RESUME else limit
        if excess > allowed:
            if not open_request.may_wait or excess > allowed + slack:
                refused = True
                never = never or need > limit + slack
                retry = max(retry, excess - resume)
            delay = max(delay, excess - allowed)
        if cost or word & REFUSED_UNTIL_RESUME:
            written.append((place, cell, (base + cost) << MARK_BITS))
        if need:
            remaining = min(remaining, (allowed - excess) // need)
    for const, slot, record in compiled.slots:
        held = file.slot_counts.total(hashed ^ const)
        if held >= slot.limit:
            refused = by_slot = True
            retry = max(retry, SHORTEST_RETRY, words[record + L_MEAN] // slot.limit)
        remaining = min(remaining, slot.limit - held - 1)
    if refused:
        return Refusal(keyed, None if never else retry, by_slot=by_slot, never=never)
    charges.cells += written
    charges.slots += [(hashed ^ const, slot, record) for const, slot, record in compiled.slots]
    charges.counters.append(compiled.counter + G_ADMITTED)
    if compiled.charged and keyed.key is None and not dry:
        charges.charged.append(compiled.charged)
    if delay:
        charges.counters.append(compiled.counter + G_DELAYED)
    if dry:
        charges.dry_delay = max(charges.dry_delay, delay)
    else:
        charges.delay = max(charges.delay, delay)
        charges.remaining = min(charges.remaining, max(0, remaining))
    return None


def _commit(
    file: StoreFile, open_request: StoreRequest, charges: Charges, now: int, number: int
) -> str | None:
    """Take a row, then charge. Return a text if that is not possible; nothing is charged then."""
    words = file.words
    row = open_request.row + file.first_row if open_request.entered else file.take_row()
    if row < 0:
        return (
            f"shared store: all {file.rows.records} rows are taken by requests in flight: ask for more "
            'rows, as in store="shm:NAME?rows=8192"'
        )
    slots = words[row + R_SLOTS] if open_request.entered else 0
    if slots + len(charges.slots) > MOST_SLOTS:
        return f"a request can hold {MOST_SLOTS} slots, and this one asks for more"
    if not open_request.entered:
        open_request.row, open_request.generation = row - file.first_row, number
        ROW_CONTENT.pack_into(
            file.buffer,
            (row + 1) * 8,
            file.owner_bytes,
            now,
            open_request.thread,
            0,
            file.key_hash(open_request.key) if open_request.ban_key else 0,
            0,
            file.resource_hash(open_request),
            open_request.client.encode("latin-1", "replace"),
            _request_text(None, open_request),
        )
    at = row + R_FIRST_SLOT + slots * SLOT_WORDS
    for cell, slot, record in charges.slots:
        words[at + S_KEY] = cell
        words[at + S_SINCE] = now
        words[at + S_DEADLINE] = now + slot.max_hold
        words[at + S_RECORD] = record
        at += SLOT_WORDS
    words[row + R_SLOTS] = slots + len(charges.slots)
    words[row + R_CHARGED] = merged(words[row + R_CHARGED], charges.charged)
    words[row + R_GENERATION] = open_request.generation
    open_request.entered = True
    for cell, _slot, _record in charges.slots:
        file.slot_counts.add(cell, 1)
    for place, cell, word in charges.cells:
        if place >= 0 and words[place] == cell:
            words[place + 1] = word
        else:
            file.write_cell(-1, cell, word, now)
    for counter in charges.counters:
        words[counter] += 1
    return None


def _request_text(compiled: CompiledRoute | None, open_request: StoreRequest) -> bytes:
    """Method, host and path as a row has them."""
    text = REQUEST_TEXT.pack(
        open_request.method.encode("latin-1", "replace"),
        open_request.host.encode("latin-1", "replace"),
        # A NUL ends a row's text.
        open_request.path.replace("\0", "?").encode("latin-1", "replace"),
    )
    if compiled is not None:
        compiled.request_text = text
    return text


def _refuse(
    file: StoreFile, refusal: Refusal, open_request: StoreRequest, now: int, *, dry: bool
) -> None:
    """Count a refusal, mark the meters that refused, and set the ban unless it stands."""
    words = file.words
    requirement, key, _ = refusal.keyed
    key = open_request.key if key is None else key
    compiled = file.compiled.get(requirement) or file.compile_requirement(requirement)
    words[compiled.counter + (G_DRY_RUN_REFUSED if dry else G_REFUSED)] += 1
    if refusal.banned:
        return
    for const, need, _cost, limit, resume, slack, horizon in compiled.meters:
        if resume < limit:
            place = file.cells.find(file.key_hash(key) ^ const)
            word = words[place + 1] if place >= 0 else 0
            excess = (word >> MARK_BITS) + need - now
            if limit < excess - (slack if open_request.may_wait else 0) and excess - need <= horizon:
                words[place + 1] = word | REFUSED_UNTIL_RESUME
    ban = compiled.shadow_ban if dry else compiled.ban
    if ban is not None and requirement.ban_for and open_request.ban_key:
        cell = file.key_hash(open_request.ban_key) ^ ban[0]
        place = file.cells.find(cell)
        file.write_cell(place, cell, (now + requirement.ban_for) << MARK_BITS, now)

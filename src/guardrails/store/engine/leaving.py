"""How a request leaves the shared store. All of it runs under the lock of one file."""

from collections.abc import Sequence

from guardrails.store.contract import Debit, Slot, StoreRequest
from guardrails.store.engine.file import StoreFile
from guardrails.store.gcra import MARK_BITS, REFUSED_UNTIL_RESUME
from guardrails.store.layout import (
    L_MEAN,
    ONE_CELL,
    ONE_SLOT,
    R_FIRST_SLOT,
    R_GENERATION,
    R_SLOTS,
    S_KEY,
    S_RECORD,
    S_SINCE,
    SLOT_WORDS,
    WORKER_SEEN,
)

read_cell = ONE_CELL.unpack_from
read_slot = ONE_SLOT.unpack_from
write_seen = WORKER_SEEN.pack_into


def leave(file: StoreFile, open_request: StoreRequest, debits: Sequence[Debit], _number: int) -> None:
    """Charge the request, release its slots and free its row."""
    words = file.words
    row = open_request.row + file.first_row
    now = file.clock()
    # The request may have entered another file, which had more rows and was removed.
    fits = open_request.generation and open_request.row < file.row_words
    if fits and words[row + R_GENERATION] == open_request.generation:
        slots = words[row + R_SLOTS]
        words[row + R_GENERATION] = 0
        at = (row + R_FIRST_SLOT) << 3
        for _ in range(slots):
            cell, since, _deadline, record = read_slot(file.map, at)
            at += SLOT_WORDS << 3
            if cell:
                slot_counts = file.slot_counts
                place = slot_counts.first + ((cell & slot_counts.mask) << 1)
                found, held = read_cell(file.map, place << 3)
                if found == cell and held:
                    words[place + 1] = held - 1
                else:
                    slot_counts.add(cell, -1)
                mean = words[record + L_MEAN]
                words[record + L_MEAN] = _moving_mean(mean, now - since)
        file.free_rows.append(row)
        if file.worker_at:
            file.served += 1
            write_seen(file.map, file.worker_at, now, file.served)
    if debits:
        debit(file, debits, now)


def update(
    file: StoreFile,
    open_request: StoreRequest,
    change: tuple[Sequence[Debit], Sequence[Slot]],
    _number: int,
) -> None:
    """Charge a request that goes on, and release some of its slots."""
    debits, release = change
    words = file.words
    now = file.clock()
    if debits:
        debit(file, debits, now)
    row = open_request.row + file.first_row
    fits = open_request.entered and open_request.row < file.row_words
    if release and fits and words[row + R_GENERATION] == open_request.generation:
        records = {file.record("slots", slot.name) for slot in release}
        for slot in file.held_slots(row):
            if words[slot + S_RECORD] in records:
                key = words[slot + S_KEY]
                words[slot + S_KEY] = 0
                file.slot_counts.add(key, -1)
                record = words[slot + S_RECORD]
                lasted = now - words[slot + S_SINCE]
                words[record + L_MEAN] = _moving_mean(words[record + L_MEAN], lasted)


def debit(file: StoreFile, debits: Sequence[Debit], now: int) -> None:
    """Charge meters after the fact, up to their horizon."""
    for meter, key, amount in debits:
        hashed = file.hashes.get(key) or file.key_hash(key)
        cell = hashed ^ (file.name_hashes.get(meter.name) or file.name_hash(meter.name))
        debit_cell(file, cell, amount, meter.horizon, now)


def debit_cell(file: StoreFile, cell: int, amount: int, horizon: int, now: int) -> None:
    """Charge the meter of one cell."""
    words, cells = file.words, file.cells
    place = cells.first + ((cell & cells.mask) << 1)
    found, word = read_cell(file.map, place << 3)
    if found != cell:
        place = cells.find(cell)
        word = words[place + 1] if place >= 0 else 0
    tat = word >> MARK_BITS
    latest = now + horizon
    if not now < tat <= latest:
        tat, word = now, 0
    tat = min(tat + amount, latest)
    if tat <= now:
        return
    if place >= 0:
        words[place + 1] = tat << MARK_BITS | word & REFUSED_UNTIL_RESUME
    else:
        file.write_cell(-1, cell, tat << MARK_BITS | word & REFUSED_UNTIL_RESUME, now)


def _moving_mean(mean: int, lasted: int) -> int:
    """The mean time for which a slot is held, over about eight requests."""
    return mean + (lasted - mean) // 8 if mean else lasted

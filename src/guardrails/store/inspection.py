"""What operators read and set in the shared store.

Reading takes no lock, so that it delays no request. A row may therefore change while it is read: its
generation is read before and after, and the row is left out if the two differ. `switch` and `reset`
run under the lock.
"""

from collections import Counter
from collections.abc import Iterable

from guardrails.store import layout
from guardrails.store.contract import SWITCH_WORDS
from guardrails.store.engine.file import StoreFile
from guardrails.store.layout import (
    G_ADMITTED,
    G_HASH,
    G_SWITCH,
    G_SWITCH_NEWS,
    H_SWITCH,
    H_SWITCH_NEWS,
    H_SWITCHED,
    OF_A_GUARD,
    OF_THE_STORE,
)
from guardrails.store.processes import is_dead
from guardrails.store.records import GuardCounters, InFlight, Records


def requests(file: StoreFile) -> Records[InFlight]:
    """Return the requests in flight."""
    words = file.words
    now = file.clock()
    found: Records[InFlight] = Records()
    for row in file.live_rows():
        generation = words[row]
        client, method, host, path = layout.ROW_TEXT.unpack_from(file.buffer, (row + layout.R_TEXT) * 8)
        shown = InFlight(
            pid=words[row + layout.R_PID],
            generation=generation,
            age_seconds=(now - words[row + layout.R_STARTED]) / 1_000_000,
            client=text_of(client),
            method=text_of(method),
            host=text_of(host),
            path=text_of(path),
            slots=len(file.held_slots(row)),
            thread=words[row + layout.R_THREAD],
            process_start=words[row + layout.R_START],
            row=row - file.first_row,
            namespace=words[row + layout.R_NAMESPACE],
            usual_path=bool(words[row + layout.R_RESOURCE] & 1),
        )
        if generation and words[row] == generation:
            found.append(shown)
    return found


def rows_of_dead(file: StoreFile, *, this_process_too: bool = False) -> list[tuple[int, int]]:
    """Return row and generation of each request whose process is dead.

    It examines processes, so it must not run under the lock.

    Args:
        file: the file.
        this_process_too: also return the rows of this process (False).
    """
    return [
        row
        for owner, rows in file.owners().items()
        if (this_process_too if owner == file.owner else is_dead(owner, file.owner.namespace))
        for row in rows
    ]


def slots_held(file: StoreFile) -> dict[str, int]:
    """Return how many slots are held, by the slot's name."""
    words = file.words
    names = file.names("slots")
    held: Counter[str] = Counter()
    for row in file.live_rows():
        generation = words[row]
        records = [words[slot + layout.S_RECORD] for slot in file.held_slots(row)]
        if generation and words[row] == generation:
            held.update(names.get(record, "others") for record in records)
    return dict(held)


def counters(file: StoreFile) -> dict[str, GuardCounters]:
    """Return what each guard has done, by its name."""
    return {
        name: GuardCounters(*file.words[word + G_ADMITTED : word + G_ADMITTED + 4].tolist())
        for word, name in file.names("guards").items()
    }


def alarms(file: StoreFile) -> dict[str, int]:
    """Return the alarms that are not zero, by name."""
    counts = file.words[layout.H_ALARMS : layout.H_ALARMS + len(layout.ALARMS)].tolist()
    return {name: count for name, count in zip(layout.ALARMS, counts, strict=True) if count}


def positions(file: StoreFile) -> dict[str, str]:
    """Return the switch's position for the store (under "") and each guard, unless it is "on"."""
    words = {"": file.words[H_SWITCH]}
    words |= {name: file.words[record + G_SWITCH] for record, name in file.names("guards").items()}
    return {name: SWITCH_WORDS[position] for name, position in words.items() if position}


def declare(file: StoreFile, guards: Iterable[str], _second: None, _number: int) -> list[str]:
    """Give each guard a record. Return the guards for which the table has no room."""
    return [
        guard
        for guard in guards
        if file.words[file.record("guards", guard) + G_HASH] != file.name_hash(guard)
    ]


def switch(file: StoreFile, position: int | None, guard: str | None, _number: int) -> int:
    """Set the switch of the store or of a guard, unless `position` is None; return its position."""
    record = 0 if guard is None else file.record("guards", guard)
    word = record + G_SWITCH if record else H_SWITCH
    if position not in (None, file.words[word]):
        file.words[word] = position
        file.words[record + G_SWITCH_NEWS if record else H_SWITCH_NEWS] |= OF_THE_STORE
        file.words[H_SWITCH_NEWS] |= OF_A_GUARD if record else 0
        switched = [file.words[record + G_SWITCH] for record in file.names("guards")]
        penalties = file.words[H_SWITCHED] & layout.HAS_PENALTIES
        file.words[H_SWITCHED] = any((file.words[H_SWITCH], *switched)) | penalties
    return file.words[word]


def take_switch_news(file: StoreFile, _first: None, _second: None, _number: int) -> dict[str, str]:
    """Return the positions that were set and have not been said, by guard; "" is the store.

    From then on they count as said.
    """
    words = file.words
    news = {"": SWITCH_WORDS[words[H_SWITCH]]} if words[H_SWITCH_NEWS] & OF_THE_STORE else {}
    for record, name in file.names("guards").items():
        if words[record + G_SWITCH_NEWS]:
            words[record + G_SWITCH_NEWS] = 0
            news[name] = SWITCH_WORDS[words[record + G_SWITCH]]
    words[H_SWITCH_NEWS] = 0
    return news


def reset(file: StoreFile, _first: None, _second: None, _number: int) -> None:
    """Clear all meters, bans, penalties, counters and mean service times."""
    file.cells.clear()
    for record in file.names("guards"):
        for word in range(record + G_ADMITTED, record + G_ADMITTED + 4):
            file.words[word] = 0
    for record in file.names("slots"):
        file.words[record + layout.L_MEAN] = 0


def text_of(padded: bytes) -> str:
    """Return a text of a row without its padding."""
    return padded.rstrip(b"\0").decode("latin-1")

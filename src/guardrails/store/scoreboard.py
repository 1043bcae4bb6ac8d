"""The shared store's table of workers, and the penalty for a request that a watchdog ends.

The functions with an argument `_number` write, and run under the file's lock. The others only read,
and take no lock.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from guardrails.store.contract import LONGEST_RETIREMENT
from guardrails.store.engine import leaving
from guardrails.store.engine.file import StoreFile
from guardrails.store.gcra import MARK_BITS
from guardrails.store.layout import (
    CPU_BITS,
    DUMP_SHIFT,
    G_CPU,
    G_HORIZON,
    G_METER,
    H_PENALIZED_UNTIL,
    H_SWITCHED,
    HAS_PENALTIES,
    INTERRUPTIBLE,
    R_CLIENT,
    R_GENERATION,
    R_NAMESPACE,
    R_PID,
    R_RESOURCE,
    R_START,
    R_STARTED,
    RESPAWNS,
    RETIRE_SHIFT,
    SIGNAL_MASK,
    STACKS_BY_SIGNAL,
    W_FLAGS,
    W_NAMESPACE,
    W_PARENT,
    W_PID,
    W_REQUESTS,
    W_RETIRING,
    W_SEEN,
    W_START,
    W_STARTED,
    W_THREADS,
    WORKER_NAME_BYTES,
    WORKER_NAME_OFFSET,
    WORKER_WORDS,
)
from guardrails.store.processes import Owner, ProcessFacts, is_dead, limits_of, process_facts
from guardrails.store.records import InFlight, Penalty, Records, Worker, WorkerFacts


class Entry(NamedTuple):
    """What a process writes into the table. It is gathered before the lock is taken.

    system: what the system knows of the process.
    dead: the first words of the entries whose processes are dead.
    """

    facts: WorkerFacts
    system: ProcessFacts | None
    dead: frozenset[int]


def entry(file: StoreFile, facts: WorkerFacts) -> Entry:
    """Gather what `register` writes for this process. It examines processes: not under the lock."""
    return Entry(facts, process_facts(file.owner.pid), dead_entries(file))


def register(file: StoreFile, entry: Entry, _second: None, _number: int) -> bool:
    """Write this process into the table, over its own entry, a free one or that of a dead process.

    Returns:
        Whether there was room.
    """
    words = file.words
    facts, system, dead = entry
    place = free = 0
    for at in entries(file):
        owner = owner_of_entry(file, at)
        if owner == file.owner:
            place = at
            break
        if not free and (not owner.pid or at in dead):
            free = at
    else:
        place = free
    if not place:
        return False
    known = owner_of_entry(file, place) == file.owner
    now = file.clock()
    if not known:
        for word in range(place, place + WORKER_WORDS):
            words[word] = 0
        # After the machine was suspended, a process can be older than the clock.
        age = round((system.age_seconds if system else 0.0) * 1_000_000)
        words[place + W_STARTED] = max(0, now - age)
        words[place + W_SEEN] = now
    words[place + W_PARENT] = system.parent if system else 0
    words[place + W_THREADS] = facts.threads
    words[place + W_FLAGS] = (
        (RESPAWNS if facts.respawns else 0)
        | (INTERRUPTIBLE if facts.interruptible else 0)
        | (STACKS_BY_SIGNAL if facts.asked_by_signal else 0)
        | facts.retire_signal << RETIRE_SHIFT
        | facts.dump_signal << DUMP_SHIFT
    )
    name = facts.server.encode("ascii", "replace")[:WORKER_NAME_BYTES].ljust(WORKER_NAME_BYTES, b"\0")
    at = place * 8 + WORKER_NAME_OFFSET
    file.buffer[at : at + WORKER_NAME_BYTES] = name
    for at in dead:
        words[at + W_RETIRING] = 0  # this process serves in its place
    words[place + W_START], words[place + W_NAMESPACE] = file.owner.start, file.owner.namespace
    words[place + W_PID] = file.owner.pid
    file.served = words[place + W_REQUESTS]
    file.worker_at = (place + W_SEEN) * 8
    return True


def dead_entries(file: StoreFile) -> frozenset[int]:
    """Return the first words of the entries whose processes are dead."""
    namespace = file.owner.namespace
    return frozenset(
        at
        for at in entries(file)
        if file.words[at + W_PID] and is_dead(owner_of_entry(file, at), namespace)
    )


def workers(file: StoreFile) -> Records[Worker]:
    """Return the living workers."""
    words = file.words
    now = file.clock()
    in_flight: Counter[Owner] = Counter()
    latest: dict[Owner, int] = {}
    for row in file.live_rows():
        owner = Owner(words[row + R_PID], words[row + R_START], words[row + R_NAMESPACE])
        in_flight[owner] += 1
        latest[owner] = max(latest.get(owner, 0), words[row + R_STARTED])
    found: Records[Worker] = Records()
    for at in entries(file):
        owner = owner_of_entry(file, at)
        if not owner.pid or is_dead(owner, file.owner.namespace):
            continue
        same_namespace = owner.namespace == file.owner.namespace
        system = process_facts(owner.pid) if same_namespace else None
        name_at = at * 8 + WORKER_NAME_OFFSET
        name = bytes(file.buffer[name_at : name_at + WORKER_NAME_BYTES])
        flags = words[at + W_FLAGS]
        state = "serving" if in_flight[owner] else "idle"
        seen = max(words[at + W_SEEN], latest.get(owner, 0))
        found.append(
            Worker(
                pid=owner.pid,
                namespace=owner.namespace,
                process_start=owner.start,
                parent=words[at + W_PARENT],
                server=name.rstrip(b"\0").decode("ascii", "replace"),
                state="retiring" if words[at + W_RETIRING] else state,
                requests=words[at + W_REQUESTS],
                in_flight=in_flight[owner],
                age_seconds=_seconds(now - words[at + W_STARTED]),
                last_seen_seconds=_seconds(now - seen),
                cpu_seconds=system.cpu_seconds if system else None,
                resident_bytes=system.resident_bytes if system else None,
                threads=words[at + W_THREADS],
                respawns=bool(flags & RESPAWNS),
                retire_signal=flags >> RETIRE_SHIFT & SIGNAL_MASK,
                dump_signal=flags >> DUMP_SHIFT & SIGNAL_MASK,
                interruptible=bool(flags & INTERRUPTIBLE),
                asked_by_signal=bool(flags & STACKS_BY_SIGNAL),
                limits=limits_of(owner.pid) if same_namespace else {},
            )
        )
    return found


def begin_retiring(file: StoreFile, _first: None, _second: None, _number: int) -> bool:
    """Mark this worker as retiring, unless another has been retiring for less than a minute.

    A retiring worker that has ended still counts until another worker registers, because only that one
    serves in its place.
    """
    words = file.words
    now = file.clock()
    own_entry = 0
    for at in entries(file):
        if owner_of_entry(file, at) == file.owner:
            own_entry = at
            continue
        since = words[at + W_RETIRING]
        if since and words[at + W_PID] and now - since < LONGEST_RETIREMENT:
            return False
    if own_entry:
        words[own_entry + W_RETIRING] = now
    return True


def mark_retiring(file: StoreFile, owner: Owner, _second: None, _number: int) -> None:
    """Mark a worker as retiring that another process has told to end."""
    for at in entries(file):
        if owner_of_entry(file, at) == owner:
            file.words[at + W_RETIRING] = file.clock()


def penalize(
    file: StoreFile, request: InFlight, charge: tuple[int, int], _number: int
) -> Penalty | None:
    """Charge a request's client, and refuse it the same resource for a while.

    Args:
        file: the file.
        request: the request, as it was shown.
        charge: the microseconds to charge, and for how many microseconds the client is refused.

    Returns:
        What was done; None if the request is over.
    """
    words = file.words
    row = file.first_row + request.row
    in_file = 0 <= request.row < file.row_words
    if not in_file or words[row + R_GENERATION] != request.generation:
        return None
    client = words[row + R_CLIENT]
    if not client:
        return Penalty()
    microseconds, ban_for = charge
    now = file.clock()
    charged = file.charged_records(row)
    for record in charged:
        amount = (microseconds * words[record + G_CPU] >> CPU_BITS) + 1
        leaving.debit_cell(
            file, client ^ words[record + G_METER], amount, words[record + G_HORIZON], now
        )
    banned = bool(ban_for and words[row + R_RESOURCE])
    if banned:
        cell = file.penalty_cell(client, words[row + R_RESOURCE])
        file.write_cell(file.cells.find(cell), cell, (now + ban_for) << MARK_BITS, now)
        words[H_PENALIZED_UNTIL] = max(words[H_PENALIZED_UNTIL], now + ban_for)
        words[H_SWITCHED] |= HAS_PENALTIES
    return Penalty(len(charged), banned)


def entries(file: StoreFile) -> range:
    """Return the first words of all entries of the table, free ones too."""
    section = file.sections["workers"]
    return range(section.word, section.word + section.records * WORKER_WORDS, WORKER_WORDS)


def owner_of_entry(file: StoreFile, at: int) -> Owner:
    """Return the process of an entry; its pid is 0 where the entry is free."""
    return Owner(file.words[at + W_PID], file.words[at + W_START], file.words[at + W_NAMESPACE])


def _seconds(microseconds: int) -> float:
    return max(0, microseconds) / 1_000_000

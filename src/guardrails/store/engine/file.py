"""One mapped file of the shared store: its header, its lock, its repair.

The rules
    1. Everything that changes the file runs inside `attempt`, the only place that takes the lock.
    2. A writer may be killed between any two writes to memory, and an exception may be raised between
       any two bytecodes. `H_UNDER_WAY` is the number of the acquisition while the lock is held. A
       process that takes the lock and finds it set repairs the file: it drops the row that the
       unfinished acquisition made, and counts the slots anew. A meter is one word, so it is never
       half written.
    3. If a thread that holds the lock calls again, from a destructor or a signal handler, that call
       raises InsideError.
    4. A file that was retired is never used again.

The hash by which a cell is found is the hash of the meter's name XOR the hash of the key. Slots are
counted, and bans are found, in the same way.
"""

import ctypes
import hashlib
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from guardrails.errors import InsideError, StoreBusyError, StoreError
from guardrails.store import layout
from guardrails.store.contract import MOST_SLOTS, Meter, Requirement, RouteRequirements, StoreRequest
from guardrails.store.engine.cells import Cells, SlotCounts
from guardrails.store.engine.mutex import BUSY, OWNER_DEAD, FileLock, RobustMutex
from guardrails.store.gcra import MARK_BITS
from guardrails.store.layout import (
    A_EVICTED,
    A_HELD_TOO_LONG,
    A_RECLAIMED,
    A_REPAIRED,
    G_ADMITTED,
    G_CPU,
    G_HASH,
    G_HORIZON,
    G_METER,
    H_CONDEMNED,
    H_NUMBER,
    H_PENALIZED_UNTIL,
    H_RETIRED,
    H_SWITCHED,
    H_UNDER_WAY,
    HAS_PENALTIES,
    LOCK_FLOCK,
    MUTEX_OFFSET,
    R_CHARGED,
    R_FIRST_SLOT,
    R_GENERATION,
    R_NAMESPACE,
    R_PID,
    R_SLOTS,
    R_START,
    RETIRED_CONDEMNED,
    ROW_WORDS,
    S_DEADLINE,
    S_KEY,
    SLOT_WORDS,
)
from guardrails.store.processes import Owner, this_process

_MEMO_SIZE = 65536
_CHARGED_SHIFTS = range(0, layout.MOST_CHARGED * layout.CHARGED_BITS, layout.CHARGED_BITS)
_CHARGED_MASK = (1 << layout.CHARGED_BITS) - 1
_MOST_BOUNDS = 4096

read_three = layout.ACQUISITION.unpack_from
write_two = layout.ONE_CELL.pack_into
_RETIRED_AT, _NUMBER_AT, _UNDER_WAY_AT = H_RETIRED * 8, H_NUMBER * 8, H_UNDER_WAY * 8


class LostError(StoreError):
    """The file's lock is unusable for good: the file must be condemned."""


class RetiredError(StoreBusyError):
    """The file was retired: another one has replaced it."""


class _Inside(threading.local):
    active = False
    number = 0


class CompiledRequirement:
    """A requirement compiled for one file: keyed hashes and word numbers."""

    __slots__ = ("ban", "charged", "counter", "meters", "shadow_ban", "slots")

    def __init__(self, requirement: Requirement, file: "StoreFile") -> None:
        self.counter = file.record("guards", requirement.guard)
        self.charged = file.note_charged(self.counter, requirement)
        self.ban = _ban(requirement.ban, file)
        self.shadow_ban = _ban(requirement.shadow_ban, file)
        self.meters = tuple(
            (
                file.name_hash(meter.name),
                meter.need,
                meter.cost,
                meter.limit,
                meter.resume,
                meter.slack,
                meter.horizon,
            )
            for meter in requirement.meters
        )
        self.slots = tuple(
            (file.name_hash(slot.name), slot, file.record("slots", slot.name))
            for slot in requirement.slots
        )


class CompiledRoute:
    """A route's requirements compiled for one file, as the fast path reads them.

    Each meter and each slot has a hash. If `by_client` is true, the requirement's key is None, and the
    hash is to be combined with that of the request's key.
    """

    __slots__ = (
        "bans",
        "charged",
        "counters",
        "meters",
        "request_text",
        "resource",
        "simple",
        "slots",
        "token",
    )

    def __init__(self, requirements: RouteRequirements, file: "StoreFile") -> None:
        self.token = file.token
        self.request_text = b""
        self.resource = 0
        self.simple = len(requirements) > 0
        meters, slots, bans, counters, charged = [], [], [], [], []
        for requirement, key, dry_run in requirements:
            if dry_run or requirement.refused:
                self.simple = False
            compiled = file.compiled.get(requirement) or file.compile_requirement(requirement)
            by_client, mixed = key is None, 0 if key is None else file.key_hash(key)
            for const, need, cost, limit, _resume, _slack, horizon in compiled.meters:
                meters.append((by_client, const ^ mixed, need, cost, limit, horizon))
            for const, slot, record in compiled.slots:
                slots.append((by_client, const ^ mixed, slot.limit, slot.max_hold, record))
            if compiled.ban is not None:
                bans.append(compiled.ban[0])
            if not requirement.ban_only:
                counters.append(compiled.counter + G_ADMITTED)
            if by_client and compiled.charged:
                charged.append(compiled.charged)
        self.charged = merged(0, charged)
        self.meters, self.slots = tuple(meters), tuple(slots)
        self.bans, self.counters = tuple(bans), tuple(counters)


def merged(charged: int, more: Iterable[int]) -> int:
    """Return a row's R_CHARGED with more guard records. Those that do not fit are left out."""
    numbers = [charged >> shift & _CHARGED_MASK for shift in _CHARGED_SHIFTS]
    numbers = [*dict.fromkeys(number for number in (*numbers, *more) if number)]
    return sum(number << shift for number, shift in zip(numbers, _CHARGED_SHIFTS, strict=False))


def _ban(meter: Meter | None, file: "StoreFile") -> tuple[int, int] | None:
    return None if meter is None else (file.name_hash(meter.name), meter.horizon)


class StoreFile:
    """A mapped file. Only the process that opened it may use it; the descriptor is this object's."""

    descriptor = -1

    def __init__(self, descriptor: int, path: Path, clock: Callable[[], int]) -> None:
        self.path = path
        self.clock = clock
        status = os.fstat(descriptor)
        self.identity = (status.st_dev, status.st_ino)
        self.map = mmap.mmap(descriptor, status.st_size)
        self.buffer = memoryview(self.map)
        self.words = self.buffer.cast("Q")
        self.owner: Owner = this_process()
        self.pid = self.owner.pid
        self.owner_bytes = layout.ROW_OWNER.pack(*self.owner)
        self.free_rows: list[int] = []
        self.compiled: dict[Requirement, CompiledRequirement] = {}
        # Compiled routes outlive the file. They refer to this, so that they do not keep it mapped.
        self.token = object()
        self.hashes: OrderedDict[bytes, int] = OrderedDict()
        self.name_hashes: dict[str, int] = {}
        self.inside = _Inside()
        self.now = 0
        self.reap_at = 0
        self.worker_at = 0
        self.served = 0
        # Last: if something above fails, the caller closes the descriptor.
        self.descriptor = descriptor

    def ready(self) -> "StoreFile":
        """Read the header, which must be valid, and return this file."""
        self.sections = layout.read_directory(self.buffer)
        self.cells = Cells(self.words, self.sections["cells"])
        self.slot_counts = SlotCounts(self.words, self.sections["totals"])
        self.rows = self.sections["rows"]
        self.first_row = self.rows.word
        self.row_words = self.rows.records * ROW_WORDS
        secret = layout.H_SECRET * 8
        self._secret = bytes(self.buffer[secret : secret + layout.SECRET_BYTES])
        self.mutex: RobustMutex | FileLock
        if self.words[layout.H_LOCK_KIND] == LOCK_FLOCK:
            self.mutex = FileLock(self.lock_path())
        else:
            self.mutex = self.mutex_in_place()
        self._try_lock, self._unlock = self.mutex.try_lock, self.mutex.unlock
        return self

    def lock_path(self) -> str:
        """Return the path of the file for flock. Each file that had this name has another one."""
        return f"{self.path}.{self.identity[1]:x}.lock"

    def mutex_in_place(self) -> RobustMutex:
        """Return the mutex that is in the file."""
        return RobustMutex(ctypes.c_char.from_buffer(self.map, MUTEX_OFFSET))

    def attempt(self, work: Callable[..., Any], first: Any, second: Any) -> Any:
        """Run `work(self, first, second, number)` under the lock, or raise StoreBusyError at once.

        The try and the finally contain the C calls themselves. If there were a Python frame in
        between, an exception from a signal handler could leave the lock held. Unlocking without
        holding does nothing.
        """
        inside = self.inside
        if inside.active:
            raise InsideError(
                "shared store: called again by the thread that is using it (from a signal handler or a "
                "destructor): try again later"
            )
        try_lock, unlock, buffer = self._try_lock, self._unlock, self.map
        code = 0
        try:
            inside.active = True
            try:
                code = try_lock()
                if code:
                    if code in BUSY:
                        raise StoreBusyError("shared store: its lock is held")
                    if code != OWNER_DEAD:
                        raise LostError(f"shared store: its lock is unusable (error {code})")
                    self.mutex.make_consistent()
                retired, number, under_way = read_three(buffer, _RETIRED_AT)
                if under_way:
                    self._repair()
                    number = self.words[H_NUMBER]
                if retired:
                    raise RetiredError("shared store: another file has replaced this one: try again")
                number += 1
                inside.number = number
                write_two(buffer, _UNDER_WAY_AT, number, self.pid)
                result = work(self, first, second, number)
                write_two(buffer, _NUMBER_AT, number, 0)
                return result
            finally:
                # An unusable mutex must not be touched again: glibc would crash.
                if code == 0 or code == OWNER_DEAD or code in BUSY:
                    unlock()
        finally:
            inside.active = False

    def was_condemned(self) -> bool:
        """Return whether the file was condemned because of this thread's last acquisition."""
        words = self.words
        return words[H_RETIRED] == RETIRED_CONDEMNED and words[H_CONDEMNED] == self.inside.number

    def key_hash(self, key: bytes) -> int:
        """Return the keyed hash of a key. Recent ones are cached."""
        found = self.hashes.get(key)
        if found is None:
            found = self._hash(key, b"key")
            if len(self.hashes) >= _MEMO_SIZE:
                self.hashes.popitem(last=False)
            self.hashes[key] = found
        return found

    def name_hash(self, name: str) -> int:
        """Return the keyed hash of the name of a meter, slot or guard."""
        found = self.name_hashes.get(name)
        if found is None:
            found = self.name_hashes[name] = self._hash(name.encode(), b"name")
        return found

    def _hash(self, text: bytes, person: bytes) -> int:
        digest = hashlib.blake2b(text, digest_size=8, key=self._secret, person=person).digest()
        return int.from_bytes(digest, "little") or 1

    def compile_route(self, requirements: RouteRequirements) -> "CompiledRoute":
        """Compile a route's requirements for this file, and keep the result in them. Needs the lock."""
        compiled = requirements.compiled = CompiledRoute(requirements, self)
        return compiled

    def compile_requirement(self, requirement: Requirement) -> CompiledRequirement:
        """Compile a requirement for this file. Needs the lock, since it may take a record."""
        if len(self.compiled) >= _MOST_BOUNDS:
            self.compiled.clear()
        compiled = self.compiled[requirement] = CompiledRequirement(requirement, self)
        return compiled

    def record(self, section_name: str, name: str) -> int:
        """Return the first word of a guard's or slot's record. If all are taken, the last is shared."""
        section = self.sections[section_name]
        wanted = self.name_hash(name)
        step = section.stride // 8
        last = section.word + (section.records - 1) * step
        for word in range(section.word, last, step):
            found = self.words[word + G_HASH]
            if found == wanted:
                return word
            if not found:
                text = name.encode()[: layout.RECORD_NAME_BYTES]
                at = word * 8 + layout.RECORD_NAME_OFFSET
                self.buffer[at : at + len(text)] = text
                self.words[word + G_HASH] = wanted
                return word
        return last

    def note_charged(self, record: int, requirement: Requirement) -> int:
        """Write into a guard's record what CPU is charged, for `penalize`.

        Returns:
            The record's number plus one; 0 if the guard is not charged with CPU.
        """
        if not requirement.cpu or not requirement.meters:
            return 0
        meter = requirement.meters[0]
        self.words[record + G_METER] = self.name_hash(meter.name)
        self.words[record + G_CPU] = round(requirement.cpu * (1 << layout.CPU_BITS))
        self.words[record + G_HORIZON] = meter.horizon
        section = self.sections["guards"]
        return (record - section.word) // (section.stride // 8) + 1

    def charged_records(self, row: int) -> list[int]:
        """Return the first words of the guard records that a row names."""
        section = self.sections["guards"]
        word = self.words[row + R_CHARGED]
        numbers = [word >> shift & _CHARGED_MASK for shift in _CHARGED_SHIFTS]
        step = section.stride // 8
        return [section.word + (n - 1) * step for n in numbers if 0 < n <= section.records]

    def resource_hash(self, open_request: StoreRequest) -> int:
        """Return the hash of the resource. Its last bit is set for a path in canonical spelling.

        It is computed once for each compiled route, since such requests have the same path.
        """
        # Requests without requirements share one empty route, whatever their path.
        compiled = (
            open_request.requirements.compiled
            if open_request.requirements and type(open_request.requirements) is RouteRequirements
            else None
        )
        if compiled is not None and compiled.resource and compiled.token is self.token:
            found: int = compiled.resource
            return found
        canonical = open_request.resource == (open_request.path.rstrip("/") or "/")
        text = open_request.resource.encode("utf-8", "surrogatepass")
        found = self._hash(text, b"resource") & ~1 | canonical or 2
        if compiled is not None and compiled.token is self.token:
            compiled.resource = found
        return found

    def penalty_cell(self, client: int, resource: int) -> int:
        """Return the hash of the cell with the end of a client's penalty for a resource."""
        return client ^ self.name_hash("penalty") ^ resource & ~1 or 1

    def penalty_left(self, open_request: StoreRequest, now: int) -> int:
        """Return for how much longer the client is penalized for the resource. Needs the lock."""
        words = self.words
        if words[H_PENALIZED_UNTIL] <= now:
            words[H_SWITCHED] &= ~HAS_PENALTIES
            return 0
        if not open_request.ban_key or not open_request.requirements:
            return 0
        cell = self.penalty_cell(self.key_hash(open_request.ban_key), self.resource_hash(open_request))
        place = self.cells.find(cell)
        left = (words[place + 1] >> MARK_BITS) - now if place >= 0 else 0
        return left if 0 < left <= words[H_PENALIZED_UNTIL] - now else 0

    def names(self, section_name: str) -> dict[int, str]:
        """Return the names of all records, by their first word."""
        section = self.sections[section_name]
        step = section.stride // 8
        found = {}
        for word in range(section.word, section.word + section.records * step, step):
            if self.words[word + G_HASH]:
                at = word * 8 + layout.RECORD_NAME_OFFSET
                text = bytes(self.buffer[at : at + layout.RECORD_NAME_BYTES])
                found[word] = text.rstrip(b"\0").decode("utf-8", "replace")
        return found

    def close(self) -> None:
        """Close the descriptor. The mapping ends with the last reference to it."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def write_cell(self, place: int, cell: int, word: int, now: int) -> None:
        """Write a cell's word. If `place` is -1, give the cell a place first."""
        if place < 0:
            place, evicted = self.cells.take(cell, now)
            if evicted:
                self.words[A_EVICTED] += 1
        self.words[place + 1] = word

    def take_row(self) -> int:
        """Return the first word of a free row; -1 if all are taken."""
        words = self.words
        while self.free_rows:
            row = self.free_rows.pop()
            if not words[row]:
                return row
        first, count = self.rows.word, self.rows.records
        generations = words[first : first + count * ROW_WORDS : ROW_WORDS].tolist()
        start = self.owner.pid * 97 % count
        try:
            index = generations.index(0, start)
        except ValueError:
            if 0 not in generations:
                return -1
            index = generations.index(0)
        return first + index * ROW_WORDS

    def live_rows(self) -> list[int]:
        """Return the first words of the rows that are taken."""
        first, count = self.rows.word, self.rows.records
        generations = self.words[first : first + count * ROW_WORDS : ROW_WORDS].tolist()
        return [first + index * ROW_WORDS for index, taken in enumerate(generations) if taken]

    def owners(self) -> dict[Owner, list[tuple[int, int]]]:
        """Return the owners of rows, each with (row, generation) of its rows. Takes no lock."""
        words = self.words
        found: dict[Owner, list[tuple[int, int]]] = {}
        for row in self.live_rows():
            owner = Owner(words[row + R_PID], words[row + R_START], words[row + R_NAMESPACE])
            found.setdefault(owner, []).append((row, words[row + R_GENERATION]))
        return found

    def held_slots(self, row: int) -> list[int]:
        """Return the first words of a row's slots that are still held."""
        words = self.words
        first = row + R_FIRST_SLOT
        last = first + min(words[row + R_SLOTS], MOST_SLOTS) * SLOT_WORDS
        return [slot for slot in range(first, last, SLOT_WORDS) if words[slot + S_KEY]]

    def free_row(self, row: int) -> None:
        """Free a row, then its slots: the row first, since the slot counts are derived from it."""
        words = self.words
        keys = [words[slot + S_KEY] for slot in self.held_slots(row)]
        words[row + R_GENERATION] = 0
        for key in keys:
            self.slot_counts.add(key, -1)

    def drop_rows(self, rows: list[tuple[int, int]], now: int, _number: int) -> int:
        """Free rows of dead processes, and slots held too long. Return how many slots were freed."""
        words = self.words
        freed = 0
        for row, generation in rows:
            if words[row + R_GENERATION] == generation:
                freed += len(self.held_slots(row))
                self.free_row(row)
                words[A_RECLAIMED] += 1
        for row in self.live_rows():
            for slot in self.held_slots(row):
                if now > words[slot + S_DEADLINE]:
                    key = words[slot + S_KEY]
                    words[slot + S_KEY] = 0
                    self.slot_counts.add(key, -1)
                    words[A_HELD_TOO_LONG] += 1
                    freed += 1
        return freed

    def recount(self) -> None:
        """Count the slots anew, from the rows."""
        section = self.sections["totals"]
        for word in range(section.word + 1, section.word + 2 * section.records, 2):
            if self.words[word]:
                self.words[word] = 0
        for row in self.live_rows():
            for slot in self.held_slots(row):
                self.slot_counts.add(self.words[slot + S_KEY], 1)

    def _repair(self) -> None:
        """Undo an unfinished acquisition. If this is cut off, the next acquisition does it again."""
        words = self.words
        unfinished = words[H_UNDER_WAY]
        for row in self.live_rows():
            if words[row + R_GENERATION] == unfinished:
                words[row + R_GENERATION] = 0
        self.recount()
        words[A_REPAIRED] += 1
        words[H_NUMBER] = unfinished
        words[H_UNDER_WAY] = 0

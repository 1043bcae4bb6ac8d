"""The shared store's file: what each byte is for.

    0      header: 64-bit words, native byte order; see the word numbers below
    256    directory: one entry of six words per section: name, offset, stride, count, two spare
    2048   the mutex (64 bytes reserved; a robust pthread mutex takes 40)
    4096   the sections, each on a 64-byte border

Sections of layout 4
    cells     16 bytes: a keyed hash, and a word of gcra.py. Fifteen more than a power of two, so
              that a probe never wraps.
    totals    16 bytes: a keyed hash, and how many rows hold that slot. It is derived from the rows.
    rows      640 bytes: a request in flight. Words: generation (0: free), pid, start time, pid
              namespace, started, thread, slots held, the client's hash (0: it cannot be penalized),
              guard records that are charged with CPU (16 bits each), the hash of the resource, whose
              last bit is set for a path in canonical spelling; then client (48 bytes), method (16),
              host (64) and path (128) as padded text; then eight slots of four words (hash, since,
              deadline, slot record).
    guards    256 bytes: name hash, switch, admitted, refused, delayed, refused in a dry run; the meter
              that is charged with CPU, the charge for each unit of CPU (16 bits after the binary
              point), that meter's horizon; whether a change of the switch has yet to be said;
              text of the name.
    slots     256 bytes: name hash, mean service time; text of the name.
    workers   128 bytes: pid (0: free), start time, pid namespace, started, last seen, requests
              served, parent, threads, flags, retiring since; text of the server's name.
    deaths    320 bytes: a request that was in flight when its worker died, or a worker that died
              without one. Words: number (0: none), pid, start time, pid namespace, parent, found
              dead, started (0: no request), how many requests the worker had; then text as in a row.

A change to the meaning of a byte raises `LAYOUT`. The layout is part of the file's name, so a version
with another layout makes a file of its own and starts with empty counts. Layout 4 is layout 3 with the
section `deaths`.
"""

import struct
from typing import NamedTuple

MAGIC = int.from_bytes(b"guardrls", "little")
LAYOUT = 4
HEADER_BYTES = 4096
MUTEX_OFFSET = 2048
MUTEX_BYTES = 64
PROBE = 16

# Header words.
(
    H_MAGIC,
    H_LAYOUT,
    H_BYTES,
    H_LOCK_KIND,
    H_PLATFORM,
    H_BOOT,
    H_TIME_NAMESPACE,
    H_SECRET,
    _H_SECRET_2,
    H_SWITCH,
    H_SWITCHED,
    H_RETIRED,
    H_NUMBER,
    H_UNDER_WAY,
    H_OWNER,
    H_CONDEMNED,
) = range(16)
"""H_SWITCHED has the bit SWITCHED if the switch of the store or of any guard is not "on", and the bit
HAS_PENALTIES while any client is penalized. RETIRED, NUMBER, UNDER_WAY and OWNER are neighbours, since
reading or writing several words at once is far cheaper than one by one."""
SWITCHED, HAS_PENALTIES = 1, 2
H_ALARMS = 16
H_PENALIZED_UNTIL = 24
H_SWITCH_NEWS = 25
"""Not 0 if a switch was set and no worker has said so: OF_THE_STORE, OF_A_GUARD, or both."""
OF_THE_STORE, OF_A_GUARD = 1, 2
ALARMS = ("evicted", "garbage", "repaired", "reclaimed", "held_too_long")
A_EVICTED, A_GARBAGE, A_REPAIRED, A_RECLAIMED, A_HELD_TOO_LONG = range(H_ALARMS, H_ALARMS + 5)
SECRET_BYTES = 16

LOCK_MUTEX, LOCK_FLOCK = 1, 2
RETIRED_MOVED, RETIRED_CONDEMNED = 1, 2
"""Why a file is no longer used: copied under its lock, or while a stopped process held its lock."""

# Several words at once.
ONE_CELL = struct.Struct("=2Q")
ACQUISITION = struct.Struct("=3Q")
ONE_SLOT = struct.Struct("=4Q")

# Row words.
(
    R_GENERATION,
    R_PID,
    R_START,
    R_NAMESPACE,
    R_STARTED,
    R_THREAD,
    R_SLOTS,
    R_CLIENT,
    R_CHARGED,
    R_RESOURCE,
) = range(10)
R_TEXT = 10
R_FIRST_SLOT = 42
MOST_CHARGED = 4
"""How many guards that are charged with CPU a row can name: each by its record's number plus one."""
CHARGED_BITS = 16
SLOT_WORDS = 4
S_KEY, S_SINCE, S_DEADLINE, S_RECORD = range(SLOT_WORDS)
ROW_WORDS = 80
ROW_OWNER = struct.Struct("=3Q")
ROW_CONTENT = struct.Struct("=24s6Q48s208s")
ROW_PATH_BYTES = 128
REQUEST_TEXT = struct.Struct(f"=16s64s{ROW_PATH_BYTES}s")
ROW_TEXT = struct.Struct(f"=48s16s64s{ROW_PATH_BYTES}s")

# Guard and slot record words.
(
    G_HASH,
    G_SWITCH,
    G_ADMITTED,
    G_REFUSED,
    G_DELAYED,
    G_DRY_RUN_REFUSED,
    G_METER,
    G_CPU,
    G_HORIZON,
    G_SWITCH_NEWS,
) = range(10)
CPU_BITS = 16
"""Bits after the binary point of G_CPU."""
L_MEAN = 1
RECORD_WORDS = 32
RECORD_NAME_OFFSET = 80
RECORD_NAME_BYTES = 176

# Worker words. SEEN and REQUESTS are neighbours, since they are written together.
(
    W_PID,
    W_START,
    W_NAMESPACE,
    W_STARTED,
    W_SEEN,
    W_REQUESTS,
    W_PARENT,
    W_THREADS,
    W_FLAGS,
    W_RETIRING,
) = range(10)
WORKER_WORDS = 16
WORKER_SEEN = struct.Struct("=2Q")
WORKER_NAME_OFFSET = 96
WORKER_NAME_BYTES = 32
RESPAWNS, INTERRUPTIBLE, STACKS_BY_SIGNAL, EXITED = 1, 2, 4, 8
RETIRE_SHIFT, DUMP_SHIFT, SIGNAL_MASK = 8, 16, 0xFF
"""Flags: see `WorkerFacts`. The numbers of the two signals are in the bits above. EXITED: the worker
has exited in order, or its death is recorded."""

# Death words.
(
    D_NUMBER,
    D_PID,
    D_START,
    D_NAMESPACE,
    D_PARENT,
    D_DIED,
    D_BEGAN,
    D_IN_FLIGHT,
) = range(8)
D_TEXT = 8
DEATH_WORDS = 40

_DIRECTORY_OFFSET = 256
_ENTRY = struct.Struct("=8s5Q")


class Section(NamedTuple):
    """Where a section lies.

    offset: bytes from the file's start.   stride: bytes of one record.   records: how many.
    """

    offset: int
    stride: int
    records: int

    @property
    def word(self) -> int:
        """The section's first 64-bit word."""
        return self.offset // 8


class Layout(NamedTuple):
    """A file's size in bytes, and its sections by name."""

    size: int
    sections: dict[str, Section]


def plan(clients: int, rows: int) -> Layout:
    """Lay out a file: four cells for each client, rounded up to a power of two."""
    cells = 1 << (4 * clients - 1).bit_length()
    totals = 1 << (4 * rows - 1).bit_length()
    sizes = {
        "cells": (16, cells + PROBE - 1),
        "totals": (16, totals + PROBE - 1),
        "rows": (ROW_WORDS * 8, rows),
        "guards": (RECORD_WORDS * 8, 128),
        "slots": (RECORD_WORDS * 8, 128),
        "workers": (WORKER_WORDS * 8, 256),
        "deaths": (DEATH_WORDS * 8, 128),
    }
    offset, sections = HEADER_BYTES, {}
    for name, (stride, count) in sizes.items():
        sections[name] = Section(offset, stride, count)
        offset += -(-stride * count // 64) * 64
    return Layout(offset, sections)


def write_directory(buffer: memoryview, sections: dict[str, Section]) -> None:
    """Write the directory into a new file."""
    for index, (name, section) in enumerate(sections.items()):
        at = _DIRECTORY_OFFSET + index * _ENTRY.size
        _ENTRY.pack_into(buffer, at, name.encode(), *section, 0, 0)


def read_directory(buffer: memoryview) -> dict[str, Section]:
    """Read the directory of a file whose magic and layout have been checked."""
    sections = {}
    for at in range(_DIRECTORY_OFFSET, MUTEX_OFFSET - _ENTRY.size, _ENTRY.size):
        name, offset, stride, count, _, _ = _ENTRY.unpack_from(buffer, at)
        if not name.strip(b"\0"):
            break
        sections[name.rstrip(b"\0").decode("ascii", "replace")] = Section(offset, stride, count)
    return sections


def fits(sections: dict[str, Section], size: int) -> bool:
    """Return whether all sections that this version uses lie within the file."""
    strides = {"cells": 16, "totals": 16, "rows": ROW_WORDS * 8}
    strides |= dict.fromkeys(("guards", "slots"), RECORD_WORDS * 8)
    strides |= {"workers": WORKER_WORDS * 8, "deaths": DEATH_WORDS * 8}
    for name, stride in strides.items():
        section = sections.get(name)
        if section is None or section.stride != stride or section.offset % 64:
            return False
        if section.offset + section.stride * section.records > size:
            return False
    return all((sections[name].records - PROBE + 1).bit_count() == 1 for name in ("cells", "totals"))

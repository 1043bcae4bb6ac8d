"""The shared store's record of workers that died, with the requests that they had in flight.

The process that frees the rows of a dead worker copies them here first, so that a killed worker does
not take the names of its requests with it. The latest records are kept; new ones replace the oldest.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from guardrails.paths import plain_text
from guardrails.store import inspection, layout, scoreboard
from guardrails.store.engine.file import StoreFile
from guardrails.store.layout import (
    D_BEGAN,
    D_DIED,
    D_IN_FLIGHT,
    D_NAMESPACE,
    D_NUMBER,
    D_PARENT,
    D_PID,
    D_START,
    D_TEXT,
    DEATH_WORDS,
    EXITED,
    R_GENERATION,
    R_NAMESPACE,
    R_PID,
    R_START,
    R_STARTED,
    R_TEXT,
    W_FLAGS,
    W_PARENT,
)
from guardrails.store.processes import Owner
from guardrails.store.records import Death, Records

log = logging.getLogger("guardrails")

MOST_OF_ONE_WORKER = 16
"""How many requests of one dead worker are recorded."""

_MOST_SHOWN = 5

_TEXT_BYTES = layout.ROW_TEXT.size


class Dead(NamedTuple):
    """What dead processes have left in a file. It is gathered before the lock is taken.

    Attributes:
        rows: row and generation of each of their requests.
        workers: those of them that are in the table of workers and have not exited in order.
    """

    rows: list[tuple[int, int]]
    workers: frozenset[Owner] = frozenset()


def left_by_dead(file: StoreFile, *, this_process_too: bool = False) -> Dead:
    """Return what dead processes have left. It examines processes: not under the lock.

    Args:
        file: the file.
        this_process_too: also return the rows of this process, left from before it called exec (False).
    """
    # The workers first, so that each that is found dead has all of its rows found.
    workers = frozenset(
        scoreboard.owner_of_entry(file, at)
        for at in scoreboard.dead_entries(file)
        if not file.words[at + W_FLAGS] & EXITED
    )
    return Dead(inspection.rows_of_dead(file, this_process_too=this_process_too), workers)


def record_deaths(file: StoreFile, dead: Dead, now: int, number: int) -> tuple[int, int]:
    """Record the deaths of workers, and free what the workers have left.

    A worker that has exited in order, and had no request in flight, is not recorded.

    Args:
        file: the file.
        dead: what they have left.
        now: as for `StoreFile.drop_rows`.
        number: the number of the acquisition of the lock.

    Returns:
        The numbers of the last record before, and of the last one now.
    """
    if not (dead.rows or dead.workers):
        file.drop_rows([], now, number)  # slots that were held for too long
        return 0, 0
    words = file.words
    entries = {scoreboard.owner_of_entry(file, at): at for at in scoreboard.entries(file)}
    rows_of: dict[Owner, list[int]] = {}
    for row, generation in dead.rows:
        owner = Owner(words[row + R_PID], words[row + R_START], words[row + R_NAMESPACE])
        if words[row + R_GENERATION] == generation and owner != file.owner:
            rows_of.setdefault(owner, []).append(row)
    for owner, at in entries.items():
        if owner in dead.workers and not words[at + W_FLAGS] & EXITED:
            rows_of.setdefault(owner, [])
    before = last = _last_number(file)
    for owner, rows in rows_of.items():
        entry = entries.get(owner)
        parent = 0 if entry is None else words[entry + W_PARENT]
        if entry is not None:
            words[entry + W_FLAGS] |= EXITED  # one death is recorded once
        for row in rows[:MOST_OF_ONE_WORKER] or [0]:
            last += 1
            _write(file, last, owner, parent, row, len(rows))
    file.drop_rows(dead.rows, now, number)
    return before, last


def deaths(file: StoreFile, after: int = 0) -> Records[Death]:
    """Return the deaths that are recorded, the oldest first. Takes no lock.

    Args:
        file: the file.
        after: the number of the last record that the caller knows (0).
    """
    words, now = file.words, file.clock()
    found: Records[Death] = Records()
    for at in _records(file):
        number = words[at + D_NUMBER]
        if number <= after:
            continue
        began = words[at + D_BEGAN]
        client, method, host, path = layout.ROW_TEXT.unpack_from(file.buffer, (at + D_TEXT) * 8)
        death = Death(
            number=number,
            pid=words[at + D_PID],
            process_start=words[at + D_START],
            namespace=words[at + D_NAMESPACE],
            parent=words[at + D_PARENT],
            seconds_ago=max(0, now - words[at + D_DIED]) / 1_000_000,
            in_flight=words[at + D_IN_FLIGHT],
            age_seconds=max(0, words[at + D_DIED] - began) / 1_000_000 if began else None,
            client=inspection.text_of(client),
            method=inspection.text_of(method),
            host=inspection.text_of(host),
            path=inspection.text_of(path),
        )
        if words[at + D_NUMBER] == number:
            found.append(death)
    found.sort()
    return found


def report(found: Records[Death]) -> None:
    """Log the deaths of workers that had requests in flight."""
    for owner in dict.fromkeys(death.owner for death in found if death.in_flight):
        of_worker = [death for death in found if death.owner == owner]
        text = in_flight_text(of_worker)
        # A client's text must not break the line.
        log.warning(
            "worker %d has died with %s", owner.pid, text if text.isprintable() else ascii(text)
        )


def in_flight_text(of_worker: Sequence[Death]) -> str:
    """Return the requests that a dead worker had in flight as a part of a sentence."""
    count = of_worker[0].in_flight
    if not count:
        return "no request in flight"
    # A path with a space in it could imitate the rest of this line.
    shown = [
        f"{death.method} {plain_text(death.path).replace(' ', '%20')} from "
        f"{death.client or 'an unknown client'}, begun {death.age_seconds:.0f} s before"
        for death in of_worker[:_MOST_SHOWN]
    ]
    more = [f"{count - len(shown)} more"] if count > len(shown) else []
    return f"{count} request{'' if count == 1 else 's'} in flight: {'; '.join(shown + more)}"


def mark_exited(file: StoreFile, _first: None, _second: None, _number: int) -> None:
    """Note that this worker exits in order."""
    for at in scoreboard.entries(file):
        if scoreboard.owner_of_entry(file, at) == file.owner:
            file.words[at + W_FLAGS] |= EXITED


def _write(file: StoreFile, number: int, owner: Owner, parent: int, row: int, in_flight: int) -> None:
    words, section = file.words, file.sections["deaths"]
    at = section.word + number % section.records * DEATH_WORDS
    words[at + D_NUMBER] = 0  # a reader leaves out a record that is being written
    words[at + D_PID], words[at + D_START], words[at + D_NAMESPACE] = owner
    words[at + D_PARENT], words[at + D_DIED], words[at + D_IN_FLIGHT] = parent, file.clock(), in_flight
    words[at + D_BEGAN] = words[row + R_STARTED] if row else 0
    target, source = (at + D_TEXT) * 8, (row + R_TEXT) * 8
    text = file.buffer[source : source + _TEXT_BYTES] if row else bytes(_TEXT_BYTES)
    file.buffer[target : target + _TEXT_BYTES] = text
    words[at + D_NUMBER] = number


def _last_number(file: StoreFile) -> int:
    return max(file.words[at + D_NUMBER] for at in _records(file))


def _records(file: StoreFile) -> range:
    section = file.sections["deaths"]
    return range(section.word, section.word + section.records * DEATH_WORDS, DEATH_WORDS)

"""The shared store: one file that every worker of a host finds by its name.

Nothing that is inherited through fork is shared under every server, so nothing here is: the file
is found by name, opened at the first request of each process under the uid of that moment, and
opened anew after a fork. layout.py has the bytes, file.py the lock and the repair, decisions.py and
leaving.py what the verbs do, lifecycle.py how a file comes and goes.

Moving over: a file is given up when it was retired (made larger, or taken from a holder of its
lock that stands still), or when its name has come to mean another file. The next call then opens
what is there now. Requests in flight keep their rows, since these are copied.
"""

import atexit
import logging
import os
import random
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from guardrails.errors import InsideError, StoreBusyError, StoreError
from guardrails.store import layout, lifecycle, scoreboard
from guardrails.store.contract import (
    ON,
    REAP_INTERVAL,
    SWITCH_WORDS,
    Debit,
    EnterResult,
    Slot,
    StoreRequest,
    check_switch_word,
    monotonic_microseconds,
    warn_of_unknown_guard,
)
from guardrails.store.engine import decisions, leaving
from guardrails.store.engine.file import LostError, StoreFile
from guardrails.store.layout import (
    G_ADMITTED,
    G_SWITCH,
    H_NUMBER,
    H_RETIRED,
    H_SWITCH,
    H_SWITCHED,
)
from guardrails.store.processes import is_dead
from guardrails.store.records import GuardCounters, InFlight, Penalty, Records, Worker, WorkerFacts

log = logging.getLogger("guardrails")

LONGEST_WAIT = 0.1
"""Seconds that a request waits for the lock, at the most. On a machine whose processors are all
taken, a holder may well be off its processor for longer than a few time slices."""

STANDING_STILL = 2.0
"""Seconds after which one acquisition that still stands condemns its file."""

_SPINS = 30
_LONGEST_PAUSE = 0.0002
_NAME_CHECK_INTERVAL = 1_000_000
_OPENING_INTERVAL = 1.0
_PAUSES = random.SystemRandom()


class SharedStore:
    """State shared by all processes of one user on one host. See contract.py for its verbs.

    name: what the file is called.   clients, rows: for how many clients, and how many requests in
    flight, it has room; None takes what an existing file has, else 50,000 and 4,096.   private: the
    file goes away with the last process that has it open.   lock: "flock" takes flock(2) in place
    of the mutex.   clock: a callable that returns monotonic microseconds.
    """

    def __init__(
        self,
        name: str,
        *,
        clients: int | None = None,
        rows: int | None = None,
        private: bool = False,
        lock: str = "mutex",
        clock: Callable[[], int] = monotonic_microseconds,
        create: bool = True,
    ) -> None:
        self.name = name
        self._spec = lifecycle.FileSpec(name, clients, rows, private, lock, clock)
        self.create = create
        self._sleep: Callable[[float], object] = getattr(clock, "sleep", time.sleep)
        self._file: StoreFile | None = None
        self._name_check_at = 0
        self._standing: tuple[int, float] | None = None
        self._successor: StoreFile | None = None
        self._failure: tuple[float, str] | None = None
        self._facts: WorkerFacts | None = None
        self._is_shown = False
        self._facts_pid = 0

    def __repr__(self) -> str:
        return f"shm:{self.name}"

    def enter(self, open_request: StoreRequest, *, final: bool = True) -> EnterResult | None:
        entered = open_request.entered
        while True:
            file = self._file
            if file is None or file.pid != open_request.pid:
                file = self._open()
            if open_request.key not in file.hashes:
                file.key_hash(open_request.key)
            try:
                outcome = file.attempt(decisions.enter, open_request, final)
            except StoreError:
                outcome = self._call(open_request.pid, decisions.enter, open_request, final)
                file = self._usable(open_request.pid)
            if file.words[H_RETIRED] and file.was_condemned():
                open_request.entered = entered
            elif outcome is decisions.REAP_FIRST:
                self._reap(file)
            else:
                break
        if file.now >= self._name_check_at:
            self._check_name(file)
        if type(outcome) is str:
            raise StoreError(outcome)
        result: EnterResult | None = outcome
        return result

    def update(
        self, open_request: StoreRequest, debits: Sequence[Debit], release: Sequence[Slot] = ()
    ) -> None:
        pid = os.getpid()
        if open_request.pid == pid:
            self._call(pid, leaving.update, open_request, (debits, release))

    def leave(self, open_request: StoreRequest, debits: Sequence[Debit] = ()) -> None:
        pid = os.getpid()
        if open_request.pid != pid:
            return
        file = self._usable(pid)
        try:
            file.attempt(leaving.leave, open_request, debits)
        except StoreError:
            self._call(pid, leaving.leave, open_request, debits)
            file = self._usable(pid)
        if file.words[H_RETIRED] and file.was_condemned():
            self._call(pid, leaving.leave, open_request, ())

    def sleep(self, microseconds: int) -> None:
        self._sleep(microseconds / 1_000_000)

    def pseudonym(self, key: bytes) -> str:
        return f"{self._usable(os.getpid()).key_hash(key):016x}"

    def requests(self) -> Records[InFlight]:
        return _in_flight(self._looked_after())

    def workers(self) -> Records[Worker]:
        return scoreboard.workers(self._looked_after())

    def register(self, facts: WorkerFacts) -> None:
        pid = os.getpid()
        self._is_shown = False
        try:
            file = self._usable(pid)
        finally:
            self._facts, self._facts_pid = facts, pid
        found_room = self._call(pid, scoreboard.register, scoreboard.entry(file, facts), None)
        self._is_shown = True
        if not found_room:
            log.warning(
                "store %r: its table of workers is full, so this one is not shown: more than %d "
                "processes share it",
                self,
                file.sections["workers"].records,
            )

    def begin_retiring(self) -> bool:
        pid = os.getpid()
        may: bool = self._call(pid, scoreboard.begin_retiring, None, None)
        return may

    def mark_retiring(self, worker: Worker) -> None:
        self._call(os.getpid(), scoreboard.mark_retiring, worker.owner, None)

    def penalize(self, request: InFlight, microseconds: int, ban_for: int) -> Penalty | None:
        self._looked_after()
        charge = microseconds, ban_for
        done: Penalty | None = self._call(os.getpid(), scoreboard.penalize, request, charge)
        return done

    def slots_held(self) -> Mapping[str, int]:
        found: dict[str, int] = _slots_held(self._usable(os.getpid()))
        return found

    def counters(self) -> Mapping[str, GuardCounters]:
        found: dict[str, GuardCounters] = _counters(self._usable(os.getpid()))
        return found

    def alarms(self) -> Mapping[str, int]:
        words = self._usable(os.getpid()).words
        counts = words[layout.H_ALARMS : layout.H_ALARMS + len(layout.ALARMS)].tolist()
        return {name: count for name, count in zip(layout.ALARMS, counts, strict=True) if count}

    def switch(self, word: str | None = None, guard: str | None = None) -> str:
        position = None if word is None else SWITCH_WORDS.index(check_switch_word(word))
        known = self.counters()
        if position is None and guard is not None and guard not in known:
            return ON
        found: int = self._call(os.getpid(), _switch, position, guard)
        if position is not None:
            warn_of_unknown_guard(guard, known)
        return SWITCH_WORDS[found]

    def reset(self) -> None:
        self._call(os.getpid(), _reset, None, None)

    def close(self) -> None:
        file, self._file, self._successor = self._file, None, None
        if file is not None and file.owner.pid == os.getpid():
            lifecycle.release(file) if self.create else file.close()

    def _call(self, pid: int, work: Callable[..., Any], first: Any, second: Any) -> Any:
        """Run one verb's work in the file that is current, waiting a bounded time for its lock."""
        deadline = 0.0
        tries = 0
        while True:
            file = self._usable(pid)
            try:
                result = file.attempt(work, first, second)
            except InsideError:
                raise
            except LostError:
                self._replace(file)
            except StoreBusyError:
                tries += 1
                if tries <= _SPINS or file.words[H_RETIRED]:
                    if tries > 2 * _SPINS:
                        raise
                    continue
                now = time.monotonic()
                deadline = deadline or now + LONGEST_WAIT
                if now >= deadline:
                    self._give_up(file, now)
                    deadline = 0.0
                time.sleep(_PAUSES.uniform(0, _LONGEST_PAUSE))
            else:
                self._standing = None
                return result

    def _usable(self, pid: int) -> StoreFile:
        file = self._file
        if file is None or file.pid != pid or file.words[H_RETIRED]:
            file = self._open()
        return file

    def _open(self) -> StoreFile:
        """Open the current file. Two threads may do so at once, which harms nobody."""
        now = time.monotonic()
        if self._failure is not None and now < self._failure[0]:
            raise StoreError(self._failure[1])
        try:
            file = lifecycle.open_store_file(self._spec, create=self.create)
        except StoreBusyError:
            raise
        except StoreError as error:
            # Making a file is dear, also in vain: not with every request.
            self._failure = (now + _OPENING_INTERVAL, str(error))
            raise
        self._failure = None
        # A size is a wish at the start, not a demand on whatever file comes later.
        self._spec = self._spec._replace(clients=None, rows=None)
        self._file = file
        log.info("store %r: opened %s", self, file.path)
        if file.words[H_SWITCHED] & layout.SWITCHED:
            log.warning("store %r: the switch is not on for all: %s", self, _positions(file))
        _close_at_exit(self)
        self._reap(file, with_own=_is_first_opening(file))
        if self._facts is not None and self._facts_pid == file.pid:
            with suppress(StoreError):
                self.register(self._facts)
        return file

    def _looked_after(self) -> StoreFile:
        """The current file, for who only looks: what dead processes left there is given back first."""
        file = self._usable(os.getpid())
        if not lifecycle.is_current(file):
            # Removed, and made anew: what is in the old one is nobody's any more.
            self._file = None
            file = self._usable(os.getpid())
        dead = _rows_of_dead(file)
        if dead:
            with suppress(StoreBusyError):
                self._call(file.pid, StoreFile.drop_rows, dead, 0)
        return file

    def _give_up(self, file: StoreFile, now: float) -> None:
        """The lock was not to be had in time: condemn a file whose holder stands, or raise."""
        number = file.words[H_NUMBER]
        standing = self._standing
        if standing is None or standing[0] != number:
            self._standing = standing = (number, now)
        if now - standing[1] < STANDING_STILL:
            raise StoreBusyError(
                f"store {file.path}: its lock was not to be had in {LONGEST_WAIT * 1000:g} ms"
            )
        self._standing = None
        self._replace(file)

    def _replace(self, file: StoreFile) -> None:
        """Go on in a new file, held open until it is in use: whoever sweeps removes private others."""
        successor = lifecycle.condemn(file)
        self._file = None
        self._open()
        # Who only looks on does not hold it open, and those who serve may come to it later.
        self._successor = None if self.create else successor

    def _check_name(self, file: StoreFile) -> None:
        """Once a second: an operator, or a cleaner of /dev/shm, may have removed the file."""
        self._name_check_at = file.now + _NAME_CHECK_INTERVAL
        if not lifecycle.is_current(file) and self._file is file:
            self._file = None
        elif not self._is_shown and self._facts is not None and self._facts_pid == file.pid:
            # The lock was not to be had when this process began.
            with suppress(StoreError):
                self.register(self._facts)

    def _reap(self, file: StoreFile, *, with_own: bool = False) -> None:
        """Give back what dead processes held, and what was held too long.

        The processes are looked at outside the lock. Who only looks on does not judge how long: that
        is up to those who serve, and their clock.   with_own: and what this one held before it executed
        itself anew.
        """
        now = file.clock()
        file.reap_at = now + REAP_INTERVAL
        now = now if self.create else 0
        with suppress(StoreBusyError):
            self._call(file.pid, StoreFile.drop_rows, _rows_of_dead(file, with_own=with_own), now)


_opened: dict[tuple[int, Path], object] = {}


def _is_first_opening(file: StoreFile) -> bool:
    """Whether no other store of this process has opened that file before."""
    mark = object()
    return _opened.setdefault((file.pid, file.path), mark) is mark


def _rows_of_dead(file: StoreFile, *, with_own: bool = False) -> list[tuple[int, int]]:
    """What nobody will release any more. Looks at processes, so never under the lock."""
    return [
        row
        for owner, rows in file.owners().items()
        if (with_own if owner == file.owner else is_dead(owner, file.owner.namespace))
        for row in rows
    ]


def _in_flight(file: StoreFile) -> Records[InFlight]:
    """Read without the lock, so that looking on holds nobody up: a row that changed meanwhile goes."""
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
            client=_text(client),
            method=_text(method),
            host=_text(host),
            path=_text(path),
            slots=len(file.held_slots(row)),
            thread=words[row + layout.R_THREAD],
            process_start=words[row + layout.R_START],
            row=row - file.first_row,
            namespace=words[row + layout.R_NAMESPACE],
            path_is_canonical=bool(words[row + layout.R_RESOURCE] & 1),
        )
        if generation and words[row] == generation:
            found.append(shown)
    return found


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode("latin-1")


def _slots_held(file: StoreFile) -> dict[str, int]:
    words = file.words
    names = file.names("slots")
    held: Counter[str] = Counter()
    for row in file.live_rows():
        generation = words[row]
        records = [words[slot + layout.S_RECORD] for slot in file.held_slots(row)]
        if generation and words[row] == generation:
            held.update(names.get(record, "others") for record in records)
    return dict(held)


def _counters(file: StoreFile) -> dict[str, GuardCounters]:
    return {
        name: GuardCounters(*file.words[word + G_ADMITTED : word + G_ADMITTED + 4].tolist())
        for word, name in file.names("guards").items()
    }


def _switch(file: StoreFile, position: int | None, guard: str | None, _number: int) -> int:
    word = H_SWITCH if guard is None else file.record("guards", guard) + G_SWITCH
    if position is not None:
        file.words[word] = position
        switched = [file.words[record + G_SWITCH] for record in file.names("guards")]
        blamed = file.words[H_SWITCHED] & layout.HAS_PENALTIES
        file.words[H_SWITCHED] = any((file.words[H_SWITCH], *switched)) | blamed
    return file.words[word]


def _positions(file: StoreFile) -> dict[str, str]:
    """Where the switch stands, for the store ("") and each guard, unless it is on."""
    words = {"": file.words[H_SWITCH]}
    words |= {name: file.words[record + G_SWITCH] for record, name in file.names("guards").items()}
    return {name: SWITCH_WORDS[position] for name, position in words.items() if position}


def _reset(file: StoreFile, _first: None, _second: None, _number: int) -> None:
    file.cells.clear()
    for record in file.names("guards"):
        for word in range(record + G_ADMITTED, record + G_ADMITTED + 4):
            file.words[word] = 0
    for record in file.names("slots"):
        file.words[record + layout.L_MEAN] = 0


_open_stores: "weakref.WeakSet[SharedStore]" = weakref.WeakSet()


def _close_at_exit(store: SharedStore) -> None:
    if not _open_stores:
        atexit.register(_close_all)
    _open_stores.add(store)


def _close_all() -> None:
    for store in list(_open_stores):
        with suppress(Exception):
            store.close()

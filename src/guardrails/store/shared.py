"""The shared store: one file that every worker of a host finds by its name.

Some servers fork their workers and some do not, so nothing here is inherited through a fork. The file
is found by its name. Each process opens it at its first request, under the uid of that moment, and a
forked child opens it anew.

layout.py has the bytes; engine/file.py the lock and the repair; engine/decisions.py and
engine/leaving.py what the verbs do; lifecycle.py how a file is made, replaced and removed;
scoreboard.py the table of workers; inspection.py what operators read and set.

Moving over: a process stops using a file when the file has been retired, or when its name has come to
mean another file. A file is retired when it is made larger, or when a process stopped while it held
the lock. The next call opens the file that has the name now. Requests in flight keep their rows, since
rows are copied.
"""

import atexit
import logging
import os
import random
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from guardrails.errors import InsideError, StoreBusyError, StoreError
from guardrails.store import dead_workers, inspection, layout, lifecycle, process_files, scoreboard
from guardrails.store.contract import (
    REAP_INTERVAL,
    SWITCH_WORDS,
    Debit,
    EnterResult,
    Slot,
    StoreRequest,
    check_known_guard,
    check_switch_word,
    monotonic_microseconds,
    sleep_seconds,
    warn_of_switched,
)
from guardrails.store.engine import decisions, leaving
from guardrails.store.engine.file import LostError, StoreFile
from guardrails.store.layout import H_NUMBER, H_RETIRED, H_SWITCH_NEWS, H_SWITCHED
from guardrails.store.records import (
    Death,
    GuardCounters,
    InFlight,
    Penalty,
    Records,
    Worker,
    WorkerFacts,
)

log = logging.getLogger("guardrails")

LOCK_TIMEOUT = 0.1
"""Seconds that a call waits for the lock. What its pauses overshoot is not counted: on a busy machine
the process that holds the lock does not run meanwhile either."""

STUCK_SECONDS = 2.0
"""If one acquisition of the lock lasts longer than this, its file is condemned."""

_SPINS = 30
_MAX_PAUSE = 0.0002
_OVERSHOT = 0.0005
"""Seconds after which a pause counts as overshot."""
_NAME_CHECK_INTERVAL = 1_000_000
_OPEN_RETRY_SECONDS = 1.0
_PAUSES = random.SystemRandom()


class SharedStore:
    """State shared by all processes of one user on one host. `contract.Store` documents its methods.

    Building one opens nothing: the file is opened, or made, by the first call.

    Args:
        name: the name of the store, and the first part of its file's name.
        clients: for how many clients the file has room; None (the default) takes the size of an
            existing file, or else 50,000.
        rows: for how many requests in flight it has room; None likewise, or else 4,096.
        private: True if the file is removed by the last process that closes it (False).
        lock: "mutex" (the default) for a robust pthread mutex, "flock" for flock(2).
        clock: returns monotonic microseconds. If it has a method `sleep(seconds)`, delays call that
            instead of sleeping.
        create: False if the file must exist: calls then raise StoreError where there is none (True).
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
        self._sleep: Callable[[float], object] = getattr(clock, "sleep", sleep_seconds)
        self._file: StoreFile | None = None
        self._name_check_at = 0
        self._stuck: tuple[int, float] | None = None
        self._successor: StoreFile | None = None
        self._failure: tuple[float, str] | None = None
        self._facts: WorkerFacts | None = None
        self._is_registered = False
        self._facts_pid = 0
        self._guards: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"shm:{self.name}"

    def enter(self, open_request: StoreRequest, *, final: bool = True) -> EnterResult | None:
        entered = open_request.entered
        while True:
            file = self._file
            if file is None or file.pid != open_request.pid:
                file = self._open()
            if open_request.key not in file.hashes:
                # Compute the hash here, so that the lock is not held meanwhile.
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
            elif file.now >= self._name_check_at and self._was_removed(file):
                # Nothing would show the request there, so it enters again, in the new file.
                open_request.entered = entered
            else:
                break
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
        return inspection.requests(self._reaped_file())

    def workers(self) -> Records[Worker]:
        process_files.remove_files_of_dead()
        return scoreboard.workers(self._reaped_file())

    def deaths(self, after: int = 0) -> Records[Death]:
        return dead_workers.deaths(self._reaped_file(), after)

    def register(self, facts: WorkerFacts) -> None:
        pid = os.getpid()
        self._is_registered = False
        try:
            file = self._usable(pid)
        finally:
            self._facts, self._facts_pid = facts, pid
        has_room = self._call(pid, scoreboard.register, scoreboard.entry(file, facts), None)
        self._is_registered = True
        if not has_room:
            log.warning(
                "store %r: its table of workers is full, so this worker is not shown: it has room for "
                "%d processes",
                self,
                file.sections["workers"].records,
            )

    def begin_retiring(self) -> bool:
        pid = os.getpid()
        may_retire: bool = self._call(pid, scoreboard.begin_retiring, None, None)
        return may_retire

    def mark_retiring(self, worker: Worker) -> None:
        self._call(os.getpid(), scoreboard.mark_retiring, worker.owner, None)

    def penalize(self, request: InFlight, microseconds: int, ban_for: int) -> Penalty | None:
        self._reaped_file()
        charge = microseconds, ban_for
        penalty: Penalty | None = self._call(os.getpid(), scoreboard.penalize, request, charge)
        return penalty

    def declare(self, guards: Sequence[str]) -> None:
        self._guards.update(dict.fromkeys(guards))
        file = self._file
        if file is not None and file.pid == os.getpid():
            with suppress(StoreError):  # the next file is told again
                self._declare_to(file)

    def slots_held(self) -> Mapping[str, int]:
        return inspection.slots_held(self._usable(os.getpid()))

    def counters(self) -> Mapping[str, GuardCounters]:
        return inspection.counters(self._usable(os.getpid()))

    def alarms(self) -> Mapping[str, int]:
        return inspection.alarms(self._usable(os.getpid()))

    def switch(self, word: str | None = None, guard: str | None = None) -> str:
        position = None if word is None else SWITCH_WORDS.index(check_switch_word(word))
        known = self.counters()
        room = self._usable(os.getpid()).sections["guards"].records - 1
        full = f"; its table is full, which has room for {room} guards" if len(known) >= room else ""
        check_known_guard(guard, known, full)
        found: int = self._call(os.getpid(), inspection.switch, position, guard)
        return SWITCH_WORDS[found]

    def reset(self) -> None:
        self._call(os.getpid(), inspection.reset, None, None)

    def close(self) -> None:
        file, self._file, self._successor = self._file, None, None
        if file is not None and file.owner.pid == os.getpid():
            if self.create:
                lifecycle.release(file)
            else:
                file.close()

    def _call(self, pid: int, work: Callable[..., Any], first: Any, second: Any) -> Any:
        """Call `work(file, first, second, number)` under the lock of the current file.

        The wait for the lock is bounded.

        Args:
            pid: this process.
            work: what is called; `number` is that of the acquisition of the lock.
            first: the second argument of `work`.
            second: the third argument of `work`.
        """
        deadline = latest = 0.0
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
                if not deadline:
                    deadline, latest = now + LOCK_TIMEOUT, now + STUCK_SECONDS
                if now >= min(deadline, latest):
                    self._lock_timed_out(file, now)
                    deadline = 0.0
                time.sleep(_PAUSES.uniform(0, _MAX_PAUSE))
                if deadline:
                    deadline += max(0.0, time.monotonic() - now - _OVERSHOT)
            else:
                self._stuck = None
                return result

    def _usable(self, pid: int) -> StoreFile:
        file = self._file
        if file is None or file.pid != pid or file.words[H_RETIRED]:
            file = self._open()
        return file

    def _open(self) -> StoreFile:
        """Open the current file. Two threads may do so at once: the last one's file is used."""
        now = time.monotonic()
        if self._failure is not None and now < self._failure[0]:
            raise StoreError(self._failure[1])
        try:
            file = lifecycle.open_store_file(self._spec, create=self.create)
        except StoreBusyError:
            raise
        except StoreError as error:
            # Making a file is expensive even if it fails, so it is not tried with every request.
            self._failure = (now + _OPEN_RETRY_SECONDS, str(error))
            raise
        self._failure = None
        # The sizes that were asked for apply to the first file, not to those that replace it.
        self._spec = self._spec._replace(clients=None, rows=None)
        self._file = file
        log.info("store %r: opened %s", self, file.path)
        if file.words[H_SWITCHED] & layout.SWITCHED:
            log.warning(
                'store %r: the switch is not "on" everywhere: %s', self, inspection.positions(file)
            )
        _close_at_exit(self)
        self._reap(file, this_process_too=_is_first_opening(file))
        if self._facts is not None and self._facts_pid == file.pid:
            with suppress(StoreError):
                self.register(self._facts)
        if self._guards:
            with suppress(StoreError):
                self._declare_to(file)
        return file

    def _declare_to(self, file: StoreFile) -> None:
        """Give the guards of this process their records in a file."""
        left_out = self._call(file.pid, inspection.declare, tuple(self._guards), None)
        if left_out:
            log.error(
                "store %r: its table of guards is full, so these cannot be switched, and are counted "
                "together: %s; give some apps a store of their own, or remove the store's file",
                self,
                ", ".join(map(repr, left_out)),
            )

    def _reaped_file(self) -> StoreFile:
        """Return the current file, after freeing the rows of dead processes in it."""
        file = self._usable(os.getpid())
        if not lifecycle.is_current(file):
            # It was removed, or another one has its name: the old content counts no longer.
            self._file = None
            file = self._usable(os.getpid())
        dead = dead_workers.left_by_dead(file)
        if dead.rows or dead.workers:
            self._record_deaths(file, dead, 0)
        return file

    def _lock_timed_out(self, file: StoreFile, now: float) -> None:
        """Replace the file if the holder of its lock is stuck. Otherwise raise StoreBusyError."""
        number = file.words[H_NUMBER]
        stuck = self._stuck
        if stuck is None or stuck[0] != number:
            self._stuck = stuck = (number, now)
        if now - stuck[1] < STUCK_SECONDS:
            raise StoreBusyError(
                f"store {file.path}: its lock could not be taken within {LOCK_TIMEOUT * 1000:g} ms"
            )
        self._stuck = None
        self._replace(file)

    def _replace(self, file: StoreFile) -> None:
        """Go on in a new file.

        The new file is kept open until it is in use: another process would remove a private file
        that no process has open.
        """
        successor = lifecycle.condemn(file)
        self._file = None
        self._open()
        # A store opened with create=False takes no lock on it, and workers may open it later only.
        self._successor = None if self.create else successor

    def _was_removed(self, file: StoreFile) -> bool:
        """Check once a second whether an operator or a cleaner of /dev/shm has removed the file."""
        self._name_check_at = file.now + _NAME_CHECK_INTERVAL
        if not lifecycle.is_current(file) and self._file is file:
            self._file = None
            return True
        if file.words[H_SWITCH_NEWS]:
            with suppress(StoreError):
                self._say_switched(file)
        if not self._is_registered and self._facts is not None and self._facts_pid == file.pid:
            # The lock could not be taken when this process registered.
            with suppress(StoreError):
                self.register(self._facts)
        return False

    def _say_switched(self, file: StoreFile) -> None:
        """Say each change of a switch: of all workers, the first one that comes here does."""
        news = self._call(file.pid, inspection.take_switch_news, None, None)
        for guard, position in news.items():
            warn_of_switched(self, position, guard)

    def _reap(self, file: StoreFile, *, this_process_too: bool = False) -> None:
        """Free the rows of dead processes, and the slots that were held for too long.

        Processes are examined outside the lock. A store opened with create=False does not judge how
        long a slot was held, since its clock may differ from the workers'.

        Args:
            file: the file.
            this_process_too: also free rows of this process, left from before it called exec.
        """
        now = file.clock()
        file.reap_at = now + REAP_INTERVAL
        now = now if self.create else 0
        self._record_deaths(
            file, dead_workers.left_by_dead(file, this_process_too=this_process_too), now
        )

    def _record_deaths(self, file: StoreFile, dead: dead_workers.Dead, now: int) -> None:
        """Record the deaths of workers, free what they have left, and log what their requests were."""
        with suppress(StoreBusyError):
            before, last = self._call(file.pid, dead_workers.record_deaths, dead, now)
            if last > before and self.create:  # a watchdog tells of them in its own log
                dead_workers.report(dead_workers.deaths(file, before))

    def _exit(self) -> None:
        """Note that this process exits in order, and close the store."""
        if self._file is not None and self._facts_pid == self._file.pid == os.getpid():
            with suppress(StoreError):
                self._call(self._facts_pid, dead_workers.mark_exited, None, None)
        self.close()


_opened: dict[tuple[int, Path], object] = {}


def _is_first_opening(file: StoreFile) -> bool:
    """Return whether this process opens that file for the first time."""
    marker = object()
    return _opened.setdefault((file.pid, file.path), marker) is marker


_open_stores: "weakref.WeakSet[SharedStore]" = weakref.WeakSet()


def _close_at_exit(store: SharedStore) -> None:
    if not _open_stores:
        atexit.register(_close_all)
    _open_stores.add(store)


def _close_all() -> None:
    for store in list(_open_stores):
        with suppress(Exception):
            store._exit()  # noqa: SLF001 - a part of the class

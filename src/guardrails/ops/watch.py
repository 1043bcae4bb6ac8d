"""The watchdog as a process: in the foreground or the background, one of each kind.

Which one it is, is the lock that it holds for as long as it lives: a file that it left when it died
holds nobody up. Whom to stop is written in the file, with its start time, so nobody else is met.
"""

from __future__ import annotations

import fcntl
import json
import logging
import logging.handlers
import os
import pwd
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from guardrails.errors import ConfigurationError, GuardrailsError, StoreError
from guardrails.store import place
from guardrails.store.processes import Owner, is_dead, pid_namespace, process_facts, this_process
from guardrails.store.shared import SharedStore
from guardrails.worker.events import Announcer, command_words
from guardrails.worker.watchdog import Watchdog, Watched
from guardrails.worker.watching import Watch

log = logging.getLogger("guardrails.watch")

DONE, FAILED, NOT_RUNNING = 0, 1, 3
STOP_SECONDS = 15.0
START_SECONDS = 15.0
_NOTE_SECONDS = 0.5
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_LOG_BYTES = 4 << 20
_PRIVATE = ".private"


def run(watch: Watch, parent: int | None) -> int:
    """Watch in the foreground until SIGTERM or SIGINT, or until the parent is gone."""
    lock = _Lock(_name(watch, parent))
    if not lock.take():
        _say(f"a watchdog for {lock.name} is running already{lock.of_whom()}")
        return FAILED
    try:
        _log_to(dict(watch.options)["log_file"])
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        on_event = dict(watch.options)["on_event"]
        announce = Announcer(None if on_event is None else command_words(on_event, "on_event"))
        _run_until(stop, watch, parent, announce)
    finally:
        lock.release()
    return DONE


def start(watch: Watch, parent: int | None) -> int:
    """Start it in the background; nothing happens where it runs already."""
    lock = _Lock(_name(watch, parent))
    running = lock.owner()
    if running is not None:
        _say(f"running already{_shown(running)}")
        return DONE
    log_file = dict(watch.options)["log_file"] or str(lock.path.with_suffix(".log"))
    command = [
        sys.executable,
        "-m",
        "guardrails",
        "watch",
        *watch.arguments(),
        f"--log-file={log_file}",
    ]
    with _append(log_file) as output:
        process = subprocess.Popen(  # noqa: S603 - this Python, this package
            [*command, "run"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        running = lock.owner()
        if running is not None:
            what = "started" if running.pid == process.pid else "running already"
            _say(f"{what}{_shown(running)}; it writes to {log_file}")
            process.returncode = 0  # it goes on without us
            return DONE
        if ended:
            break
        time.sleep(0.02)
    _say(f"it did not start: see {log_file}")
    return FAILED


def stop(watch: Watch, parent: int | None) -> int:
    """End the one that runs, and wait for it."""
    lock = _Lock(_name(watch, parent))
    running = lock.owner()
    if running is None:
        _say("not running")
        return DONE
    if not running.pid:
        _say(f"one is running{_shown(running)}, so it cannot be stopped from here")
        return FAILED
    try:
        descriptor = os.pidfd_open(running.pid)
    except ProcessLookupError:
        return DONE
    try:
        # Between the look and the descriptor another process may have come by that number.
        if lock.owner() == running and not is_dead(running, running.namespace):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + STOP_SECONDS
    while lock.owner() is not None or not is_dead(running, running.namespace):
        if time.monotonic() > deadline:
            _say(f"pid {running.pid} does not end within {STOP_SECONDS:g} s")
            return FAILED
        time.sleep(0.02)
    _say(f"stopped, pid {running.pid}")
    return DONE


def restart(watch: Watch, parent: int | None) -> int:
    """Stop it, if it runs, and start it with these options."""
    return stop(watch, parent) or start(watch, parent)


def status(watch: Watch, parent: int | None) -> int:
    """Say whether it runs."""
    running = _Lock(_name(watch, parent)).owner()
    if running is None:
        _say("not running")
        return NOT_RUNNING
    facts = process_facts(running.pid) if running.pid else None
    age = f", for {facts.age_seconds:.0f} s" if facts else ""
    _say(f"running{_shown(running)}{age}")
    return DONE


ACTIONS: dict[str, Callable[[Watch, int | None], int]] = {
    "run": run,
    "start": start,
    "stop": stop,
    "restart": restart,
    "status": status,
}


def _run_until(stop: threading.Event, watch: Watch, parent: int | None, announce: Announcer) -> None:
    stores = _Stores(watch.store_name, parent)
    watchdog = Watchdog(watch.policy, stores, announce, parent=parent, is_watched=_has_its_own)
    monitor = watch.monitor(announce)
    if monitor is not None:
        threading.Thread(target=monitor.run, args=(stop,), name="monitor", daemon=True).start()
    log.info("watchdog: begins: %s", " ".join(watch.arguments()) or "with all defaults")
    while not stop.is_set():
        if parent is not None and os.getppid() != parent:
            log.info("watchdog: ends, since the server that started it has ended")
            break
        try:
            watchdog.look()
            announce.commands.tidy()
        except Exception:
            log.exception("watchdog: a look failed, and the next one is taken all the same")
        _wait(stop, watchdog.pause(), parent)
    stop.set()


def _wait(stop: threading.Event, seconds: float, parent: int | None) -> None:
    """Until the next look, but not for longer than half a second beyond the parent's end."""
    until = time.monotonic() + seconds
    while not stop.is_set() and (left := until - time.monotonic()) > 0:
        stop.wait(min(left, 0.5))
        if parent is not None and os.getppid() != parent:
            return


class _Stores:
    """The stores to look at: the one that was named, the only one, or all with a server's workers.

    All of them are this user's own: what lies in another user's folder says what that user likes.
    """

    def __init__(self, name: str | None, parent: int | None) -> None:
        self._name = name
        self._parent = parent
        self._opened: dict[str, Watched] = {}
        self._ours: set[str] = set()
        self._only: _Lock | None = None
        self._said = ""

    def __call__(self) -> Iterable[Watched]:
        found = sorted(_found_stores())
        for gone in self._opened.keys() - set(found):
            del self._opened[gone]
            self._ours.discard(gone)
        watched = {name: self._open(name) for name in found}
        if self._name is not None:
            named = [e for name, e in watched.items() if name.removesuffix(_PRIVATE) == self._name]
            if not named:
                self._say(_waits(f"no store {self._name}"))
            return named
        if self._parent is not None:
            # Once its, always its: all its workers may be new ones that have not served yet.
            self._ours |= {name for name, each in watched.items() if self._has_our_workers(each)}
            return [each for name, each in watched.items() if name in self._ours]
        return self._the_only_one(watched)

    def _the_only_one(self, watched: dict[str, Watched]) -> Iterable[Watched]:
        if len(watched) > 1:
            self._say(
                "there are several stores, and none is watched: name one with --store: "
                + ", ".join(each.name for each in watched.values())
            )
            return []
        if not watched:
            self._say(_waits("no store"))
            return []
        ((name, only),) = watched.items()
        if self._only is None:
            self._only = _Lock(name.removesuffix(_PRIVATE))
        if not self._only.take():
            self._say(f"{only.name} has a watchdog already{self._only.of_whom()}, and this one waits")
            return []
        return [only]

    def _open(self, name: str) -> Watched:
        known = self._opened.get(name)
        if known is None:
            plain = name.removesuffix(_PRIVATE)
            store = SharedStore(plain, private=name != plain, create=False)
            known = self._opened[name] = Watched(store, f"shm:{plain}")
        return known

    def _has_our_workers(self, watched: Watched) -> bool:
        try:
            return any(each.parent == self._parent for each in watched.store.workers())
        except (StoreError, OSError):
            return False

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            log.warning("watchdog: %s", what)


def _waits(what: str) -> str:
    return (
        f"there is {what} of uid {os.geteuid()} yet, and it waits for one; those of another user are "
        "watched with --user"
    )


def _found_stores() -> set[str]:
    """The names of this user's stores, private ones with their suffix."""
    suffix = f".{place.file_suffix()}"
    found = set()
    for folder in place.folders():
        with suppress(OSError, StoreError):
            if not folder.exists():
                continue
            place.prepare_folder(folder)
            for path in folder.glob(f"*{suffix}*"):
                plain = path.name.removesuffix(_PRIVATE)
                if plain.endswith(suffix):
                    found.add(plain.removesuffix(suffix) + (_PRIVATE if plain != path.name else ""))
    return found


def become(user: str) -> None:
    """Give up root's rights for those of the user whose workers are to be watched, for good.

    Raises ConfigurationError for a user that is not there, or where this process is not root.
    """
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise ConfigurationError(
            f"user: there is no {user!r}: write the name or the number of the workers' user"
        ) from None
    if entry.pw_uid == os.geteuid() == os.getuid():
        return
    try:
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    except PermissionError:
        raise ConfigurationError(
            f"user: only root can become {user!r}: run the command as that user, or as root"
        ) from None


class _Lock:
    """The lock of a watchdog's name. Who has it is the one that runs.

    It is held for as long as the process lives, so what a dead one left blocks nothing.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = place.own_folder() / f"watch-{_UNSAFE.sub('_', name)}.lock"
        self._descriptor = -1

    def take(self) -> bool:
        """Take it, if nobody has it; any number of times."""
        if self._descriptor >= 0:
            return True
        descriptor = os.open(
            self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600
        )
        try:
            place.verify_file(descriptor, self.path)
            deadline = time.monotonic() + 1.0
            while not _flock(descriptor, fcntl.LOCK_EX):
                # Whoever only looks whether one runs has it for an instant.
                if self.owner() is not None or time.monotonic() > deadline:
                    return False
                time.sleep(0.01)
            with suppress(OSError):  # on a full disk it runs without a note of who it is
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(this_process()).encode(), 0)
            self._descriptor, descriptor = descriptor, -1
            return True
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def release(self) -> None:
        """Give it back."""
        if self._descriptor >= 0:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1

    def owner(self) -> Owner | None:
        """Who has it: pid 0 where that is not known, None where nobody has it."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            place.verify_file(descriptor, self.path)
            deadline = time.monotonic() + _NOTE_SECONDS
            while not _flock(descriptor, fcntl.LOCK_SH):
                note = os.pread(descriptor, 4096, 0)
                if note or time.monotonic() > deadline:
                    owner = Owner(*json.loads(note))
                    elsewhere = owner.namespace != pid_namespace()
                    return _UNKNOWN if elsewhere or is_dead(owner, owner.namespace) else owner
                time.sleep(0.01)  # it has the lock, and is about to say who it is
            return None
        except (ValueError, TypeError):
            return _UNKNOWN
        finally:
            os.close(descriptor)

    def of_whom(self) -> str:
        """In words."""
        return _shown(self.owner() or _UNKNOWN)


_UNKNOWN = Owner(0, 0, 0)


def _shown(owner: Owner) -> str:
    return f", pid {owner.pid}" if owner.pid else ", in another container or of an unknown pid"


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _name(watch: Watch, parent: int | None) -> str:
    """One name for each thing that is watched, however it is written."""
    if parent is not None:
        return server_name(parent)
    return watch.store_name or "the only store"


def server_name(parent: int) -> str:
    """The name of a watchdog that belongs to a server, by its first process."""
    return f"server {parent}"


def _has_its_own(parent: int) -> bool:
    """Whether a server's workers have a watchdog of their own."""
    return bool(parent) and _Lock(server_name(parent)).owner() is not None


@contextmanager
def _append(path: str) -> Iterator[int]:
    try:
        descriptor = os.open(
            path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
    except OSError as error:
        raise GuardrailsError(f"log_file: {path!r} cannot be opened: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _Sturdy(logging.handlers.WatchedFileHandler):
    """A log file that may be moved, removed or full: what cannot be written goes to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except Exception:
            with suppress(Exception):
                sys.stderr.write(self.format(record) + "\n")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        with suppress(Exception):
            sys.stderr.write(self.format(record) + "\n")


class _Rotating(logging.handlers.RotatingFileHandler):
    """The log that lies in memory, where nobody rotates it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - as above
        """A full disk stops no watchdog."""


def _log_to(path: str | None) -> None:
    """Write all that the watchdog says; whatever befalls the log, it goes on."""
    handler: logging.Handler = logging.StreamHandler()
    logging.raiseExceptions = False
    if path is not None:
        with _append(path):  # made by us, and for nobody else to read
            in_memory = Path(path).parent == place.own_folder()
            handler = (
                _Rotating(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
                if in_memory
                else _Sturdy(path, encoding="utf-8")
            )
    handler.setFormatter(
        logging.Formatter("%(asctime)s guardrails watch %(process)d %(levelname)s %(message)s")
    )
    logging.getLogger().addHandler(handler)
    log.setLevel(logging.INFO)


def _say(what: str) -> None:
    print(f"guardrails watch: {what}", flush=True)  # noqa: T201 - a command speaks

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
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from guardrails.errors import GuardrailsError, StoreError
from guardrails.store import place
from guardrails.store.processes import Owner, is_dead, process_facts, this_process
from guardrails.store.shared import SharedStore
from guardrails.store.urls import store_from_url
from guardrails.worker.events import Announcer, command_words
from guardrails.worker.watchdog import Watchdog, Watched
from guardrails.worker.watching import Watch

log = logging.getLogger("guardrails.watch")

DONE, FAILED, NOT_RUNNING = 0, 1, 3
STOP_SECONDS = 15.0
START_SECONDS = 15.0
_FOLDER = re.compile(r"guardrails-(\d+)")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_LOG_BYTES = 4 << 20
_PRIVATE = ".private"


def run(watch: Watch, parent: int | None) -> int:
    """Watch in the foreground until SIGTERM or SIGINT, or until the parent is gone."""
    with _Lock(_name(watch, parent)) as lock:
        if not lock.taken:
            _say(f"a watchdog for {lock.name} is running already{lock.of_whom()}")
            return FAILED
        _log_to(dict(watch.options)["log_file"])
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        on_event = dict(watch.options)["on_event"]
        announce = Announcer(None if on_event is None else command_words(on_event, "on_event"))
        _run_until(stop, watch, parent, announce)
    return DONE


def start(watch: Watch, parent: int | None) -> int:
    """Start it in the background; nothing happens where it runs already."""
    name = _name(watch, parent)
    running = _running(name)
    if running is not None:
        _say(f"running already, pid {running.pid}")
        return DONE
    log_file = dict(watch.options)["log_file"] or str(_Lock(name).path.with_suffix(".log"))
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
            cwd="/",
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        running = _running(name)
        if running is not None:
            what = "started" if running.pid == process.pid else "running already"
            _say(f"{what}, pid {running.pid}; it writes to {log_file}")
            process.returncode = 0  # it goes on without us
            return DONE
        if ended:
            break
        time.sleep(0.02)
    _say(f"it did not start: see {log_file}")
    return FAILED


def stop(watch: Watch, parent: int | None) -> int:
    """End the one that runs, and wait for it."""
    name = _name(watch, parent)
    running = _running(name)
    if running is None:
        _say("not running")
        return DONE
    try:
        descriptor = os.pidfd_open(running.pid)
    except ProcessLookupError:
        return DONE
    try:
        # Between the look and the descriptor another process may have come by that number.
        if _running(name) == running and not is_dead(running, running.namespace):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + STOP_SECONDS
    while _running(name) == running:
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
    running = _running(_name(watch, parent))
    if running is None:
        _say("not running")
        return NOT_RUNNING
    facts = process_facts(running.pid)
    age = f", for {facts.age_seconds:.0f} s" if facts else ""
    _say(f"running, pid {running.pid}{age}")
    return DONE


ACTIONS: dict[str, Callable[[Watch, int | None], int]] = {
    "run": run,
    "start": start,
    "stop": stop,
    "restart": restart,
    "status": status,
}


def _run_until(stop: threading.Event, watch: Watch, parent: int | None, announce: Announcer) -> None:
    stores = _Stores(watch.store or os.environ.get("GUARDRAILS_STORE"), parent)
    watchdog = Watchdog(watch.policy, stores, announce)
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
    """The stores to look at: the one that was named, the only one, or all with a server's workers."""

    def __init__(self, url: str | None, parent: int | None) -> None:
        self._url = url
        self._parent = parent
        self._opened: dict[tuple[int, str], Watched] = {}
        self._ours: set[Watched] = set()
        self._said = ""

    def __call__(self) -> Iterable[Watched]:
        found = list(_found_stores())
        if self._url is not None:
            wanted = store_from_url(self._url)
            name = getattr(wanted, "name", None)
            found = [each for each in found if each[1].removesuffix(_PRIVATE) == name]
        watched = [self._open(uid, name) for uid, name in found]
        for gone in self._opened.keys() - set(found):
            self._ours.discard(self._opened.pop(gone))
        if self._parent is not None:
            # Once its, always its: all its workers may be new ones that have not served yet.
            self._ours |= {each for each in watched if self._has_our_workers(each)}
            return [each for each in watched if each in self._ours]
        if len(watched) > 1:
            self._say(
                "there are several stores, and none is watched: name one with --store: "
                + ", ".join(sorted(each.name for each in watched))
            )
            return []
        if not watched:
            self._say("there is no store yet, and it waits for one")
        return watched

    def _open(self, uid: int, name: str) -> Watched:
        known = self._opened.get((uid, name))
        if known is None:
            plain = name.removesuffix(_PRIVATE)
            store = SharedStore(plain, private=name != plain, create=False)
            known = self._opened[uid, name] = Watched(store, f"shm:{plain}", uid)
        return known

    def _has_our_workers(self, watched: Watched) -> bool:
        try:
            return any(each.parent == self._parent for each in watched.workers())
        except (StoreError, OSError):
            return False

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            log.warning("watchdog: %s", what)


def _found_stores() -> Iterator[tuple[int, str]]:
    """The owner and the name of each store that this process may look into; root sees everybody's."""
    suffix = f".{place.file_suffix()}"
    for own in place.folders():
        with suppress(OSError):
            for folder in sorted(own.parent.iterdir()):
                match = _FOLDER.fullmatch(folder.name)
                if match is None or os.geteuid() not in (0, int(match[1])):
                    continue
                for path in sorted(folder.glob(f"*{suffix}*")):
                    plain = path.name.removesuffix(_PRIVATE)
                    if plain.endswith(suffix):
                        private = _PRIVATE if plain != path.name else ""
                        yield int(match[1]), plain.removesuffix(suffix) + private


class _Lock:
    """The lock of a watchdog's name. Who has it is the one that runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = place.own_folder() / f"watch-{_UNSAFE.sub('_', name)}.lock"
        self.taken = False
        self._descriptor = -1

    def __enter__(self) -> Self:
        self._descriptor = os.open(
            self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        place.verify_file(self._descriptor, self.path)
        deadline = time.monotonic() + 1.0
        while not self.taken:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.taken = True
            except BlockingIOError:
                # Whoever only looks whether one runs has it for an instant.
                if self.owner() is not None or time.monotonic() > deadline:
                    return self
                time.sleep(0.01)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(this_process()).encode(), 0)
        return self

    def __exit__(self, *_error: object) -> None:
        if self.taken:
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def owner(self) -> Owner | None:
        """Who wrote itself down, if that is still there."""
        try:
            owner = Owner(*json.loads(os.pread(self._descriptor, 4096, 0)))
            return None if is_dead(owner, owner.namespace) else owner
        except (ValueError, TypeError):
            return None

    def of_whom(self) -> str:
        """In words."""
        owner = self.owner()
        return "" if owner is None else f", pid {owner.pid}"


def _running(name: str) -> Owner | None:
    """Who runs under that name; None where nobody does."""
    lock = _Lock(name)
    try:
        descriptor = os.open(lock.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        lock._descriptor = descriptor  # noqa: SLF001 - to read it
        return lock.owner()
    finally:
        os.close(descriptor)


def _name(watch: Watch, parent: int | None) -> str:
    if parent is not None:
        return f"server {parent}"
    return watch.store or os.environ.get("GUARDRAILS_STORE") or "the only store"


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


def _log_to(path: str | None) -> None:
    """Write all that the watchdog says; whatever befalls the log, it goes on."""
    logging.raiseExceptions = False
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        with _append(path):  # made by us, and for nobody else to read
            handler = logging.handlers.WatchedFileHandler(path, encoding="utf-8")
        if Path(path).parent == place.own_folder():
            # Nobody rotates what lies there, and it lies in memory.
            handler = logging.handlers.RotatingFileHandler(
                path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8"
            )
    handler.setFormatter(
        logging.Formatter("%(asctime)s guardrails watch %(process)d %(levelname)s %(message)s")
    )
    logging.getLogger().addHandler(handler)
    log.setLevel(logging.INFO)


def _say(what: str) -> None:
    print(f"guardrails watch: {what}", flush=True)  # noqa: T201 - a command speaks

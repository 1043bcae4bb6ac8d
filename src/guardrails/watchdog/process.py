"""The watchdog as a process, in the foreground or in the background; one runs for each store or server.

Its lock says whether it runs (lock.py). The file of the lock has the pid and the start time of the
process, so that `stop` signals that process and no later one with its pid.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from guardrails.store.processes import is_dead, pid_namespace, process_facts
from guardrails.watchdog.background import launch, report_ready
from guardrails.watchdog.events import Notifier, command_words
from guardrails.watchdog.lock import (
    Lock,
    Running,
    has_own_watchdog,
    owner_text,
    remove_abandoned,
    running_watchdogs,
    server_name,
)
from guardrails.watchdog.log_file import appended, log_to
from guardrails.watchdog.loop import WatchdogLoop
from guardrails.watchdog.options import Watchdog
from guardrails.watchdog.pidfd import open_process
from guardrails.watchdog.start_checks import check_start
from guardrails.watchdog.stores import Stores
from guardrails.watchdog.systemd import ServiceManager
from guardrails.watchdog.watched import Watched, watched_now

log = logging.getLogger("guardrails.watch")

DONE, FAILED, NOT_RUNNING, NOTHING_WATCHED = 0, 1, 3, 4
STOP_SECONDS = 15.0
START_SECONDS = 30.0
_SLICE_SECONDS = 0.2
_POLL_SECONDS = 0.02
_PUBLISH_SECONDS = 1.0
"""Least time between two looks at what is watched, while steps are taken ten times a second."""


def run(watch: Watchdog, parent: int | None, ready: int | None = None) -> int:
    """Watch in the foreground until SIGTERM or SIGINT, or until the parent has ended.

    Args:
        watch: the options.
        parent: pid of the server whose workers are watched; None for a store.
        ready: descriptor of a pipe to the process that has started this one and waits for its word.

    Returns:
        The exit status. A server ends with a child of status 3 or 4, so neither is returned.
    """
    warnings = check_start(watch, parent)
    lock = Lock(lock_name(watch, parent))
    if not lock.take(watch.arguments()):
        _fail(f"a watchdog for {lock.name} is running already{lock.owner_text()}")
        return FAILED
    try:
        remove_abandoned()
        log_to(dict(watch.options)["log_file"])
        received: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            # The handler takes no lock: the interrupted code may hold that lock.
            signal.signal(number, lambda number, _frame: received.append(number))
        # Not SIG_IGN, which the commands that this process runs would inherit.
        signal.signal(signal.SIGHUP, lambda _number, _frame: None)
        log.info("watchdog: begins: %s", " ".join(watch.arguments()) or "with all defaults")
        for warning in warnings:
            log.warning("watchdog: %s", warning)
        _Run(watch, parent, lock, received).until_ended(ready)
    finally:
        lock.release()
    return DONE


def start(watch: Watchdog, parent: int | None) -> int:
    """Start the watchdog in the background, unless it runs already. See `run`."""
    lock = Lock(lock_name(watch, parent))
    running = lock.owner()
    if running is not None:
        _say(f"running already{owner_text(running)}{_other_options(lock, watch)}")
        return DONE
    warnings = check_start(watch, parent)
    arguments, log_file = watch.arguments(), dict(watch.options)["log_file"]
    if log_file is None:
        log_file = str(lock.path.with_suffix(".log"))
        arguments.append(f"--log-file={log_file}")
    with appended(log_file) as output:
        launched = launch(arguments, START_SECONDS, output)
    if launched.is_ready:
        launched.process.returncode = 0  # the process outlives this one
        for warning in warnings:
            _fail(warning)
        note = lock.note()
        what = f"; it {note.watched.text}" if note is not None and note.watched is not None else ""
        _say(f"started, pid {launched.process.pid}; it writes to {log_file}{what}")
        return DONE
    running = lock.owner()
    if running is not None and running.pid != launched.process.pid:
        _say(f"running already{owner_text(running)}")
        return DONE
    _fail(launched.problem or f"it did not start within {START_SECONDS:g} s: see {log_file}")
    return FAILED


def stop(watch: Watchdog, parent: int | None) -> int:
    """End the watchdog that runs, and wait for its end. See `run`."""
    lock = Lock(lock_name(watch, parent))
    running = lock.owner()
    if running is None:
        _say("not running")
        return DONE
    if not running.pid:
        _fail(f"one is running{owner_text(running)}, so it cannot be stopped from here")
        return FAILED
    with suppress(ProcessLookupError), open_process(running.pid) as send:
        # Another process may have got that pid between the first look and this one.
        if lock.owner() == running and not is_dead(running, running.namespace):
            send(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while lock.owner() is not None or not is_dead(running, running.namespace):
        if time.monotonic() > deadline:
            _fail(f"pid {running.pid} does not end within {STOP_SECONDS:g} s")
            return FAILED
        time.sleep(_POLL_SECONDS)
    _say(f"stopped, pid {running.pid}")
    return DONE


def restart(watch: Watchdog, parent: int | None) -> int:
    """Stop the watchdog, if it runs, and start it with these options. See `run`."""
    check_start(watch, parent)  # before the old one ends
    return stop(watch, parent) or start(watch, parent)


def status(watch: Watchdog, parent: int | None) -> int:
    """Say what each watchdog of this user watches, or the one of a store. See `run`."""
    name = lock_name(watch, parent)
    is_for_all = watch.store_name is None and parent is None
    found = [each for each in running_watchdogs() if is_for_all or _is_for(each, name)]
    if not found:
        _say("not running")
        return NOT_RUNNING
    for each in found:
        owner, _arguments, watched = each.note
        facts = process_facts(owner.pid) if owner.pid else None
        age = f", for {facts.age_seconds:.0f} s" if facts else ""
        what = _shown(watched) if watched else "says nothing about what it watches"
        kind, _, numbers = each.name.partition("_")
        server = f", beside server {numbers.partition('_')[2]}" if kind == "server" else ""
        _say(f"running{owner_text(owner)}{age}{server}: {what}")
    is_nothing = all(each.note.watched is None or each.note.watched.is_nothing for each in found)
    return NOTHING_WATCHED if is_nothing else DONE


def _is_for(running: Running, name: str) -> bool:
    """Whether a watchdog has the lock of that name, or looks at the store of that name."""
    watched = running.note.watched
    is_at_store = watched is not None and f"shm:{name}" in watched.stores
    return is_at_store or Lock(running.name).path == Lock(name).path


def _shown(watched: Watched) -> str:
    return f"{watched.text} (seen {max(0.0, time.monotonic() - watched.looked_at):.0f} s ago)"


def _other_options(lock: Lock, watch: Watchdog) -> str:
    """What to say where the watchdog that runs has other options than those given now."""
    note = lock.note()
    theirs = [] if note is None else list(filter(_is_tunable, note.arguments))
    if theirs == list(filter(_is_tunable, watch.arguments())):
        return ""
    return f", with other options ({' '.join(theirs) or 'all defaults'}): restart changes them"


def _is_tunable(argument: str) -> bool:
    """Whether an argument is none of those that have several spellings for one meaning."""
    return not argument.startswith(("--log-file=", "--store=", "--user="))


ACTIONS: dict[str, Callable[[Watchdog, int | None], int]] = {
    "start": start,
    "stop": stop,
    "restart": restart,
    "status": status,
}


class _Run:
    """One run of a watchdog, from its first look to its last.

    Args:
        watch: the options.
        parent: pid of the server whose workers are watched; None for a store.
        lock: its lock.
        received: the signals that end it.
    """

    def __init__(self, watch: Watchdog, parent: int | None, lock: Lock, received: list[int]) -> None:
        on_event = dict(watch.options)["on_event"]
        words = None if on_event is None else command_words(on_event, "on_event")
        self._parent, self._lock, self._received = parent, lock, received
        self._notify = Notifier(words)
        self._stores = Stores(watch.store_name, parent)
        self._loop = WatchdogLoop(
            watch.policy, self._stores, self._notify, parent=parent, is_watched=has_own_watchdog
        )
        self._monitor = watch.monitor(self._notify)
        self._only_monitors = watch.policy.ends_nothing
        self._service = ServiceManager()
        self._publish_at = 0.0

    def until_ended(self, ready: int | None) -> None:
        """Look again and again until a signal, or the end of the parent.

        Args:
            ready: where to report that the first look is done.
        """
        stop, is_ready = threading.Event(), False
        if self._monitor is not None:
            threading.Thread(
                target=self._monitor.run, args=(stop,), name="monitor", daemon=True
            ).start()
        try:
            while not self._received:
                if self._has_lost_server():
                    # Workers that hang keep the port of a server that was killed.
                    stop.set()
                self._look()
                if stop.is_set() and not self._loop.has_workers:
                    log.info("watchdog: ends, since the server that started it has ended")
                    break
                if not is_ready:
                    is_ready = True
                    report_ready(ready)
                    self._service.ready()
                self._wait(self._loop.pause(), may_lose_server=not stop.is_set())
            self._loop.close()
        finally:
            self._service.stopping()
            stop.set()
            self._stores.close()

    def _look(self) -> None:
        try:
            self._loop.look()
            self._notify.commands.tidy()
        except Exception:
            log.exception("watchdog: a look failed; the next one follows all the same")
        now = time.monotonic()
        if now >= self._publish_at:
            self._publish_at = now + _PUBLISH_SECONDS
            with suppress(Exception):  # the look has logged what is wrong with a store
                self._publish(now)

    def _publish(self, now: float) -> None:
        if self._only_monitors:
            watched = Watched("only monitors", False, (), now)
        else:
            watched = watched_now(
                self._loop.stores, self._parent, has_own_watchdog, self._stores.reason
            )
        self._lock.publish(watched)
        self._service.status(watched.text)

    def _has_lost_server(self) -> bool:
        """Whether the server that started this process has ended; False without such a server."""
        return self._parent is not None and os.getppid() != self._parent

    def _wait(self, seconds: float, *, may_lose_server: bool) -> None:
        """Wait for the next look, but hardly longer than until a signal or the end of the parent."""
        until = time.monotonic() + seconds
        slice_seconds = min(_SLICE_SECONDS, self._service.alive_every)
        self._service.alive()
        while not self._received and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, slice_seconds))
            self._service.alive()
            if may_lose_server and self._has_lost_server():
                return


def lock_name(watch: Watchdog, parent: int | None) -> str:
    """The name of the lock: one for each thing that is watched, however its URL is written."""
    if parent is not None and watch.policy.ends_nothing:
        return f"monitor {pid_namespace()} {parent}"  # another watchdog may watch the workers
    if parent is not None:
        return server_name(pid_namespace(), parent)
    return watch.store_name or "the only store"


def _say(what: str) -> None:
    print(f"guardrails watch: {what}", flush=True)  # noqa: T201 - output of a command


def _fail(what: str) -> None:
    print(f"guardrails watch: {what}", file=sys.stderr, flush=True)  # noqa: T201 - as above

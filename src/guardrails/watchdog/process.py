"""The watchdog as a process, in the foreground or in the background; one runs for each store or server.

Its lock says whether it runs (lock.py). The file of the lock has the pid and the start time of the
process, so that `stop` signals that process and no later one with its pid.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import pwd
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from guardrails.errors import ConfigurationError, GuardrailsError
from guardrails.store import directory
from guardrails.store.processes import is_dead, pid_namespace, process_facts
from guardrails.watchdog.command_line import watch_command
from guardrails.watchdog.events import Notifier, command_words
from guardrails.watchdog.lock import (
    Lock,
    has_own_watchdog,
    owner_text,
    remove_abandoned,
    server_name,
    servers_with_a_watchdog,
)
from guardrails.watchdog.loop import WatchdogLoop
from guardrails.watchdog.options import Watchdog
from guardrails.watchdog.pidfd import open_process
from guardrails.watchdog.standard_error import StandardErrorHandler, write_line
from guardrails.watchdog.stores import Stores

log = logging.getLogger("guardrails.watch")

DONE, FAILED, NOT_RUNNING = 0, 1, 3
STOP_SECONDS = 15.0
START_SECONDS = 15.0
_SLICE_SECONDS = 0.2
_POLL_SECONDS = 0.02
_LOG_BYTES = 4 << 20


def run(watch: Watchdog, parent: int | None) -> int:
    """Watch in the foreground until SIGTERM or SIGINT, or until the parent has ended.

    Args:
        watch: the options.
        parent: pid of the server whose workers are watched; None for a store.

    Returns:
        The exit status.
    """
    lock = Lock(_name(watch, parent))
    if not lock.take():
        _say(f"a watchdog for {lock.name} is running already{lock.owner_text()}")
        return FAILED
    try:
        remove_abandoned()
        _log_to(dict(watch.options)["log_file"])
        received: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            # The handler takes no lock: the interrupted code may hold that lock.
            signal.signal(number, lambda number, _frame: received.append(number))
        # Not SIG_IGN, which the commands that this process runs would inherit.
        signal.signal(signal.SIGHUP, lambda _number, _frame: None)
        on_event = dict(watch.options)["on_event"]
        notify = Notifier(None if on_event is None else command_words(on_event, "on_event"))
        _run_until(received, watch, parent, notify)
    finally:
        lock.release()
    return DONE


def start(watch: Watchdog, parent: int | None) -> int:
    """Start the watchdog in the background, unless it runs already. See `run`."""
    lock = Lock(_name(watch, parent))
    running = lock.owner()
    if running is not None:
        _say(f"running already{owner_text(running)}")
        return DONE
    log_file = dict(watch.options)["log_file"] or str(lock.path.with_suffix(".log"))
    command = watch_command([*watch.arguments(), f"--log-file={log_file}", "run"])
    with _append(log_file) as output:
        process = subprocess.Popen(  # noqa: S603 - this Python, this package
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while True:
        over = process.poll() is not None or time.monotonic() >= deadline
        running = lock.owner()
        # A busy machine may take a while between the lock and the pid that its holder writes there.
        if running is not None and (running.pid or over):
            what = "started" if running.pid == process.pid else "running already"
            _say(f"{what}{owner_text(running)}; it writes to {log_file}{_beside()}")
            process.returncode = 0  # the process outlives this one
            return DONE
        if over:
            break
        time.sleep(_POLL_SECONDS)
    _say(f"it did not start: see {log_file}")
    return FAILED


def stop(watch: Watchdog, parent: int | None) -> int:
    """End the watchdog that runs, and wait for its end. See `run`."""
    lock = Lock(_name(watch, parent))
    running = lock.owner()
    if running is None:
        _say("not running")
        return DONE
    if not running.pid:
        _say(f"one is running{owner_text(running)}, so it cannot be stopped from here")
        return FAILED
    with suppress(ProcessLookupError), open_process(running.pid) as send:
        # Another process may have got that pid between the first look and this one.
        if lock.owner() == running and not is_dead(running, running.namespace):
            send(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while lock.owner() is not None or not is_dead(running, running.namespace):
        if time.monotonic() > deadline:
            _say(f"pid {running.pid} does not end within {STOP_SECONDS:g} s")
            return FAILED
        time.sleep(_POLL_SECONDS)
    _say(f"stopped, pid {running.pid}")
    return DONE


def restart(watch: Watchdog, parent: int | None) -> int:
    """Stop the watchdog, if it runs, and start it with these options. See `run`."""
    return stop(watch, parent) or start(watch, parent)


def status(watch: Watchdog, parent: int | None) -> int:
    """Say whether the watchdog, or one of a server, runs. See `run`."""
    running = Lock(_name(watch, parent)).owner()
    if running is None:
        beside = _beside() if watch.store_name is None else ""
        _say("not running" + beside)
        return DONE if beside else NOT_RUNNING
    facts = process_facts(running.pid) if running.pid else None
    age = f", for {facts.age_seconds:.0f} s" if facts else ""
    _say(f"running{owner_text(running)}{age}")
    return DONE


def _beside() -> str:
    return "".join(
        f"; the workers of server {parent} have a watchdog of their own{owner_text(owner)}"
        for parent, owner in servers_with_a_watchdog()
    )


ACTIONS: dict[str, Callable[[Watchdog, int | None], int]] = {
    "run": run,
    "start": start,
    "stop": stop,
    "restart": restart,
    "status": status,
}


def _run_until(received: list[int], watch: Watchdog, parent: int | None, notify: Notifier) -> None:
    stop = threading.Event()
    stores = Stores(watch.store_name, parent)
    loop = WatchdogLoop(watch.policy, stores, notify, parent=parent, is_watched=has_own_watchdog)
    monitor = watch.monitor(notify)
    if monitor is not None:
        threading.Thread(target=monitor.run, args=(stop,), name="monitor", daemon=True).start()
    log.info("watchdog: begins: %s", " ".join(watch.arguments()) or "with all defaults")
    try:
        while not received:
            if _has_ended(parent):
                # Workers that hang keep the port of a server that was killed.
                stop.set()
            try:
                loop.look()
                notify.commands.tidy()
            except Exception:
                log.exception("watchdog: a look failed; the next one follows all the same")
            if stop.is_set() and not loop.has_workers:
                log.info("watchdog: ends, since the server that started it has ended")
                break
            _wait(received, loop.pause(), None if stop.is_set() else parent)
        loop.close()
    finally:
        stop.set()
        stores.close()


def _wait(received: list[int], seconds: float, parent: int | None) -> None:
    """Wait for the next look, but hardly longer than until a signal or the end of the parent."""
    until = time.monotonic() + seconds
    while not received and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _SLICE_SECONDS))
        if _has_ended(parent):
            return


def _has_ended(parent: int | None) -> bool:
    """Whether the server that started this process has ended; False without such a server."""
    return parent is not None and os.getppid() != parent


def become(user: str) -> None:
    """Give up root's rights for those of another user, for good.

    Args:
        user: the user of the workers, by name or number.

    Raises:
        ConfigurationError: there is no such user, or this process is not root.
    """
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError, ValueError):
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


def _name(watch: Watchdog, parent: int | None) -> str:
    """The name of the lock: one for each thing that is watched, however its URL is written."""
    if parent is not None and watch.policy.ends_nothing:
        return f"monitor {pid_namespace()} {parent}"  # another watchdog may watch the workers
    if parent is not None:
        return server_name(pid_namespace(), parent)
    return watch.store_name or "the only store"


@contextmanager
def _append(path: str) -> Iterator[int]:
    try:
        descriptor = _open_log(path)
    except OSError as error:
        raise GuardrailsError(f"log_file: {path!r} cannot be opened: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_log(path: str) -> int:
    # O_NONBLOCK: opening a FIFO without a reader must not wait for one.
    how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(path, how, 0o600)


class _FileHandler(logging.handlers.WatchedFileHandler):
    """Writes to a log file, and to standard error where the file was moved, removed or is full."""

    def _open(self) -> TextIOWrapper:
        # As at the start: no file of another user, and no symbolic link.
        return open(
            self.baseFilename, "a", encoding=self.encoding, opener=lambda path, _flags: _open_log(path)
        )

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        with suppress(Exception):
            write_line(self.format(record))


class _MemoryFileHandler(logging.handlers.RotatingFileHandler):
    """Writes to a log file in shared memory, which no logrotate looks after."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - as above
        """A full disk does not stop the watchdog."""


def _log_to(path: str | None) -> None:
    """Send the log to a file, or to standard error; a log that fails never stops the watchdog."""
    handler: logging.Handler = StandardErrorHandler()
    logging.raiseExceptions = False
    if path is not None:
        with _append(path):  # creates it with mode 0600
            in_memory = Path(path).parent == directory.own_folder()
            handler = (
                _MemoryFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
                if in_memory
                else _FileHandler(path, encoding="utf-8")
            )
    handler.setFormatter(
        logging.Formatter("%(asctime)s guardrails watch %(process)d %(levelname)s %(message)s")
    )
    logging.getLogger().addHandler(handler)
    log.setLevel(logging.INFO)


def _say(what: str) -> None:
    print(f"guardrails watch: {what}", flush=True)  # noqa: T201 - output of a command

"""Detects the server that runs this process: its name, and how many requests it serves at once.

The environ does not tell: `wsgi.multithread` and `wsgi.multiprocess` are wrong under some servers.
So guardrails has a detector for each server. It runs once per process, during a call of the server.
What cannot be detected is None, and the features that need it stay off.
"""

from __future__ import annotations

import os
import signal
import socketserver
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

_MIXED_IN = (
    socketserver.ThreadingMixIn,
    getattr(socketserver, "ForkingMixIn", socketserver.ThreadingMixIn),
)


@dataclass(frozen=True)
class Server:
    """A server, as far as it is known.

    Attributes:
        name: such as "gunicorn (sync)".
        processes: the number of its workers; None if unknown.
        threads: the number of requests that one worker serves at once; None if unknown.
        respawns: whether a worker that ends is replaced by a new one.
        retire_signal: the signal at which a worker finishes its requests and ends; 0 without one.
        coroutines: whether an event loop serves the requests.
    """

    name: str
    processes: int | None = None
    threads: int | None = None
    respawns: bool = False
    retire_signal: int = 0
    coroutines: bool = False

    @property
    def greenlets(self) -> bool:
        """Whether greenlets or coroutines serve the requests: many of them share one thread."""
        return self.coroutines or threads_are_greenlets()

    @property
    def accepts_until_idle(self) -> bool:
        """Whether a worker that retires goes on accepting connections until it has no request."""
        return accepts_until_idle(self.name)

    @property
    def at_once(self) -> int | None:
        """The number of requests that all workers serve at once; None if unknown."""
        if self.processes is None or self.threads is None:
            return None
        return self.processes * self.threads

    def __str__(self) -> str:
        return f"{self.name} with {_several(self.processes, 'process', 'processes')} of " + _several(
            self.threads, "thread", "threads"
        )


def accepts_until_idle(name: str) -> bool:
    """Return whether a worker of that server, when it retires, accepts connections until it is idle."""
    return name == "mod_wsgi"


def threads_are_greenlets() -> bool:
    """Return whether gevent has replaced Python's threads with greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def running_server(environ: dict[str, Any]) -> Server:
    """Return the server that calls, as far as it is known. Never raises.

    Args:
        environ: the environ of a request; empty while the worker starts, when less can be detected.
    """
    software = str(environ.get("SERVER_SOFTWARE", ""))
    name = software.partition("/")[0].partition(" ")[0].lower() or "unknown"
    for marker, detect in _DETECTORS.items():
        if name == marker or (name == "unknown" and marker in sys.modules):
            try:
                found = detect()
            except Exception:  # noqa: S112 - another version of the server; unknown is good enough
                continue
            if found is not None:
                return found
    return Server(name, coroutines=name == "gevent")


def _gunicorn() -> Server | None:
    for worker in _callers("gunicorn.workers"):
        found = gunicorn_server(worker)
        if found is not None:
            return found
    return None


def gunicorn_server(worker: Any) -> Server | None:
    """Return the server of a gunicorn worker; None for any other object.

    Args:
        worker: an argument of a hook of gunicorn.
    """
    settings = getattr(worker, "cfg", None)
    # Not by the name in the settings: a class has several names there, and may be the user's own.
    classes = {known.__name__ for known in type(worker).__mro__}
    if settings is None or "Worker" not in classes:
        return None
    threads = None
    if "SyncWorker" in classes:
        threads = 1
    elif "ThreadWorker" in classes:
        threads = settings.threads
    elif "AsyncWorker" in classes:
        threads = settings.worker_connections
    kind = str(settings.worker_class_str).rpartition(".")[2]
    coroutines = "AsyncWorker" in classes
    return Server(f"gunicorn ({kind})", settings.workers, threads, True, signal.SIGTERM, coroutines)


def server_of_hook(*arguments: Any) -> Server:
    """Return the server that calls a hook with these arguments.

    Args:
        arguments: of the hook. One of them is the worker in a hook of gunicorn.
    """
    servers = map(gunicorn_server, arguments)
    return next((each for each in servers if each is not None), None) or running_server({})


def _uwsgi() -> Server | None:
    uwsgi = sys.modules["uwsgi"]  # only the server itself can make this module
    options = uwsgi.opt
    threads = options.get("threads") or options.get("gevent") or options.get("async") or b"1"
    respawns = uwsgi.masterpid() > 0
    # In uWSGI's own asynchronous mode a worker that retires drops its requests.
    graceful = respawns and not ("async" in options and "gevent" not in options)
    retire_signal = signal.SIGHUP if graceful else 0
    coroutines = "gevent" in options or "async" in options
    return Server("uWSGI", uwsgi.numproc, int(threads), respawns, retire_signal, coroutines)


def is_master() -> bool:
    """Return whether this process forks the workers, and serves nothing itself."""
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None and hasattr(uwsgi, "worker_id"):
        return bool(uwsgi.masterpid() > 0 and uwsgi.worker_id() == 0)
    if any(True for _ in _callers("gunicorn.workers")):
        return False
    # With --preload the master loads the app before it knows its own pid.
    masters = [getattr(caller, "pid", None) for caller in _callers("gunicorn.arbiter")]
    return any(pid in (None, os.getpid()) for pid in masters)


def worker_of_this_fork() -> tuple[Any, Any] | None:
    """Return gunicorn's master and the worker that this process becomes; None if it becomes no worker.

    Call this in a hook of `os.register_at_fork`. Not every fork of the master makes a worker: an
    upgrade of gunicorn forks too, and so may a hook in its settings.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as in _callers
    # Skip functions that wrap os.fork, as gevent has.
    while frame is not None and (_module(frame).startswith("guardrails.") or _wraps_fork(frame)):
        frame = frame.f_back
    if frame is None or _module(frame) != "gunicorn.arbiter" or frame.f_code.co_name != "spawn_worker":
        return None
    return frame.f_locals["self"], frame.f_locals["worker"]


def _mod_wsgi() -> Server | None:
    mod_wsgi = sys.modules["mod_wsgi"]  # only the server itself can make this module
    # In embedded mode the process is Apache's own, and serves more than this app.
    daemon = bool(mod_wsgi.process_group)
    return Server(
        "mod_wsgi",
        mod_wsgi.maximum_processes,
        mod_wsgi.threads_per_process,
        daemon,
        signal.SIGUSR1 if daemon else 0,
    )


def _granian() -> Server | None:
    """Detect granian, which replaces workers only with an option on the command line of its parent."""
    command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    return Server("granian", respawns=b"--respawn-failed-workers" in command)


def _waitress() -> Server | None:
    for task in _callers("waitress.task"):
        channel = getattr(task, "channel", None)
        if channel is not None:
            return Server("waitress", 1, channel.adj.threads)
    return None


def _cheroot() -> Server | None:
    for thread in _callers("cheroot.workers.threadpool"):
        # The pool has a method to grow, but cheroot never calls it.
        return Server("cheroot", 1, thread.server.requests.min)
    return None


def _wsgiref() -> Server | None:
    for handler in _callers("wsgiref.handlers"):
        server = handler.request_handler.server
        # A server with one of these mixins serves several requests at once.
        return Server("wsgiref", 1, None if isinstance(server, _MIXED_IN) else 1)
    return None


_DETECTORS: dict[str, Callable[[], Server | None]] = {
    "gunicorn": _gunicorn,
    "uwsgi": _uwsgi,
    "apache": _mod_wsgi,
    "waitress": _waitress,
    "cheroot": _cheroot,
    "wsgiserver": _wsgiref,
    "granian": _granian,
    "_bjoern": lambda: Server("bjoern", 1, 1),
}
"""The detector by the name in SERVER_SOFTWARE, or by the module where a server writes no name."""


def _callers(module: str) -> Iterator[Any]:
    """Yield the objects of a server's module whose methods are on the call stack."""
    frame = sys._getframe(1)  # noqa: SLF001 - the only way to the server that calls
    # Up to the top: the module of the app may be imported from many levels below.
    while frame.f_back is not None:
        frame = frame.f_back
        if _module(frame).startswith(module) and "self" in frame.f_locals:
            yield frame.f_locals["self"]


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _wraps_fork(frame: FrameType) -> bool:
    return frame.f_code.co_name.startswith("fork")


def _several(count: int | None, one: str, many: str) -> str:
    if count is None:
        return f"an unknown number of {many}"
    return f"{count} {one if count == 1 else many}"

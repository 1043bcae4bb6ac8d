"""What is known of the server that runs us: its name, and how many requests it serves at once.

No server tells its app, and the flags `wsgi.multithread` and `wsgi.multiprocess` are wrong on some.
So each server is asked in its own way, once per process, while it calls us. What cannot be learnt is
None, and nothing but advice depends on any of it.
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
    """processes: its workers.   threads: requests at once in each of them. None is unknown.

    respawns: whether somebody starts a new worker when one ends.   retire_signal: what makes a worker
    finish its requests and end; 0 where no signal does.   coroutines: whether its loop serves them.
    """

    name: str
    processes: int | None = None
    threads: int | None = None
    respawns: bool = False
    retire_signal: int = 0
    coroutines: bool = False

    @property
    def greenlets(self) -> bool:
        """Whether requests are served by greenlets or their like, of which many share a thread."""
        return self.coroutines or threads_are_greenlets()

    @property
    def at_once(self) -> int | None:
        """How many requests can be served at once, over all workers."""
        if self.processes is None or self.threads is None:
            return None
        return self.processes * self.threads

    def __str__(self) -> str:
        return f"{self.name} with {_several(self.processes, 'process', 'processes')} of " + _several(
            self.threads, "thread", "threads"
        )


def threads_are_greenlets() -> bool:
    """Whether gevent has put its own in place of Python's threads."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def running_server(environ: dict[str, Any]) -> Server:
    """The server that is calling. Never raises: what it does not know it leaves out.

    environ: of a request, or empty while the worker starts, where less can be learnt.
    """
    software = str(environ.get("SERVER_SOFTWARE", ""))
    name = software.partition("/")[0].partition(" ")[0].lower() or "unknown"
    for marker, ask in _ASK.items():
        if name == marker or (name == "unknown" and marker in sys.modules):
            try:
                found = ask()
            except Exception:  # noqa: S112 - a server changed its ways: advice is not worth an error
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
    """The server of a gunicorn worker, as its hooks are given it; None for anything else."""
    settings = getattr(worker, "cfg", None)
    # Settings may name a class in many ways, or a class of one's own.
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


def _uwsgi() -> Server | None:
    uwsgi = sys.modules["uwsgi"]  # made by the server itself
    options = uwsgi.opt
    threads = options.get("threads") or options.get("gevent") or options.get("async") or b"1"
    respawns = uwsgi.masterpid() > 0
    # In its own asynchronous mode a worker that is told to retire drops what it is about.
    graceful = respawns and not ("async" in options and "gevent" not in options)
    retire_signal = signal.SIGHUP if graceful else 0
    coroutines = "gevent" in options or "async" in options
    return Server("uWSGI", uwsgi.numproc, int(threads), respawns, retire_signal, coroutines)


def is_master() -> bool:
    """Whether this process is the one that forks the workers, and serves nothing itself."""
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None and hasattr(uwsgi, "worker_id"):
        return bool(uwsgi.masterpid() > 0 and uwsgi.worker_id() == 0)
    if any(True for _ in _callers("gunicorn.workers")):
        return False
    # With --preload it loads the app before it has noted its own number.
    masters = [getattr(caller, "pid", None) for caller in _callers("gunicorn.arbiter")]
    return any(pid in (None, os.getpid()) for pid in masters)


def worker_of_this_fork() -> tuple[Any, Any] | None:
    """The master of gunicorn and the worker that this process becomes; None if it becomes none.

    To be asked in a hook of `os.register_at_fork`. Not every fork of the master's makes a worker: its
    upgrade forks too, and so may a hook of its settings.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as in _callers
    # Between the server and os.fork is whatever wraps that, as gevent does.
    while frame is not None and (_module(frame).startswith("guardrails.") or _wraps_fork(frame)):
        frame = frame.f_back
    if frame is None or _module(frame) != "gunicorn.arbiter" or frame.f_code.co_name != "spawn_worker":
        return None
    return frame.f_locals["self"], frame.f_locals["worker"]


def _mod_wsgi() -> Server | None:
    mod_wsgi = sys.modules["mod_wsgi"]  # as above
    # Embedded, the process is one of Apache's own, and serves more than this app.
    daemon = bool(mod_wsgi.process_group)
    return Server(
        "mod_wsgi",
        mod_wsgi.maximum_processes,
        mod_wsgi.threads_per_process,
        daemon,
        signal.SIGUSR1 if daemon else 0,
    )


def _granian() -> Server | None:
    """Its workers are processes of their own, and only an option has them started again."""
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
        # The pool may grow, but nothing in cheroot lets it.
        return Server("cheroot", 1, thread.server.requests.min)
    return None


def _wsgiref() -> Server | None:
    for handler in _callers("wsgiref.handlers"):
        server = handler.request_handler.server
        # Whoever mixes something in serves several at once.
        return Server("wsgiref", 1, None if isinstance(server, _MIXED_IN) else 1)
    return None


_ASK: dict[str, Callable[[], Server | None]] = {
    "gunicorn": _gunicorn,
    "uwsgi": _uwsgi,
    "apache": _mod_wsgi,
    "waitress": _waitress,
    "cheroot": _cheroot,
    "wsgiserver": _wsgiref,
    "granian": _granian,
    "_bjoern": lambda: Server("bjoern", 1, 1),
}
"""By the name in SERVER_SOFTWARE, or for those that write none by their module."""


def _callers(module: str) -> Iterator[Any]:
    """The objects whose methods are calling us, from within a module of the server's."""
    frame = sys._getframe(1)  # noqa: SLF001 - the call comes from the server, which tells us nothing
    # All the way: an app may be imported many modules deep.
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

"""Servers with the site that gets into trouble, one of each kind that starts its workers again."""

import os
import sys
from dataclasses import dataclass

from setups import BIN, HERE, SETUPS, Setup, group_of, gunicorn, uwsgi
from sites import Site
from wire import ask


@dataclass
class Kind:
    """How the site is run: `command(port, folder, workers)`. threads: requests at once in a worker."""

    name: str
    command: object
    threads: int
    hook: str
    setup: Setup
    options: tuple = ()


def _gunicorn(kind, *options, threads=1, user=None):
    def command(port, folder, workers):
        return [
            *(sys.executable, "-m", "gunicorn", "trouble:application"),
            *("--config", str(HERE / "trouble_settings.py"), "--bind", f"127.0.0.1:{port}"),
            *("--workers", str(workers), "--worker-class", kind, "--timeout", "100", *options),
            *(("--user", user, "--group", group_of(user)) if user else ()),
        ]

    return Kind(
        f"gunicorn {kind}",
        command,
        threads,
        "post_fork",
        gunicorn(kind, threads=threads, user=user),
    )


def _uwsgi(threads=1):
    def command(port, folder, workers):
        return [
            *(str(BIN / "uwsgi"), "--http-socket", f"127.0.0.1:{port}", "--master", "--need-app"),
            *("--processes", str(workers), "--home", sys.prefix, "--die-on-term"),
            *("--wsgi-file", str(HERE / "trouble.py"), "--reload-mercy", "5"),
            *("--worker-reload-mercy", "20"),
            *(("--threads", str(threads)) if threads > 1 else ("--enable-threads",)),
        ]

    name = "uWSGI" + (f" --threads {threads}" if threads > 1 else "")
    return Kind(name, command, threads, "postfork", uwsgi(threads=threads))


def _mod_wsgi():
    def command(port, folder, workers):
        return [
            *(str(BIN / "mod_wsgi-express"), "start-server", str(HERE / "trouble.py")),
            *("--host", "127.0.0.1", "--port", str(port), "--user", "www-data", "--group", "www-data"),
            *("--processes", str(workers), "--threads", "4", "--server-root", str(folder / "apache")),
            *("--request-timeout", "100", "--shutdown-timeout", "1", "--graceful-timeout", "10"),
            *("--log-to-terminal",),
        ]

    setup = next(setup for setup in SETUPS if setup.server == "mod_wsgi")
    return Kind("mod_wsgi", command, 4, "import", setup)


SYNC = _gunicorn("sync")
GTHREAD = _gunicorn("gthread", "--threads", "4", threads=4)
GEVENT = _gunicorn("gevent", "--worker-connections", "50", threads=50)
UWSGI = _uwsgi()
UWSGI_THREADS = _uwsgi(threads=4)
NOBODY = _gunicorn("sync", user="nobody")
NOBODY_THREADS = _gunicorn("gthread", "--threads", "4", threads=4, user="nobody")
MOD_WSGI = _mod_wsgi()
KINDS = [SYNC, GTHREAD, GEVENT, UWSGI, UWSGI_THREADS]


TROUBLES = {
    "sleep": "sleeper",
    "spin": "spinner",
    "lock": "waiter for a lock",
    "gil": "C code holding the GIL",
    "nul": "printer without end",
}
"""The pages that never end, and what they are called."""


class Troubled(Site):
    """A running server of a kind."""

    stop_seconds = 3  # a gunicorn whose worker is just being started again does not hear it is to end

    def __init__(self, kind, folder, workers, environ):
        super().__init__(kind.setup, folder)
        self.kind = kind
        self.workers_started = workers
        self.store_url = f"shm:trouble-{kind.name.replace(' ', '-')}-{os.getpid()}-{self.port}"
        self.environ = environ | {
            "TROUBLE_STORE": self.store_url,
            "TROUBLE_FOLDER": str(folder),
            "TROUBLE_HOOK": kind.hook,
        }

    def command(self):
        return [
            *self.kind.command(self.port, self.folder, self.workers_started),
            *self.kind.options,
        ]

    def answers(self):
        assert self.process.poll() is None, f"the server has ended:\n{self.log()}"
        try:
            return ask(self.port, "/pid", seconds=2).status == 200
        except OSError:
            return False

    def ask(self, target, **options):
        return ask(self.port, target, **options)

    def pid(self):
        """The pid of a worker, 0 where none answers."""
        answer = self.ask("/pid")
        return int(answer.body) if answer.status == 200 else 0

    def goes_on(self):
        """Whether it still answers, at the latest when a worker has been started again."""
        self.until(self.answers, "the server answers again")
        return True

    def workers(self):
        with self.store() as store:
            return store.workers()

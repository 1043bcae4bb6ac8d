"""The set-ups of the matrix: every server that guardrails is tested under, and how it is started."""

import grp
import importlib.util
import os
import pwd
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
OWN_TIMEOUT = 4
"""Seconds after which a server ends a request by itself, if it has such a setting."""


@dataclass(frozen=True)
class Setup:
    """One way to run the site.

    command: what starts it, given a port and a folder.   processes, threads: how many requests it
    serves at once.   imported: whether the app is imported before or after the fork.   hook: where
    the worker's set-up is called from.   respawns: whether a killed worker is replaced.
    ends_requests: whether its own time-out ends a request that hangs.   reload: the signal that
    reloads it; None where it must be started again.   learnt: what guardrails finds out about it.
    proxy_writes: the header that a proxy in front should write.   advice: the recommended set-up,
    for the docs.
    """

    name: str
    server: str
    command: Callable[[int, Path], list[str]]
    processes: int
    threads: int
    imported: str
    hook: str
    needs: str
    learnt: str
    user: str | None = None
    respawns: bool = False
    ends_requests: bool = False
    reload: str | None = None
    proxy_writes: str = "X-Forwarded-For"
    advice: str = ""

    @property
    def slug(self):
        """Its name in one word."""
        return self.name.lower().replace(" --", "-").replace(" ", "-")

    @property
    def at_once(self):
        return self.processes * self.threads

    def shown_command(self):
        """Return the command as a user writes it in a shell."""
        line = shlex.join(self.command(8000, Path("/run/site")))
        places = {sys.executable: "python", f"{BIN}/": "", f"{HERE}/": "", sys.prefix: "/path/to/venv"}
        for place, written in places.items():
            line = line.replace(place, written)
        return line

    def missing(self):
        """Return why it cannot run on this machine, or None."""
        found = importlib.util.find_spec(self.needs) or shutil.which(str(BIN / self.needs))
        if not found:
            return f"{self.needs} is not installed"
        if self.server == "mod_wsgi" and not which_server("apache2"):
            return "Apache is not installed"
        if self.user is not None and os.geteuid() != 0:
            return "only root can run a server as another user"
        if self.user is not None and not _readable_by_others():
            return "this Python or this folder cannot be read by another user"
        return None


def _readable_by_others():
    places = (Path(sys.executable).resolve(), Path(sys.prefix), HERE)
    return all(folder.stat().st_mode & 0o001 for place in places for folder in (place, *place.parents))


def which_server(name):
    """Return where a server's program is. Its folder is not in everybody's PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")


def group_of(user):
    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


def gunicorn(kind, *options, threads=1, preload=False, user=None):
    def command(port, folder):
        return [
            *(sys.executable, "-m", "gunicorn", "app:application"),
            *("--config", str(HERE / "gunicorn_settings.py")),
            *("--bind", f"127.0.0.1:{port}", "--workers", "2", "--worker-class", kind),
            *("--timeout", str(OWN_TIMEOUT), *options),
            *(("--preload",) if preload else ()),
            *(("--user", user, "--group", group_of(user)) if user else ()),
        ]

    name = f"gunicorn {kind}" + (" --preload" if preload else "") + (f" --user {user}" if user else "")
    return Setup(
        name,
        "gunicorn",
        command,
        processes=2,
        threads=threads,
        imported="before" if preload else "after",
        hook="post_fork and post_worker_init",
        needs="gevent" if kind == "gevent" else "gunicorn",
        learnt=f"gunicorn ({kind}) with 2 processes of {threads} thread" + "s" * (threads > 1),
        user=user,
        respawns=True,
        # Threads and greenlets still answer gunicorn's heartbeat while a request hangs.
        ends_requests=kind == "sync",
        reload="HUP",
        advice=""
        if preload or user
        else {
            "sync": "a worker serves one request at a time: a cap of `--workers` or more never "
            "refuses, and a refusal waits for a free worker like any request",
            "gthread": "recommended for most sites: `--threads 4` or more, and `trusted_proxies=` "
            "with the proxy's address",
            "gevent": "guardrails charges CPU by greenlet, without a setting; set "
            "`--worker-connections` to the number of requests that the app can serve at once",
        }[kind],
    )


UWSGI_ADVICE = (
    "use `--master`; behind nginx with `uwsgi_pass`, which sends the client's address as REMOTE_ADDR, "
    "write `trusted_proxies=()`; behind an HTTP proxy that passes headers with underscores, write "
    '`forwarded="forwarded"`'
)


def uwsgi(*, threads=1, lazy=False):
    def command(port, folder):
        return [
            *(str(BIN / "uwsgi"), "--http-socket", f"127.0.0.1:{port}", "--master"),
            *("--processes", "2", "--home", sys.prefix, "--wsgi-file", str(HERE / "app.py")),
            *("--harakiri", str(OWN_TIMEOUT), "--socket-timeout", "4", "--need-app", "--die-on-term"),
            *("--reload-mercy", "2", "--worker-reload-mercy", "2"),
            *(("--threads", str(threads)) if threads > 1 else ()),
            *(("--lazy-apps",) if lazy else ()),
        ]

    return Setup(
        "uWSGI" + (" --threads 4" if threads > 1 else "") + (" --lazy-apps" if lazy else ""),
        "uWSGI",
        command,
        processes=2,
        threads=threads,
        imported="after" if lazy else "before",
        # With --lazy-apps the app is imported after the fork, so the decorator is never called.
        hook="import" if lazy else "postfork",
        needs="uwsgi",
        learnt=f"uWSGI with 2 processes of {threads} thread" + "s" * (threads > 1),
        respawns=True,
        ends_requests=True,
        reload="HUP",
        proxy_writes="Forwarded",
        advice="" if threads > 1 or lazy else UWSGI_ADVICE,
    )


def own_program(server, threads, **facts):
    return Setup(
        server,
        server,
        lambda port, folder: [sys.executable, str(HERE / "serve.py"), server, str(port)],
        processes=1,
        threads=threads,
        imported="without a fork",
        hook="import",
        **facts,
    )


MANY = 1000
"""Stands for a server without a limit of requests at once."""

SETUPS = [
    gunicorn("sync"),
    gunicorn("sync", preload=True),
    gunicorn("sync", user="nobody"),
    gunicorn("gthread", "--threads", "4", threads=4),
    gunicorn("gthread", "--threads", "4", threads=4, preload=True),
    gunicorn("gthread", "--threads", "4", threads=4, user="nobody"),
    gunicorn("gevent", "--worker-connections", "50", threads=50),
    gunicorn("gevent", "--worker-connections", "50", threads=50, preload=True),
    gunicorn("gevent", "--worker-connections", "50", threads=50, user="nobody"),
    uwsgi(),
    uwsgi(threads=4),
    uwsgi(lazy=True),
    Setup(
        "mod_wsgi",
        "mod_wsgi",
        lambda port, folder: [
            *(str(BIN / "mod_wsgi-express"), "start-server", str(HERE / "app.py")),
            *("--host", "127.0.0.1", "--port", str(port), "--user", "www-data", "--group", "www-data"),
            *("--processes", "2", "--threads", "4", "--server-root", str(folder / "apache")),
            *("--request-timeout", str(OWN_TIMEOUT), "--body-timeout", "2", "--shutdown-timeout", "1"),
            *("--graceful-timeout", "1", "--log-to-terminal", "--enable-sendfile"),
        ],
        processes=2,
        threads=4,
        imported="after",
        hook="import",
        needs="mod_wsgi-express",
        learnt="mod_wsgi with 2 processes of 4 threads",
        user="www-data",
        respawns=True,
        ends_requests=True,
        reload="USR1",
        advice="use daemon mode; without a proxy in front of Apache, write `trusted_proxies=()`; give "
        "`RequestReadTimeout` of Apache a short time for bodies: so long a slow one holds a thread",
    ),
    Setup(
        "waitress",
        "waitress",
        lambda port, folder: [
            *(sys.executable, "-m", "waitress", "--listen", f"127.0.0.1:{port}", "--threads", "4"),
            *("--trusted-proxy", "127.0.0.1", "--trusted-proxy-headers", "x-forwarded-for"),
            "app:application",
        ],
        processes=1,
        threads=4,
        imported="without a fork",
        hook="import",
        needs="waitress",
        learnt="waitress with 1 process of 4 threads",
        advice="waitress drops forwarding headers unless its own `trusted_proxy` is set: set that and "
        '`trusted_proxy_headers="x-forwarded-for"`, and write `trusted_proxies=()`',
    ),
    Setup(
        "cheroot",
        "cheroot",
        lambda port, folder: [
            *(sys.executable, "-m", "cheroot", "app:application"),
            *("--bind", f"127.0.0.1:{port}", "--threads", "8"),
        ],
        processes=1,
        threads=8,
        imported="without a fork",
        hook="import",
        needs="cheroot",
        learnt="cheroot with 1 process of 8 threads",
        proxy_writes="Forwarded",
        advice='behind a proxy that passes headers with underscores, write `forwarded="forwarded"`',
    ),
    Setup(
        "granian",
        "granian",
        lambda port, folder: [
            *(str(BIN / "granian"), "--interface", "wsgi", "--host", "127.0.0.1", "--port", str(port)),
            *("--workers", "2", "--blocking-threads", "4", "--respawn-failed-workers"),
            *("--no-ws", "app:application"),
        ],
        processes=2,
        threads=4,
        imported="after",
        hook="import",
        needs="granian",
        learnt="granian with an unknown number of processes of an unknown number of threads",
        respawns=True,
        reload="HUP",
        proxy_writes="Forwarded",
        advice="use `--respawn-failed-workers`: otherwise one dead worker ends the server; behind a "
        'proxy that passes headers with underscores, write `forwarded="forwarded"`',
    ),
    own_program(
        "bjoern",
        1,
        needs="bjoern",
        learnt="bjoern with 1 process of 1 thread",
        advice="bjoern serves one request at a time, so a cap has no effect; let the proxy send one "
        "X-Forwarded-For, since bjoern joins two of them without a comma",
    ),
    own_program(
        "pywsgi",
        MANY,
        needs="gevent",
        learnt="gevent with an unknown number of processes of an unknown number of threads",
        advice="guardrails charges CPU by greenlet, without a setting",
    ),
    own_program(
        "werkzeug",
        MANY,
        needs="werkzeug",
        learnt="werkzeug with an unknown number of processes of an unknown number of threads",
        advice="for development",
    ),
    own_program(
        "wsgiref",
        1,
        needs="wsgiref",
        learnt="wsgiref with 1 process of 1 thread",
        proxy_writes="Forwarded",
        advice="for tests",
    ),
]

"""What is measured: an app, the requests that it gets, and four guards in front of it."""

# ruff: noqa: SLF001 - the floor has its lock taken out, which nobody else should be able to do

import itertools
import os
from contextlib import contextmanager
from wsgiref.util import FileWrapper

import guardrails
from guardrails import BlockAgents, CPUThrottle, MaxConcurrentReqs, SpeedLimit
from guardrails.store.shared import SharedStore
from guardrails.testing import hello

AGENTS = (
    *("libwww-perl", "WebZIP", "HTTrack", "WebCopier", "Teleport", "WebStripper", "EmailCollector"),
    *("EmailSiphon", "ExtractorPro", "WebReaper", "SiteSnagger", "Offline.Explorer", "Wget", "curl"),
    *("MassDownloader", "Scrapy", "python-requests", "Go-http-client", "AhrefsBot", "SemrushBot"),
    *("MJ12bot", "DotBot", "PetalBot"),
)

ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/articles/2026/throttling",
    "QUERY_STRING": "page=2",
    "SERVER_NAME": "www.example.org",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_HOST": "www.example.org",
    "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "HTTP_ACCEPT": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "HTTP_ACCEPT_LANGUAGE": "en-GB,en;q=0.5",
    "REMOTE_ADDR": "203.0.113.7",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.multithread": False,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.file_wrapper": FileWrapper,
}

_serial = itertools.count()


def four_guards(ban=None):
    """Four guards that all have something to do for each request, and that let it pass."""
    return (
        BlockAgents(*AGENTS, ban=ban),
        SpeedLimit("1000000/second", burst=120_000_000),
        MaxConcurrentReqs(1000),
        CPUThrottle("1000%", window="1h"),
    )


@contextmanager
def own_store(name=None, **options):
    """A shared store that goes away with the benchmark."""
    name = name or f"bench-{os.getpid()}-{next(_serial)}"
    store = SharedStore(name, private=True, **options)
    try:
        yield store
    finally:
        store.close()


def guarded(store, app=hello, guards=None):
    """The app behind the guards, one request old, so that everything is open and warm."""
    wrapped = guardrails.throttle(app, *(guards or four_guards()), store=store, trusted_proxies=())
    if not decision_of(wrapped).admitted:
        raise SystemExit("benchmark: the guards do not let the request pass that is to be measured")
    return wrapped


def without_lock(store):
    """Take the lock out of a store that is open: what is left is the floor."""
    file = store._file
    if not callable(getattr(file, "_try_lock", None)) or not callable(getattr(file, "_unlock", None)):
        raise SystemExit("benchmark: StoreFile has no _try_lock and _unlock to replace any more")
    # `int` is the cheapest callable there is, and its answer, 0, means that the lock was taken.
    file._try_lock = file._unlock = int


def ignore_response(status, headers, exc_info=None):
    return None


def serve(app, environ):
    """What a server does with a request, as far as it matters here."""
    response = app(environ, ignore_response)
    for _ in response:
        pass
    close = getattr(response, "close", None)
    if close is not None:
        close()


def decision_of(app, **facts):
    """Send one request, and say what was decided about it."""
    environ = ENVIRON | facts
    serve(app, environ)
    return environ["guardrails.decision"]


class Counting:
    """A store that counts the calls of its verbs, and keeps the last request that entered."""

    def __init__(self, store):
        self._store = store
        self.calls = {"enter": 0, "update": 0, "leave": 0}
        self.open_request = None

    def __getattr__(self, name):
        return getattr(self._store, name)

    def enter(self, open_request, *, final=True):
        self.calls["enter"] += 1
        self.open_request = open_request
        return self._store.enter(open_request, final=final)

    def update(self, *arguments):
        self.calls["update"] += 1
        return self._store.update(*arguments)

    def leave(self, *arguments):
        self.calls["leave"] += 1
        return self._store.leave(*arguments)

"""What a worker learns of the server that runs it: stand-ins here, real ones in tests/servers."""

import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from guardrails.worker.server import gunicorn_server, running_server

ASKING = """
import json, sys
from guardrails.worker.server import running_server
found = running_server({"SERVER_SOFTWARE": "granian/2.0"})
print(json.dumps([found.name, found.respawns, found.retire_signal]))
"""


def is_patched(name):
    return True


def is_not_patched(name):
    return False


@pytest.fixture
def gevent(monkeypatch):
    """gevent, as somebody else has merely imported it."""
    monkey = SimpleNamespace(is_module_patched=is_not_patched)
    monkeypatch.setitem(sys.modules, "gevent", SimpleNamespace(monkey=monkey))
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    return monkey


def gunicorn_worker(kind, *classes):
    """A worker of gunicorn's, by the names of its classes."""
    made = type("Worker", (), {})
    for name in classes:
        made = type(name, (made,), {})
    worker = made()
    worker.cfg = SimpleNamespace(workers=2, threads=4, worker_connections=100, worker_class_str=kind)
    return worker


@pytest.mark.parametrize(
    ("group", "respawns", "retire_signal"), [("", False, 0), ("shop", True, signal.SIGUSR1)]
)
def test_a_process_of_apaches_own_is_not_ours_to_end(group, respawns, retire_signal, monkeypatch):
    """Embedded, it serves more than this app; in daemon mode it is the app's."""
    module = SimpleNamespace(process_group=group, maximum_processes=4, threads_per_process=5)
    monkeypatch.setitem(sys.modules, "mod_wsgi", module)
    found = running_server({"SERVER_SOFTWARE": "Apache/2.4.62 (Debian)"})
    assert (found.name, found.processes, found.threads) == ("mod_wsgi", 4, 5)
    assert (found.respawns, found.retire_signal) == (respawns, retire_signal)


@pytest.mark.parametrize(
    ("option", "respawns"), [("--workers=2", False), ("--respawn-failed-workers", True)]
)
def test_granian_starts_a_worker_again_only_where_its_option_says_so(option, respawns):
    """A shell stands for its first process, and has that option on its command line."""
    ran = subprocess.run(
        ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, ASKING, option],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert json.loads(ran.stdout) == ["granian", respawns, 0]


@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        ("gevent", ["AsyncWorker", "GeventWorker"]),
        ("gevent_pywsgi", ["AsyncWorker", "GeventWorker", "GeventPyWSGIWorker"]),
        ("shop.MyWorker", ["AsyncWorker", "GeventWorker", "MyWorker"]),
        ("eventlet", ["AsyncWorker", "EventletWorker"]),
    ],
)
def test_gunicorns_asynchronous_workers_serve_by_greenlets(kind, classes):
    found = gunicorn_server(gunicorn_worker(kind, *classes))
    assert found.greenlets
    assert (found.processes, found.threads) == (2, 100)


def test_threads_are_no_greenlets_though_somebody_has_imported_gevent(gevent):
    found = gunicorn_server(gunicorn_worker("gthread", "ThreadWorker"))
    assert not found.greenlets
    assert found.threads == 4
    gevent.is_module_patched = is_patched
    assert found.greenlets, "what was patched has none but greenlets"


@pytest.mark.parametrize(
    ("options", "by_greenlets"),
    [({"gevent": b"100"}, True), ({"async": b"100"}, True), ({"threads": b"4"}, False)],
)
def test_uwsgi_serves_by_greenlets_where_it_was_told_to(options, by_greenlets, gevent, monkeypatch):
    module = SimpleNamespace(opt=options, numproc=2, masterpid=lambda: 1)
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    found = running_server({})
    assert found.name == "uWSGI"
    assert found.greenlets == by_greenlets


@pytest.mark.parametrize(
    ("software", "by_greenlets"), [("gevent/25.5 Python/3.11", True), ("else/1", False)]
)
def test_gevents_own_server_serves_by_greenlets(software, by_greenlets, gevent):
    assert running_server({"SERVER_SOFTWARE": software}).greenlets == by_greenlets


def test_a_server_is_known_from_however_many_modules_deep():
    """An app that imports a package that imports another asks from hundreds of frames below."""
    namespace = {"__name__": "gunicorn.workers.base", "running_server": running_server}
    exec("def run(self, ask):\n    return ask(50)", namespace)  # noqa: S102 - as from that module
    worker = gunicorn_worker("sync", "SyncWorker")
    type(worker).run = namespace["run"]

    def deep(levels):
        return deep(levels - 1) if levels else running_server({"SERVER_SOFTWARE": "gunicorn/27"})

    assert worker.run(lambda levels: deep(levels * 6)).name == "gunicorn (sync)"

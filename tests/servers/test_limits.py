"""Limits in real workers: what the client sees, whether the server goes on, what is logged."""

import json
import os
import resource
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from setups import BIN
from troubled import GEVENT, GTHREAD, KINDS, SYNC, UWSGI, UWSGI_THREADS

from guardrails.store.processes import process_facts

PATIENCE = 120
"""Seconds for what takes a few: the machine may be busy."""

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def named(*kinds):
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.name)


def limited(trouble, kind, **limits):
    return trouble(kind, TROUBLE_LIMITS=json.dumps(limits))


def applied(kind):
    """The same, with the limits applied where the app is loaded."""
    return replace(kind, name=f"{kind.name} apply", hook="import")


def preloaded(kind):
    """The same, with the app loaded before the fork, and no hook that could set limits too."""
    return replace(
        kind,
        name=f"{kind.name} --preload",
        options=("--preload", "--config", "settings.py"),
        hook="import",
    )


@pytest.fixture
def settings(tmp_path):
    """Writes gunicorn's settings for a preloaded app: `settings(kind, more)` is the kind with them."""

    def write(kind, more=""):
        file = tmp_path / "settings.py"
        file.write_text(f"control_socket_disable = True\ngraceful_timeout = 20\n{more}")
        options = tuple(str(file) if option == "settings.py" else option for option in kind.options)
        return replace(kind, options=options)

    return write


def answer_or_hang_up(site, target):
    """Return the answer to a request. Status 0 means that the connection was closed, not a time-out."""
    began = time.monotonic()
    answer = site.ask(target, seconds=PATIENCE)
    assert time.monotonic() - began < PATIENCE, f"nothing came:\n{site.log()}"
    return answer


def children(parent):
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    facts = {pid: process_facts(pid) for pid in pids}
    return [pid for pid, found in facts.items() if found is not None and found.parent == parent]


@every_kind
def test_at_the_soft_limit_of_cpu_a_worker_finishes_and_retires(trouble, kind):
    """A request that burns past it is answered, and so is one beside it; another worker follows."""
    site = limited(trouble, kind, CPU="3:")
    first = site.pid()
    beside = []
    if kind.threads > 1:
        thread = threading.Thread(
            target=lambda: beside.append(site.ask("/sleep?seconds=6", seconds=PATIENCE).status),
            daemon=True,
        )
        thread.start()
        site.until(lambda: sleeping_in(site) == [first], "the one beside has begun")

    burnt = site.ask("/burn?seconds=4", seconds=PATIENCE)

    assert (burnt.status, burnt.text) == (200, str(first))
    if kind.threads > 1:
        thread.join(PATIENCE)
        assert beside == [200]
    site.until(lambda: site.pid() not in (0, first), "another worker serves", PATIENCE)
    assert "3 s, its soft limit: it finishes its requests and retires" in site.whole_log()
    assert site.goes_on()


def sleeping_in(site):
    """The pids of the workers with a request that sleeps."""
    return [request.pid for request in site.in_flight() if request.path == "/sleep"]


@every_kind
def test_the_hard_limit_of_cpu_kills_a_spinner_and_the_server_goes_on(trouble, kind):
    site = limited(trouble, kind, CPU="3:4")
    first = site.pid()

    spun = answer_or_hang_up(site, "/spin?seconds=600")

    assert spun.status == 0
    assert site.goes_on()
    assert site.pid() != first


@every_kind
def test_a_memory_hog_meets_a_memory_error_and_its_worker_lives(trouble, kind):
    site = limited(trouble, kind, DATA="600M:")
    first = site.pid()

    assert site.ask("/hog").text == "MemoryError"
    assert site.pid() == first


@every_kind
def test_memory_that_creeps_costs_its_own_request_at_the_most(trouble, kind):
    site = limited(trouble, kind, DATA="400M:")

    assert answer_or_hang_up(site, "/creep").status in (0, 500)
    assert site.goes_on()
    assert site.ask("/usage").status == 200


@every_kind
def test_a_file_that_is_too_large_and_too_many_files_are_errors_in_the_app(trouble, kind):
    site = limited(trouble, kind, FSIZE="8M:", NOFILE="200:")
    first = site.pid()

    assert site.ask("/file").text == "File too large after 8 MB"
    assert site.ask("/files").text == "Too many open files"
    assert site.pid() == first
    used = json.loads(site.ask("/usage").text)
    assert used["FSIZE"][1] == 8 << 20
    assert 3 < used["NOFILE"][0] < 200


@named(SYNC, preloaded(SYNC), UWSGI, applied(UWSGI))
def test_a_budget_per_request_ends_the_request_and_the_worker_lives(trouble, settings, kind):
    site = limited(trouble, settings(kind), cpu_per_request="1s")
    first = site.pid()

    # More than a budget together, but none of them by itself.
    assert [site.ask("/burn?seconds=0.6").status for _ in range(3)] == [200] * 3
    ended = answer_or_hang_up(site, "/burn?seconds=20")

    assert ended.status in (0, 500)
    assert "this request has used its 1 s of CPU" in site.whole_log()
    assert site.pid() == first


@named(GTHREAD, GEVENT, preloaded(GTHREAD), preloaded(GEVENT), UWSGI_THREADS, applied(UWSGI_THREADS))
def test_a_budget_per_request_is_refused_where_requests_share_a_process(trouble, settings, kind):
    said = "serves several requests at once, or may do, and the kernel counts their CPU together"
    if kind is UWSGI_THREADS:  # it starts all the same when a postfork function raises
        assert said in limited(trouble, kind, cpu_per_request="1s").whole_log()
    else:
        with pytest.raises(AssertionError, match=rf"(?s)the server has ended:.*{said}"):
            limited(trouble, settings(kind), cpu_per_request="1s")


@named(SYNC, applied(SYNC), preloaded(SYNC), applied(UWSGI))
def test_no_server_starts_with_a_limit_that_the_system_refuses(trouble, settings, kind):
    with pytest.raises(AssertionError, match=r"(?s)the server has ended:.*NOFILE: the system refuses"):
        limited(trouble, settings(kind), NOFILE=f":{2**60}")


@named(preloaded(GTHREAD), preloaded(GEVENT), applied(GEVENT), applied(UWSGI), applied(UWSGI_THREADS))
def test_applied_where_the_app_is_loaded_the_workers_have_it_and_not_their_parent(
    trouble, settings, kind
):
    site = limited(trouble, settings(kind), CPU="3:")
    first = site.pid()

    assert resource.prlimit(site.process.pid, resource.RLIMIT_CPU)[0] == -1
    assert [worker.limits["CPU"] for worker in site.workers()] == [(3, -1)]
    assert site.ask("/burn?seconds=4", seconds=PATIENCE).text == str(first)
    site.until(lambda: site.pid() not in (0, first), "another worker serves", PATIENCE)
    assert site.goes_on()


@named(preloaded(SYNC), preloaded(GTHREAD))
def test_gunicorns_upgrade_leaves_the_new_master_without_limits(trouble, settings, kind):
    # Its upgrade starts the script again, which `python -m gunicorn` is not.
    program = str(BIN / "gunicorn")
    kind = replace(kind, command=lambda *place, start=kind.command: [program, *start(*place)[3:]])
    site = limited(trouble, settings(kind), CPU="100:300", nice=3)
    master = site.process.pid
    (worker,) = children(master)

    os.kill(master, signal.SIGUSR2)
    site.until(lambda: len(children(master)) == 2, "the upgrade")
    (upgraded,) = set(children(master)) - {worker}
    site.until(lambda: children(upgraded), "the new master has a worker", PATIENCE)
    (new,) = children(upgraded)
    site.until(lambda: resource.prlimit(new, resource.RLIMIT_CPU) == (100, 300), "its limits")

    assert resource.prlimit(upgraded, resource.RLIMIT_CPU) == (-1, -1)
    assert os.getpriority(os.PRIO_PROCESS, upgraded) == os.getpriority(os.PRIO_PROCESS, master)
    status = Path(f"/proc/{upgraded}/status").read_text()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert not blocked >> (signal.SIGXCPU - 1) & 1


HOOKS_THAT_FORK = """
import os, resource

def fork(where):
    pid = os.fork()
    if not pid:
        with open(os.environ["TROUBLE_FOLDER"] + "/forked", "a") as file:
            print(where, *resource.getrlimit(resource.RLIMIT_CPU), file=file)
        os._exit(0)
    os.waitpid(pid, 0)

def when_ready(server):
    fork("ready")

def pre_fork(server, worker):
    fork("before")
"""


def test_what_else_the_master_forks_has_no_limits(trouble, settings):
    site = limited(trouble, settings(preloaded(SYNC), HOOKS_THAT_FORK), CPU="100:300")

    assert json.loads(site.ask("/usage").text)["CPU"][1:] == [100, 300]
    assert (site.folder / "forked").read_text() == "ready -1 -1\nbefore -1 -1\n"


@named(*KINDS, preloaded(SYNC), preloaded(GTHREAD), preloaded(GEVENT))
def test_defaults_are_set_and_printed(trouble, settings, kind):
    site = limited(trouble, settings(kind), defaults=True)

    used = json.loads(site.ask("/usage").text)
    (worker,) = site.workers()
    assert worker.limits["CPU"] == tuple(used["CPU"][1:]) == (600, -1)
    assert worker.limits["CORE"][0] == 0
    if "gunicorn" in kind.name:
        said = "rlimits: CPU soft 600 hard unlimited (was unlimited, unlimited; default)"
        assert said in site.whole_log()


def test_greenlets_of_uwsgi_finish_and_retire_too(trouble):
    """They are greenlets of one thread, so a handler is told of the limit, as under gunicorn."""
    kind = replace(UWSGI, name="uWSGI --gevent 10", threads=10, options=("--gevent", "10"))
    site = limited(trouble, kind, CPU="3:")
    first = site.pid()

    status = Path(f"/proc/{first}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    assert caught >> (signal.SIGXCPU - 1) & 1
    assert site.ask("/burn?seconds=4", seconds=PATIENCE).text == str(first)
    site.until(lambda: site.pid() not in (0, first), "another worker serves", PATIENCE)
    assert site.goes_on()

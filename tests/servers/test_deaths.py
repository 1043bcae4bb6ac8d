"""Workers that are killed, and workers whose server is killed: what the log says, and what is left."""

import json
import os
import re
import signal
from dataclasses import replace

import pytest
from test_watchdog import Asked, watching
from troubled import GEVENT, GTHREAD, SYNC, UWSGI, UWSGI_THREADS
from wire import ask

from support import is_there

QUICK = {"poll": "200ms", "timeout": "100s"}


@pytest.mark.parametrize(
    "kind", [SYNC, GTHREAD, GEVENT, UWSGI, UWSGI_THREADS], ids=lambda kind: kind.name
)
def test_a_killed_worker_is_told_of_with_what_it_served(trouble, kind):
    site = trouble(kind, workers=2)
    with watching(site, **QUICK) as log:
        asked = Asked(site, "/report/sleep?seconds=100")
        site.until(site.in_flight, "the request has begun")
        (request,) = site.in_flight()
        os.kill(request.pid, signal.SIGKILL)
        assert asked.wait().status == 0
        site.until(lambda: "died: worker" in log(), "its death is told")
    assert re.search(
        rf"died: worker {request.pid} has died with 1 request in flight: GET /report/sleep from "
        r"127\.0\.0\.1, begun \d+ s before",
        log(),
    )


def test_without_a_watchdog_the_next_worker_tells_of_it(trouble):
    site = trouble(SYNC, workers=1)
    asked = Asked(site, "/report/sleep?seconds=100")
    site.until(site.in_flight, "the request has begun")
    # Read no store meanwhile: a reader would find the dead worker before the next worker does.
    (request,) = site.in_flight()
    os.kill(request.pid, signal.SIGKILL)
    assert asked.wait().status == 0
    assert site.goes_on()
    said = f"worker {request.pid} has died with 1 request in flight: GET /report/sleep from 127.0.0.1"
    site.until(lambda: said in site.whole_log(), said)


def test_a_worker_that_passes_its_hard_limit_of_cpu_is_told_of_with_the_limit(trouble):
    site = trouble(SYNC, workers=1, TROUBLE_LIMITS=json.dumps({"CPU": "2:3"}))
    with watching(site, **QUICK) as log:
        assert Asked(site, "/burn?seconds=100").wait().status == 0
        site.until(lambda: "died: worker" in log(), "its death is told")
    assert re.search(r"GET /burn from .* it had used [123] s of its 3 s of CPU", log())


@pytest.mark.parametrize(
    "kind", [SYNC, GTHREAD, GEVENT, UWSGI, UWSGI_THREADS], ids=lambda kind: kind.name
)
def test_workers_that_are_replaced_in_order_have_not_died(trouble, kind):
    site = trouble(kind, workers=2)
    with watching(site, **QUICK) as log:
        before = {site.pid() for _ in range(10)}
        os.kill(site.process.pid, signal.SIGHUP)
        site.until(lambda: not any(map(is_there, before)), "all workers were replaced")
        site.until(lambda: site.pid() not in (0, *before), "the new ones answer")
    assert "died" not in log()


@pytest.mark.parametrize("by_hook", [True, False], ids=["its own watchdog", "one by hand"])
def test_a_worker_that_hangs_while_its_server_is_killed_is_ended_and_frees_the_port(trouble, by_hook):
    options = {"timeout": "3s", "poll": "200ms", "signal_interval": "500ms", "grace": "1s"}
    environ = {"TROUBLE_WATCHDOG": json.dumps(options)} if by_hook else {}
    site = trouble(GTHREAD, workers=1, **environ)
    if by_hook:
        site.until(lambda: "watchdog: begins" in site.whole_log(), "the watchdog begins")
        see_that_the_port_is_freed(site, site.whole_log)
        site.until(
            lambda: "ends, since the server that started it has ended" in site.whole_log(), "it ends"
        )
    else:
        with watching(site, **options) as log:
            see_that_the_port_is_freed(site, log)


def see_that_the_port_is_freed(site, log):
    stuck = Asked(site, "/sleep?seconds=100")
    site.until(site.in_flight, "the request has begun")
    (request,) = site.in_flight()
    os.kill(site.process.pid, signal.SIGKILL)
    site.process.wait()
    site.until(lambda: not is_there(request.pid), "the worker ends")
    assert stuck.wait().status == 0
    assert "; its server has ended, so nothing takes its place" in log()
    # The threads of a killed process end one by one, and the last of them closes the port.
    site.until(lambda: is_refused(site.port), "the port is free")


def is_refused(port):
    try:
        ask(port, "/pid", seconds=5)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False  # its backlog took the connection, and nothing answers
    return False


def test_a_single_process_is_ended_where_something_outside_starts_it_again(trouble):
    """Here nothing does: a server that has one process has ended with it."""
    site = trouble(replace(UWSGI, name="uWSGI alone", command=_without_master(UWSGI.command)))
    with watching(site, timeout="2s", respawned=True) as log:
        assert Asked(site, "/sleep?seconds=100").wait().status == 0
        site.until(lambda: "has ended after SIG" in log(), "its end is told")
    assert "no supervisor" not in log()


def _without_master(command):
    return lambda *arguments: [word for word in command(*arguments) if word != "--master"]

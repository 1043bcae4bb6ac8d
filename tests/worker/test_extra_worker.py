"""One more worker of a gunicorn: asked for, waited for, and handed back.

Here a small program stands for gunicorn's master; the real one is in tests/servers/test_make_room.py.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guardrails.worker.extra_worker import ExtraWorker, add_worker_and_wait, can_add_worker

SECONDS = 60
MASTER = """
import signal, subprocess, sys, time

children, asked = [], []
for number in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGHUP):
    signal.signal(number, lambda number, _frame: asked.append(number))
print("ready", flush=True)
while True:
    time.sleep(0.01)
    while asked:
        number = asked.pop(0)
        if number == signal.SIGTTIN and sys.argv[1] == "starts":
            children.append(subprocess.Popen(["sleep", "300"]))
        elif number == signal.SIGHUP:
            for child in children:
                child.kill()
                child.wait()
        print(signal.Signals(number).name, flush=True)
"""


@pytest.fixture
def start():
    """Starts a program and gives its process."""
    started = []

    def start(*command):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        return process

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        with process:
            process.wait()


@pytest.fixture
def master(start):
    """Starts a master that starts a worker when it is asked, or does not."""

    def begin(does="starts"):
        process = start(sys.executable, "-c", MASTER, does)
        assert process.stdout.readline() == "ready\n"
        return process

    return begin


def test_a_worker_that_waits_for_connections_is_ready_and_is_handed_back_once(master):
    process = master()
    extra = add_worker_and_wait(process.pid, SECONDS)
    extra.hand_back()
    extra.hand_back()
    assert process.stdout.readline() == "SIGTTIN\n"
    assert process.stdout.readline() == "SIGTTOU\n"
    os.kill(process.pid, signal.SIGHUP)
    assert process.stdout.readline() == "SIGHUP\n"


def test_a_worker_that_has_served_is_ready_at_once(master):
    process = master()
    extra = ExtraWorker(process.pid)
    assert process.stdout.readline() == "SIGTTIN\n"
    deadline = time.monotonic() + SECONDS
    while not extra.has_come():
        assert time.monotonic() < deadline
    (pid,) = extra._new()
    assert not extra.is_ready((), 1000.0)
    assert extra.is_ready({pid}, 1000.0)


def test_a_master_that_starts_none_has_as_many_as_before(master):
    process = master("does not")
    assert add_worker_and_wait(process.pid, 0.2) is None
    assert process.stdout.readline() == "SIGTTIN\n"
    assert process.stdout.readline() == "SIGTTOU\n"


def test_after_a_reload_no_worker_is_taken_away(master):
    process = master()
    extra = add_worker_and_wait(process.pid, SECONDS)
    os.kill(process.pid, signal.SIGHUP)
    assert process.stdout.readline() == "SIGTTIN\n"
    assert process.stdout.readline() == "SIGHUP\n"
    extra.hand_back()
    os.kill(process.pid, signal.SIGHUP)
    assert process.stdout.readline() == "SIGHUP\n"


def test_a_process_that_these_signals_would_stop_gets_none(start):
    process = start("sleep", "300")
    assert add_worker_and_wait(process.pid, 0.1) is None
    with pytest.raises(ProcessLookupError, match="is no gunicorn that could start a worker"):
        ExtraWorker(process.pid)
    state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert state != "T"


@pytest.mark.parametrize(
    ("server", "can"), [("gunicorn (gthread)", True), ("uWSGI", False), ("mod_wsgi", False)]
)
def test_only_gunicorn_can_be_asked(server, can):
    assert can_add_worker(server) == can

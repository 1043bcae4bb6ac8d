"""The stacks of a worker, asked for from outside."""

import os
import secrets
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

import guardrails
from guardrails.watchdog import stack_dump
from guardrails.watchdog.actions import Processes

STUCK = """
import signal, sys, time
import guardrails
from guardrails import SpeedLimit, testing
from guardrails.worker import stacks
{before}

def forgotten(environ, start_response):
    print("ready", flush=True)
    {stuck}

app = SpeedLimit("9/s")(forgotten, store=sys.argv[1], **{options})
testing.Client(app).get("/")
"""
WAYS = {
    "sleeping": "time.sleep(60)",
    "looping": "while True: pass",
    "in C with the GIL": "testing.holding_the_gil(environ, start_response)",
}


@contextmanager
def stuck_process(way, before="", **options):
    name = f"shm:test-stacks-{secrets.token_hex(6)}?private&clients=100"
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK.format(stuck=WAYS[way], options=options, before=before), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    yield process, guardrails.open_store(name)
    process.kill()
    process.communicate()


@pytest.fixture(params=WAYS)
def stuck(request):
    with stuck_process(request.param) as process_and_store:
        yield process_and_store


def test_a_stuck_process_shows_where_its_request_is(stuck):
    _process, store = stuck
    (request,) = store.requests()
    (worker,) = store.workers()

    dump = Processes().dump(worker, request.thread)

    assert any("in forgotten" in line for line in dump.of(request.thread))
    assert len(Processes().dump(worker, request.thread).blocks) == len(dump.blocks)


@pytest.fixture
def in_python_alone(monkeypatch):
    """Only Python code writes stacks, however long that takes: neither faulthandler nor py-spy."""
    monkeypatch.setattr(Processes, "_ask_faulthandler", lambda *_: False)
    monkeypatch.setattr(stack_dump, "ask_py_spy", lambda _pid: None)


def dumped(worker, thread):
    """The stacks of a process, which may be slow to answer."""
    deadline = time.monotonic() + 60
    while True:
        dump = Processes().dump(worker, thread)
        if dump is not None and dump.of(thread) is not None:
            return dump
        assert time.monotonic() < deadline


def test_a_process_that_takes_commands_shows_its_stacks_at_a_signal_all_the_same(in_python_alone):
    """It has a pipe for interrupts, and shows its stacks at a signal."""
    with stuck_process("sleeping", interruptible=True) as (process, store):
        (request,) = store.requests()
        (worker,) = store.workers()
        assert worker.interruptible

        dump = dumped(worker, request.thread)

        assert any("in forgotten" in line for line in dump.of(request.thread))
        process.kill()
        assert process.communicate()[1] == b""


def test_a_handler_of_the_apps_own_is_never_called_for_stacks(in_python_alone):
    theirs = "signal.signal(stacks.ASK_SIGNAL, lambda *_: sys.exit('shutting down'))"
    with stuck_process("sleeping", theirs) as (process, store):
        (request,) = store.requests()
        (worker,) = store.workers()

        dump = dumped(worker, request.thread)

        assert any("in forgotten" in line for line in dump.of(request.thread))
        assert process.poll() is None


def test_of_a_dump_that_was_cut_off_no_other_stack_is_taken():
    text = 'Current thread 0x1 (most recent call first):\n  File "a.py", line 1 in other\nGreenlets:\n'
    assert stack_dump.parse(text).of(0x2) is None
    assert stack_dump.parse(text + "End of the stacks\n").of(0x2)[1:] == (
        '  File "a.py", line 1 in other',
    )


def test_who_does_not_answer_shows_nothing(stuck):
    process, store = stuck
    (worker,) = store.workers()
    file = stack_dump.open_stack_file(worker.owner)
    assert stack_dump.ask(file, lambda: True, 0, seconds=0.2) is None
    assert stack_dump.ask(file, lambda: False, 0, seconds=20) is None
    os.close(file)
    assert stack_dump.open_stack_file(worker.owner._replace(start=1)) is None
    assert process.poll() is None


def test_a_machine_that_stretches_each_look_does_not_stretch_the_wait_without_end(
    tmp_path, monkeypatch
):
    now, looks = [1_000.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def sleep_for_a_second(seconds):
        looks.append(seconds)
        now[0] += 1.0

    monkeypatch.setattr(time, "sleep", sleep_for_a_second)
    with (tmp_path / "stacks").open("w+b") as file:
        assert stack_dump.ask(file.fileno(), lambda: True, 0, seconds=1.5) is None

    assert len(looks) == 6


@pytest.fixture
def py_spy(tmp_path, monkeypatch):
    """Put a program in the place of py-spy: `py_spy(script)`."""

    def install(script):
        program = tmp_path / "py-spy"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o700)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return install


def test_py_spy_is_not_waited_for_without_an_end(py_spy, monkeypatch):
    """It reads the memory of a process that hangs, and may hang there too, even after a kill."""
    monkeypatch.setattr(stack_dump, "_PY_SPY_SECONDS", 0.1)
    waits = []
    wait = subprocess.Popen.wait

    def note(process, timeout=None):
        waits.append(timeout)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", note)
    py_spy("exec sleep 60")

    assert stack_dump.ask_py_spy(os.getpid()) is None
    assert None not in waits


def test_what_py_spy_says_is_shown_with_the_threads_that_run_first(py_spy):
    py_spy("printf 'Thread 1 (idle)\\n  a (a.py:1)\\nThread 2 (active)\\n  b (b.py:2)\\n'")
    (shown,) = stack_dump.ask_py_spy(os.getpid()).blocks

    assert shown[::2] == ("Thread 2 (active)", "Thread 1 (idle)")


def test_a_py_spy_that_fails_shows_nothing(py_spy):
    py_spy("echo Thread 1; exit 1")

    assert stack_dump.ask_py_spy(os.getpid()) is None


def test_a_dump_is_cut_into_its_threads():
    dump = stack_dump.parse(
        'Thread 0x0000000000000abc (most recent call first):\n  File "a.py", line 1 in one\n\n'
        'Current thread 0x0000000000000def (most recent call first):\n  File "b.py", line 2 in two\n'
        '  File "c.py", line 3 in three\n'
    )
    assert dump.of(0xABC)[1:] == ('  File "a.py", line 1 in one',)
    assert len(dump.of(0xDEF)) == 3
    assert dump.of(0x123) is None


BUSY = """
import sys, threading
import guardrails
from guardrails import SpeedLimit, testing

def busy(environ, start_response):
    if environ["PATH_INFO"] == "/stuck":
        for _ in range(3):
            threading.Thread(target=ask, args=("/",), daemon=True).start()
        print("ready", flush=True)
        threading.Event().wait(600)
    for _ in range(20):
        threading.Thread(target=sorted, args=([3, 2, 1],)).start()
    return testing.hello(environ, start_response)

app = SpeedLimit("1000000/s")(busy, store=sys.argv[1])

def ask(path):
    while True:
        testing.Client(app).get(path)

threading.Thread(target=ask, args=("/stuck",), daemon=True).start()
threading.Event().wait(600)
"""


def test_a_process_full_of_threads_shows_one_of_them_again_and_again_and_goes_on(in_python_alone):
    """It is asked again when it is slow: faulthandler would crash such a process."""
    name = f"shm:test-stacks-{secrets.token_hex(6)}?private&clients=100"
    process = subprocess.Popen([sys.executable, "-c", BUSY, name], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        store = guardrails.open_store(name)
        (worker,) = store.workers()
        (stuck,) = (request for request in store.requests() if request.path == "/stuck")
        for _ in range(100):
            dump = dumped(worker, stuck.thread)
            assert any(" in busy" in line for line in dump.of(stuck.thread))
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()

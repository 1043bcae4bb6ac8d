"""The stacks of a worker, asked for from outside, and a request that is ended by an exception."""

import os
import random
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from asking import private_store

import guardrails
from guardrails import SpeedLimit, interrupting, stacks, testing
from guardrails.store.processes import Owner, this_process
from support import Browser

STUCK = """
import sys, time
import guardrails
from guardrails import SpeedLimit, testing

def forgotten(environ, start_response):
    print("ready", flush=True)
    {stuck}

app = SpeedLimit("9/s")(forgotten, store=sys.argv[1])
testing.Client(app).get("/")
"""
WAYS = {
    "sleeping": "time.sleep(60)",
    "looping": "while True: pass",
    "in C with the GIL": "testing.holding_the_gil(environ, start_response)",
}


@pytest.fixture(params=WAYS)
def stuck(request):
    name = f"shm:test-stacks-{secrets.token_hex(6)}?private&clients=100"
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK.format(stuck=WAYS[request.param]), name], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    yield process, guardrails.open_store(name)
    process.kill()
    process.communicate()


def test_a_stuck_process_shows_where_its_request_is(stuck):
    process, store = stuck
    (request,) = store.requests()
    (worker,) = store.workers()
    owner = Owner(worker.pid, worker.process_start, this_process().namespace)

    dump = stacks.ask(
        stacks.open_file(owner), lambda: os.kill(process.pid, worker.dump_signal), seconds=20
    )

    assert any("in forgotten" in line for line in dump.of(request.thread))
    again = stacks.ask(
        stacks.open_file(owner), lambda: os.kill(process.pid, worker.dump_signal), seconds=20
    )
    assert len(again.blocks) == len(dump.blocks)


def test_who_does_not_answer_shows_nothing(stuck):
    process, store = stuck
    (worker,) = store.workers()
    owner = Owner(worker.pid, worker.process_start, this_process().namespace)
    assert stacks.ask(stacks.open_file(owner), lambda: None, seconds=0.2) is None
    assert stacks.open_file(owner._replace(start=1)) is None
    assert process.poll() is None


def test_a_dump_is_cut_into_its_threads():
    dump = stacks.parse(
        'Thread 0x0000000000000abc (most recent call first):\n  File "a.py", line 1 in one\n\n'
        'Current thread 0x0000000000000def (most recent call first):\n  File "b.py", line 2 in two\n'
        '  File "c.py", line 3 in three\n'
    )
    assert dump.of(0xABC)[1:] == ('  File "a.py", line 1 in one',)
    assert len(dump.of(0xDEF)) == 3
    assert dump.of(0x123) is None


LISTENING = """
import os, signal, sys
from guardrails import stacks
{before}
print(stacks.listen())
"""


@pytest.mark.parametrize(
    ("before", "listens"),
    [("", True), ("signal.signal(stacks.DUMP_SIGNAL, lambda *_: None)", False)],
)
def test_a_signal_that_somebody_else_uses_is_left_to_them(before, listens):
    ran = subprocess.run(
        [sys.executable, "-c", LISTENING.format(before=before)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (int(ran.stdout) != 0) == listens


def test_what_dead_processes_left_is_removed(tmp_path):
    tmp_path.chmod(0o700)
    me = this_process()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for kind in ("stack", "interrupt"):
        (tmp_path / f"{kind}-{me.namespace}-{dead.pid}-1").touch()
        (tmp_path / f"{kind}-{me.namespace}-{os.getpid()}-{me.start}").touch()
        (tmp_path / f"{kind}-1-{dead.pid}-1").touch()  # of another container
    (tmp_path / "stack-of-cards-2").touch()

    stacks._sweep(tmp_path)

    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"stack-of-cards-2"} | {
        name
        for kind in ("stack", "interrupt")
        for name in (f"{kind}-{me.namespace}-{os.getpid()}-{me.start}", f"{kind}-1-{dead.pid}-1")
    }


@pytest.fixture
def interrupted(monkeypatch):
    """A browser before an app that loops, in a process that takes orders."""
    monkeypatch.setattr(interrupting, "_listening_in", 0)
    store = private_store(clients=100)
    release = threading.Event()
    entered = threading.Event()
    seen = []

    def loop():
        # In a frame of its own: Python may raise at a jump back, which belongs to no try around it.
        while not release.is_set():
            pass

    def looping(environ, start_response):
        try:
            entered.set()
            loop()
        except guardrails.RequestInterruptedError:
            seen.append("interrupted")
            raise
        return testing.hello(environ, start_response)

    app = guardrails.throttle(looping, SpeedLimit("9/s"), store=store, interruptible=True)
    yield Browser(app), store, entered, release, seen
    release.set()
    store.close()
    interrupting.pending.clear()


def ask_in_a_thread(browser, answers):
    def ask():
        try:
            answers.append(browser.get("/").status_code)
        except guardrails.RequestInterruptedError:
            answers.append("raised")
        # Whatever was meant for the request must not come now.
        for _ in range(200_000):
            pass
        answers.append("on")

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_a_request_is_ended_by_an_exception_in_its_thread_and_no_other(interrupted):
    browser, store, entered, release, seen = interrupted
    answers = []
    thread = ask_in_a_thread(browser, answers)
    assert entered.wait(20)
    (request,) = store.requests()
    assert store.workers()[0].interruptible

    assert interrupting.order(this_process(), request.generation, request.thread)
    thread.join(20)

    assert answers == ["raised", "on"]
    assert seen == ["interrupted"]
    assert store.requests() == []
    assert interrupting.pending == {}
    release.set()
    entered.clear()
    answers.clear()
    ask_in_a_thread(browser, answers).join(20)
    assert answers == [200, "on"]


def test_an_order_for_a_request_that_is_over_meets_nobody(interrupted):
    browser, store, entered, release, _seen = interrupted
    answers = []
    thread = ask_in_a_thread(browser, answers)
    assert entered.wait(20)
    (request,) = store.requests()

    interrupting._interrupt(store, request.generation + 1, request.thread)
    interrupting._interrupt(store, request.generation, request.thread + 1)
    release.set()
    thread.join(20)

    assert answers == [200, "on"]
    assert interrupting.pending == {}


def test_what_is_pending_when_a_request_ends_is_taken_back(interrupted):
    """The order comes in the last instant: the request ends, and the thread goes on undisturbed."""
    store = interrupted[1]
    ends = []

    def ending(environ, start_response):
        (request,) = store.requests()
        # As the waiting thread does it, but nothing runs in between that could raise.
        with interrupting._lock:
            interrupting.pending[request.thread] = request.generation
        ends.append(request.thread)
        return testing.hello(environ, start_response)

    app = guardrails.throttle(ending, SpeedLimit("99/s"), store=store, interruptible=True)
    assert Browser(app).get("/").status_code == 200
    assert interrupting.pending == {}
    assert ends == [threading.get_ident()]


def serve_in_a_row(app, count, told):
    """Ask so many times; note how often the exception came out of a request, and how often not."""
    browser = Browser(app)
    for _ in range(count):
        try:
            try:
                browser.get("/")
            except guardrails.RequestInterruptedError:
                told["in a request"] += 1
                continue
            for _ in range(3000):
                pass
        except guardrails.RequestInterruptedError:
            told["elsewhere"] += 1


def test_hundreds_of_interrupts_end_only_what_they_were_meant_for(interrupted):
    """Requests end by themselves and by order, in a race; whoever survives has met no exception."""
    store = interrupted[1]
    lengths = random.Random(7)

    def short(environ, start_response):
        until = time.monotonic() + lengths.uniform(0, 0.01)
        while time.monotonic() < until:
            pass
        return testing.hello(environ, start_response)

    app = guardrails.throttle(short, SpeedLimit("100000/s"), store=store, interruptible=True)
    told = Counter()
    done = threading.Event()

    def order():
        while not done.is_set():
            for request in store.requests():
                interrupting.order(this_process(), request.generation, request.thread)

    threads = [threading.Thread(target=serve_in_a_row, args=(app, 150, told)) for _ in range(2)]
    ordering = threading.Thread(target=order)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    try:
        for thread in (*threads, ordering):
            thread.start()
        for thread in threads:
            thread.join(60)
        done.set()
        ordering.join(20)
    finally:
        sys.setswitchinterval(usual)

    assert told["in a request"] > 0
    assert told["elsewhere"] == 0
    # Rows whose leaving met an exception go with the next request.
    assert Browser(app).get("/").status_code == 200
    deadline = time.monotonic() + 20
    while store.requests():
        assert time.monotonic() < deadline


def test_without_being_asked_for_no_thread_is_started(serve):
    before = threading.active_count()
    assert serve(SpeedLimit("9/s")).get("/").status_code == 200
    assert threading.active_count() == before

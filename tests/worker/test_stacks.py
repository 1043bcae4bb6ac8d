"""The stacks of a worker, asked for from outside, and a request that is ended by an exception."""

import gc
import io
import os
import random
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from short_forms import private_store

import guardrails
from guardrails import SpeedLimit, testing
from guardrails.store.process_files import remove_files_of_dead
from guardrails.store.processes import this_process
from guardrails.watchdog.actions import Processes
from guardrails.worker import control_pipe, interrupt, stacks
from guardrails.worker.process import current_process
from support import Browser

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
    """Stacks as Python writes them: however long that takes, nobody else is asked."""
    monkeypatch.setattr(Processes, "_ask_faulthandler", lambda *_: False)
    monkeypatch.setattr(stacks, "ask_py_spy", lambda _pid: None)


def dumped(worker, thread):
    """The stacks of a process, which may be slow to answer."""
    deadline = time.monotonic() + 60
    while True:
        dump = Processes().dump(worker, thread)
        if dump is not None and dump.of(thread) is not None:
            return dump
        assert time.monotonic() < deadline


def test_who_takes_other_orders_too_is_asked_as_it_can_answer(in_python_alone):
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


class Lazy:
    """As a framework's user or settings: whoever asks what it is has it looked up."""

    evaluated = 0

    @property
    def __class__(self):
        Lazy.evaluated += 1
        raise ReferenceError("what it stood for is gone")


def test_lazy_objects_are_not_evaluated_for_a_dump(monkeypatch):
    lazy = Lazy()
    file = io.BytesIO()
    monkeypatch.setitem(sys.modules, "greenlet", SimpleNamespace(greenlet=type("greenlet", (), {})))
    writer = stacks.StackFile(control_pipe.ControlPipe())
    writer._shows_greenlets, writer._file = True, file
    Lazy.evaluated = 0
    writer.write(None)
    assert stacks.parse(file.getvalue().decode()).complete
    assert Lazy.evaluated == 0
    assert lazy is not None


def test_what_is_raised_while_stacks_are_written_reaches_the_app(monkeypatch):
    """A deadline of the app's, or an order to end: it is not the writing that failed."""

    class DeadlineError(Exception):
        pass

    def late(*_arguments):
        raise DeadlineError

    monkeypatch.setattr(stacks, "_block", late)
    writer = stacks.StackFile(control_pipe.ControlPipe())
    writer._file = io.BytesIO()
    with pytest.raises(DeadlineError):
        writer._write_at_a_signal(0, sys._getframe())


def test_of_a_dump_that_was_cut_off_no_other_stack_is_taken():
    text = 'Current thread 0x1 (most recent call first):\n  File "a.py", line 1 in other\nGreenlets:\n'
    assert stacks.parse(text).of(0x2) is None
    assert stacks.parse(text + "End of the stacks\n").of(0x2)[1:] == ('  File "a.py", line 1 in other',)


def test_no_thread_waits_for_orders_where_threads_are_greenlets(monkeypatch):
    """It would hold up the hub, and with it every request."""
    patched = SimpleNamespace(is_module_patched=lambda name: name == "threading")
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="threads are greenlets here"):
        control_pipe.ControlPipe().handle(control_pipe.SHOW_STACKS, lambda *_: None)
    assert set(threading.enumerate()) == before


def test_who_does_not_answer_shows_nothing(stuck):
    process, store = stuck
    (worker,) = store.workers()
    file = stacks.open_stack_file(worker.owner)
    assert stacks.ask(file, lambda: True, 0, seconds=0.2) is None
    assert stacks.ask(file, lambda: False, 0, seconds=20) is None
    os.close(file)
    assert stacks.open_stack_file(worker.owner._replace(start=1)) is None
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
from guardrails.worker import stacks
from guardrails.worker.process import current_process
from guardrails.worker.server import Server
{before}
print(current_process().stacks.install(Server("plain", threads=1)))
"""


@pytest.mark.parametrize(
    ("before", "listens"),
    [
        ("", True),
        ("signal.signal(stacks.DUMP_SIGNAL, lambda *_: None)", False),
        ("import faulthandler; faulthandler.register(stacks.DUMP_SIGNAL)", False),
    ],
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
    for kind in ("stack", "control"):
        (tmp_path / f"{kind}-{me.namespace}-{dead.pid}-1").touch()
        (tmp_path / f"{kind}-{me.namespace}-{os.getpid()}-{me.start}").touch()
        (tmp_path / f"{kind}-1-{dead.pid}-1").touch()  # of another container
    (tmp_path / "stack-of-cards-2").touch()

    remove_files_of_dead(tmp_path)

    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"stack-of-cards-2"} | {
        name
        for kind in ("stack", "control")
        for name in (f"{kind}-{me.namespace}-{os.getpid()}-{me.start}", f"{kind}-1-{dead.pid}-1")
    }


@pytest.fixture
def interrupted():
    """A browser before an app that loops, in a process that takes orders."""
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
    assert entered.wait(60)
    (request,) = store.requests()
    assert store.workers()[0].interruptible

    assert control_pipe.send_command(
        this_process(), control_pipe.INTERRUPT, request.generation, request.thread
    )
    thread.join(60)

    assert answers == ["raised", "on"]
    assert seen == ["interrupted"]
    assert store.requests() == []
    assert current_process().interrupts._at_work == {}
    release.set()
    entered.clear()
    answers.clear()
    ask_in_a_thread(browser, answers).join(60)
    assert answers == [200, "on"]


def test_an_order_for_a_request_that_is_over_meets_nobody(interrupted):
    browser, store, entered, release, _seen = interrupted
    answers = []
    thread = ask_in_a_thread(browser, answers)
    assert entered.wait(60)
    (request,) = store.requests()

    current_process().interrupts.interrupt(request.generation + 1, request.thread)
    release.set()
    thread.join(60)

    assert answers == [200, "on"]
    assert current_process().interrupts._at_work == {}


def command(request):
    """Order its end, and do a little: an exception would come meanwhile."""
    current_process().interrupts.interrupt(request.generation, request.thread)
    for _ in range(1000):
        pass


def ordering(real, *, after):
    """A verb of a store, during which the request is ordered to end."""

    def verb(open_request, *given, **named):
        if not after:
            command(open_request)
        answer = real(open_request, *given, **named)
        if after:
            command(open_request)
        return answer

    return verb


def test_an_order_that_comes_while_a_request_is_let_in_ends_it_before_its_app(interrupted, monkeypatch):
    store = interrupted[1]
    app = guardrails.throttle(testing.hello, SpeedLimit("99/s"), store=store, interruptible=True)
    assert Browser(app).get("/").status_code == 200
    monkeypatch.setattr(store, "enter", ordering(store.enter, after=True))

    with pytest.raises(guardrails.RequestInterruptedError):
        Browser(app).get("/")
    assert app.errors == {}
    assert store.requests() == []


def test_an_order_that_comes_while_a_request_leaves_lets_it_end(interrupted, monkeypatch):
    store = interrupted[1]
    app = guardrails.throttle(testing.hello, SpeedLimit("99/s"), store=store, interruptible=True)
    monkeypatch.setattr(store, "leave", ordering(store.leave, after=False))

    assert Browser(app).get("/").status_code == 200
    assert app.errors == {}
    assert store.requests() == []


def raising(environ, start_response):
    raise ValueError("the app's own")


@pytest.mark.parametrize(
    ("verb", "app"), [("enter", testing.hello), ("update", testing.hello), ("leave", raising)]
)
def test_an_interrupted_request_is_not_a_failing_store(interrupted, monkeypatch, verb, app):
    """It is interrupted within an inner throttle's store, where the outer one's app is at work."""
    outer_store, inner_store = interrupted[1], private_store(clients=100)
    real = getattr(inner_store, verb)

    def interrupted_there(*given, **named):
        (request,) = outer_store.requests()
        command(request)
        pytest.fail("nobody interrupted it")

    slot = guardrails.MaxConcurrentReqs(9, hold="call")
    inner = guardrails.throttle(app, slot, store=inner_store)
    outer = guardrails.throttle(inner, SpeedLimit("99/s"), store=outer_store, interruptible=True)
    monkeypatch.setattr(inner_store, verb, interrupted_there)
    with pytest.raises(guardrails.RequestInterruptedError):
        Browser(outer).get("/")

    assert inner.errors == {}
    assert outer.errors == {}
    monkeypatch.setattr(inner_store, verb, real)
    inner.app = testing.hello
    assert Browser(outer).get("/").status_code == 200
    assert inner_store.requests() == []
    assert outer_store.requests() == []
    inner_store.close()


@pytest.fixture
def ordered(interrupted, monkeypatch):
    """Requests are ordered to end, each in its last instant; gives whom."""
    store = interrupted[1]
    interrupts = current_process().interrupts
    real = interrupts._end
    ordered = []

    def end(generation, work):
        if not ordered:
            ordered.append(generation)
            (request,) = store.requests()
            command(request)
            pytest.fail("nobody interrupted it")
        real(generation, work)

    monkeypatch.setattr(interrupts, "_end", end)
    return ordered


def test_an_order_in_the_last_instant_lets_the_request_end(interrupted, ordered):
    store = interrupted[1]
    app = guardrails.throttle(testing.hello, SpeedLimit("99/s"), store=store, interruptible=True)

    assert Browser(app).get("/").status_code == 200
    assert len(ordered) == 1
    assert app.errors == {}
    assert store.requests() == []
    assert current_process().interrupts._at_work == {}


def test_an_order_in_the_last_instant_does_not_replace_the_apps_own_exception(interrupted, ordered):
    store = interrupted[1]
    app = guardrails.throttle(raising, SpeedLimit("99/s"), store=store, interruptible=True)
    with pytest.raises(ValueError, match="the app's own"):
        Browser(app).get("/")
    assert len(ordered) == 1
    assert current_process().interrupts._at_work == {}


def test_who_left_a_response_open_is_met_nowhere_else(interrupted):
    """Its thread waits for work by now, or serves somebody else."""
    store = interrupted[1]
    app = guardrails.throttle(streaming, SpeedLimit("99/s"), store=store, interruptible=True)
    held = Browser(app).hold()
    (open_still,) = store.requests()

    def next_one(environ, start_response):
        command(open_still)
        return testing.hello(environ, start_response)

    command(open_still)
    later = guardrails.throttle(next_one, SpeedLimit("99/s"), store=store, interruptible=True)
    assert Browser(later).get("/").status_code == 200
    held.close()
    assert store.requests() == []
    assert current_process().interrupts._at_work == {}


def test_an_order_between_two_parts_of_a_response_ends_it_at_the_next(interrupted):
    store = interrupted[1]
    app = guardrails.throttle(streaming, SpeedLimit("99/s"), store=store, interruptible=True)
    held = Browser(app).hold()
    parts = held.iter_encoded()
    assert next(parts) == b"one"

    (request,) = store.requests()
    command(request)

    with pytest.raises(guardrails.RequestInterruptedError):
        next(parts)
    held.close()
    assert store.requests() == []


def told_to_end(store):
    """An app whose request is ordered to end while it runs."""

    def app(environ, start_response):
        (request,) = store.requests()
        command(request)
        return testing.hello(environ, start_response)

    return app


def test_only_who_allows_it_is_interrupted(interrupted):
    """Two apps in one process, on one store."""
    store = interrupted[1]

    willing, unwilling = (
        guardrails.throttle(
            told_to_end(store), SpeedLimit("99/s"), store=store, interruptible=interruptible
        )
        for interruptible in (True, False)
    )
    with pytest.raises(guardrails.RequestInterruptedError):
        Browser(willing).get("/")
    assert Browser(unwilling).get("/").status_code == 200
    assert store.workers()[0].interruptible
    with pytest.raises(guardrails.RequestInterruptedError):
        Browser(willing).get("/")


def test_an_inner_throttle_may_allow_it(interrupted):
    store = interrupted[1]

    inner = guardrails.throttle(told_to_end(store), SpeedLimit("99/s"), interruptible=True)
    outer = guardrails.throttle(inner, SpeedLimit("9/s", name="outer"), store=store)
    with pytest.raises(guardrails.RequestInterruptedError):
        Browser(outer).get("/")
    assert store.workers()[0].interruptible
    assert store.requests() == []


def test_a_request_that_is_dropped_while_another_is_interrupted_holds_up_nobody(
    interrupted, monkeypatch
):
    """A response in a cycle ends wherever memory is tidied up, also in the midst of an order."""
    browser, store, entered, _release, _seen = interrupted

    class Cycle:
        def __init__(self, response):
            self.response, self.me = response, self

    answers = []
    thread = ask_in_a_thread(browser, answers)
    assert entered.wait(60)
    (request,) = store.requests()
    dropping = guardrails.throttle(streaming, SpeedLimit("9/s"), store=store, interruptible=True)
    Cycle(Browser(dropping).hold())
    raise_in = interrupt._raise_in

    def tidied(thread, error):
        gc.collect()
        raise_in(thread, error)

    monkeypatch.setattr(interrupt, "_raise_in", tidied)
    ordering = threading.Thread(
        target=current_process().interrupts.interrupt,
        args=(request.generation, request.thread),
        daemon=True,
    )
    ordering.start()
    ordering.join(60)
    assert not ordering.is_alive(), "the order waits for itself"
    thread.join(60)

    assert answers == ["raised", "on"]
    assert store.requests() == []
    assert current_process().interrupts._at_work == {}


def streaming(environ, start_response):
    start_response("200 OK", [])
    yield b"one"
    yield b"two"


def test_requests_in_each_of_several_stores_can_be_interrupted(interrupted):
    store = private_store(clients=100)
    told = []

    def ends_itself(environ, start_response):
        (request,) = store.requests()
        try:
            command(request)
        except guardrails.RequestInterruptedError:
            told.append("interrupted")
            raise
        return testing.hello(environ, start_response)

    app = guardrails.throttle(ends_itself, SpeedLimit("9/s"), store=store, interruptible=True)
    try:
        with pytest.raises(guardrails.RequestInterruptedError):
            Browser(app).get("/")
    finally:
        store.close()


def test_who_closes_the_pipe_for_orders_ends_them_and_nothing_more(caplog):
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    control_pipe._serve(reading, {})
    assert "control pipe: it was closed" in caplog.text


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

    def command():
        while not done.is_set():
            for request in store.requests():
                control_pipe.send_command(
                    this_process(), control_pipe.INTERRUPT, request.generation, request.thread
                )

    threads = [threading.Thread(target=serve_in_a_row, args=(app, 150, told)) for _ in range(2)]
    ordering = threading.Thread(target=command)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    try:
        for thread in (*threads, ordering):
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        done.set()
        ordering.join(60)
    finally:
        sys.setswitchinterval(usual)

    assert told["in a request"] > 0
    assert told["elsewhere"] == 0
    assert app.errors == {}
    assert store.requests() == []
    assert current_process().interrupts._at_work == {}


def test_without_being_asked_for_no_thread_is_started(serve):
    before = set(threading.enumerate())
    assert serve(SpeedLimit("9/s")).get("/").status_code == 200
    assert set(threading.enumerate()) <= before


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
    """faulthandler, asked as often while they run, ends such a process: who is slow is asked again."""
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


def test_a_process_that_has_become_another_program_is_not_signalled():
    """It has the same pid and start, but no handler: the signal would end it."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        for number in (stacks.ASK_SIGNAL, stacks.DUMP_SIGNAL):
            assert not stacks.catches(process.pid, number)
    finally:
        process.kill()
        process.wait()

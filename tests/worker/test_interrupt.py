"""A request that is ended by an exception in its thread."""

import gc
import os
import random
import signal
import sys
import threading
import time
from collections import Counter

import pytest
from short_forms import private_store

import guardrails
from guardrails import SpeedLimit, testing
from guardrails.store.processes import this_process
from guardrails.worker import control_pipe, interrupt
from guardrails.worker.process import current_process
from support import Browser


@pytest.fixture
def interrupted():
    """A browser before an app that loops, in a process that can be interrupted."""
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
    assert entered.wait(20)
    (request,) = store.requests()
    assert store.workers()[0].interruptible

    assert control_pipe.send_command(
        this_process(), control_pipe.INTERRUPT, request.generation, request.thread
    )
    thread.join(20)

    assert answers == ["raised", "on"]
    assert seen == ["interrupted"]
    assert store.requests() == []
    assert current_process().interrupts._at_work == {}
    release.set()
    entered.clear()
    answers.clear()
    ask_in_a_thread(browser, answers).join(20)
    assert answers == [200, "on"]


def test_a_command_for_a_request_that_is_over_meets_nobody(interrupted):
    browser, store, entered, release, _seen = interrupted
    answers = []
    thread = ask_in_a_thread(browser, answers)
    assert entered.wait(20)
    (request,) = store.requests()

    current_process().interrupts.interrupt(request.generation + 1, request.thread)
    release.set()
    thread.join(20)

    assert answers == [200, "on"]
    assert current_process().interrupts._at_work == {}


def command(request):
    """Interrupt a request, and execute a little: an exception would come meanwhile."""
    current_process().interrupts.interrupt(request.generation, request.thread)
    for _ in range(1000):
        pass


def with_command(real, *, after):
    """A verb of a store, during which a command to end the request comes."""

    def verb(open_request, *given, **named):
        if not after:
            command(open_request)
        answer = real(open_request, *given, **named)
        if after:
            command(open_request)
        return answer

    return verb


def test_a_command_that_comes_while_a_request_is_let_in_ends_it_before_its_app(
    interrupted, monkeypatch
):
    store = interrupted[1]
    app = guardrails.throttle(testing.hello, SpeedLimit("99/s"), store=store, interruptible=True)
    assert Browser(app).get("/").status_code == 200
    monkeypatch.setattr(store, "enter", with_command(store.enter, after=True))

    with pytest.raises(guardrails.RequestInterruptedError):
        Browser(app).get("/")
    assert app.errors == {}
    assert store.requests() == []


def test_a_command_that_comes_while_a_request_leaves_lets_it_end(interrupted, monkeypatch):
    store = interrupted[1]
    app = guardrails.throttle(testing.hello, SpeedLimit("99/s"), store=store, interruptible=True)
    monkeypatch.setattr(store, "leave", with_command(store.leave, after=False))

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
def commanded(interrupted, monkeypatch):
    """A command comes in the last instant of the first request; returns the interrupted generations."""
    store = interrupted[1]
    interrupts = current_process().interrupts
    real = interrupts._end
    commanded = []

    def end(generation, work):
        if not commanded:
            commanded.append(generation)
            (request,) = store.requests()
            command(request)
            pytest.fail("nobody interrupted it")
        real(generation, work)

    monkeypatch.setattr(interrupts, "_end", end)
    return commanded


def test_a_command_in_the_last_instant_lets_the_request_end(interrupted, commanded):
    store = interrupted[1]
    app = guardrails.throttle(testing.hello, SpeedLimit("99/s"), store=store, interruptible=True)

    assert Browser(app).get("/").status_code == 200
    assert len(commanded) == 1
    assert app.errors == {}
    assert store.requests() == []
    assert current_process().interrupts._at_work == {}


def test_a_command_in_the_last_instant_does_not_replace_the_apps_own_exception(interrupted, commanded):
    store = interrupted[1]
    app = guardrails.throttle(raising, SpeedLimit("99/s"), store=store, interruptible=True)
    with pytest.raises(ValueError, match="the app's own"):
        Browser(app).get("/")
    assert len(commanded) == 1
    assert current_process().interrupts._at_work == {}


def test_who_left_a_response_open_is_met_nowhere_else(interrupted):
    """Its thread is idle by now, or serves another request."""
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


def test_a_command_between_two_parts_of_a_response_ends_it_at_the_next(interrupted):
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
    """An app that a command interrupts while it runs."""

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
    """The garbage collector ends a response in a cycle at any time, also during a command."""
    browser, store, entered, _release, _seen = interrupted

    class Cycle:
        def __init__(self, response):
            self.response, self.me = response, self

    answers = []
    thread = ask_in_a_thread(browser, answers)
    assert entered.wait(20)
    (request,) = store.requests()
    dropping = guardrails.throttle(streaming, SpeedLimit("9/s"), store=store, interruptible=True)
    Cycle(Browser(dropping).hold())
    raise_in = interrupt._raise_in

    def tidied(thread, error):
        gc.collect()
        raise_in(thread, error)

    monkeypatch.setattr(interrupt, "_raise_in", tidied)
    sender = threading.Thread(
        target=current_process().interrupts.interrupt,
        args=(request.generation, request.thread),
        daemon=True,
    )
    sender.start()
    sender.join(20)
    assert not sender.is_alive(), "the command waits for itself"
    thread.join(20)

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


# Python drops an exception that lands in a callback of the garbage collector. Hypothesis sets one.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function gc_cumulative_time:pytest.PytestUnraisableExceptionWarning"
)
def test_hundreds_of_interrupts_end_only_what_they_were_meant_for(interrupted):
    """Requests end by themselves and by commands, in a race. No exception comes outside a request."""
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
    sender = threading.Thread(target=command)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    try:
        for thread in (*threads, sender):
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        done.set()
        sender.join(20)
    finally:
        sys.setswitchinterval(usual)

    assert told["in a request"] > 0
    assert told["elsewhere"] == 0
    assert app.errors == {}
    assert store.requests() == []
    assert current_process().interrupts._at_work == {}


def test_a_child_that_is_forked_while_a_command_is_carried_out_gets_out():
    """Another thread of its parent held the lock at the fork, and releases it in the parent alone."""
    store = private_store(clients=100)
    held, done = threading.Event(), threading.Event()
    child = []

    def forking(environ, start_response):
        lock = current_process().interrupts._lock

        def carry_out():
            with lock:
                held.set()
                done.wait(60)

        threading.Thread(target=carry_out, daemon=True).start()
        assert held.wait(60)
        child.append(os.fork())
        done.set()
        return testing.hello(environ, start_response)

    app = guardrails.throttle(forking, SpeedLimit("9/s"), store=store, interruptible=True)
    if child == [] and Browser(app).get("/").status_code and child[0] == 0:
        os._exit(7)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child[0], os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    if ended == (0, 0):
        os.kill(child[0], signal.SIGKILL)
        os.waitpid(child[0], 0)
    store.close()

    assert os.waitstatus_to_exitcode(ended[1]) == 7

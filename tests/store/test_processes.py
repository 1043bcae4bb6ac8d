"""Real processes that share one store: what is exact stays exact when some die, stop or are cut off."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from short_forms import MINUTE, SECOND, meter, open_request, private_store, requirement, slot

from guardrails import MaxConcurrentReqs, testing, throttle
from guardrails.errors import StoreBusyError
from guardrails.store import directory, lifecycle, shared
from guardrails.store.engine.file import StoreFile
from guardrails.store.shared import SharedStore
from support import Exchange

PROGRAM = Path(__file__).with_name("program.py")


def poll(condition, seconds=60.0):
    """Wait for a condition, at most so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.005)
    return False


def patiently(call):
    """Ask again while the store says "busy", as the middleware does with what it has to give back."""
    answers = []

    def answered():
        with contextlib.suppress(StoreBusyError):
            answers.append(call())
        return answers

    assert poll(answered)
    return answers[0]


@pytest.fixture
def start():
    """Start other Pythons that find the store by its name; nothing is inherited."""
    started = []

    def begin(*arguments):
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate(timeout=60)


def said(process, told=""):
    """Its last words."""
    out, _ = process.communicate(told, timeout=200)
    assert process.returncode == 0
    return out.split()


@contextlib.contextmanager
def forked(work):
    """A child of this process that does `work`, and is gone afterwards."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.fixture(params=["mutex", "flock"])
def store(request):
    store = private_store(clients=256, rows=64, lock=request.param)
    yield store
    store.close()


@pytest.mark.one_python
def test_processes_that_hammer_one_meter_admit_exactly_its_burst(store, start):
    store.requests()
    processes = [start("hammer-meter", store.name, 400) for _ in range(4)]
    admitted = [int(said(process)[0]) for process in processes]
    assert sum(admitted) == 400
    assert store.counters()["meter"].admitted == 400


@pytest.mark.one_python
def test_processes_that_hammer_one_slot_are_never_more_than_its_limit(store, tmp_path, start):
    store.requests()
    counted = tmp_path / "holders"
    counted.write_bytes(bytes(16))
    processes = [start("hammer-slot", store.name, 3, counted, 400) for _ in range(4)]
    at_first = [int(process.stdout.readline()) for process in processes]
    assert sum(at_first) == 3
    entered = [int(said(process, "go\n")[0]) for process in processes]
    holders, most = int.from_bytes(counted.read_bytes()[:8]), int.from_bytes(counted.read_bytes()[8:])
    assert holders == 0
    assert most <= 3
    assert sum(entered) + 3 == store.counters()["cap"].admitted
    assert store.slots_held() == {}


@pytest.mark.thorough
@pytest.mark.one_python
def test_sigkill_at_any_instant_loses_no_slot_and_never_exceeds_the_limit(store):
    """Three children enter and leave as fast as they can; 300 times one of them is killed."""
    cap = requirement(slot("cap", limit=2), meter("rate", count=10**6, burst=10**6), guard="cap")
    store.requests()

    def hammer():
        own = SharedStore(store.name, private=True)
        while True:
            entering = open_request(cap, key=random.choice([b"one", b"two"]))
            patiently(lambda entering=entering: own.enter(entering))
            patiently(lambda entering=entering: own.leave(entering) or True)

    kills, limit = 300, 4
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(forked(hammer)) for _ in range(3)]
        for number in range(kills):
            time.sleep(random.uniform(0, 0.006))
            index = number % len(children)
            os.kill(children[index], signal.SIGKILL)
            os.waitpid(children[index], 0)
            children[index] = stack.enter_context(forked(hammer))
            # A reading while one request leaves and another enters may count both.
            assert poll(lambda: patiently(store.slots_held).get("cap", 0) <= limit)
    for key in (b"one", b"two"):
        assert all(
            poll(lambda key=key: store.enter(open_request(cap, key=key)).admitted) for _ in range(2)
        )
        assert not store.enter(open_request(cap, key=key)).admitted
    assert store.slots_held() == {"cap": 4}
    assert len(store.requests()) == 4
    assert store.alarms()["repaired"] > 0


def test_a_worker_killed_with_slots_in_its_hands_gives_them_back(store, start):
    cap = requirement(slot("cap", limit=2), guard="cap")
    process = start("hold", store.name, 2)
    assert process.stdout.readline() == "holding\n"
    assert not store.enter(open_request(cap)).admitted
    process.kill()
    process.communicate(timeout=60)
    assert poll(lambda: store.enter(open_request(cap)).admitted)
    assert store.slots_held() == {"cap": 1}
    assert store.alarms()["reclaimed"] == 2


def test_a_zombie_holds_nothing(store):
    cap = requirement(slot("cap", limit=1), guard="cap")

    def hold():
        SharedStore(store.name, private=True).enter(open_request(cap))

    store.requests()
    with forked(hold) as pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert poll(lambda: store.enter(open_request(cap)).admitted)


def test_a_new_worker_takes_back_what_dead_ones_held(store, start):
    store.requests()
    process = start("hold", store.name, 2)
    assert process.stdout.readline() == "holding\n"
    process.kill()
    process.communicate(timeout=60)
    fresh = SharedStore(store.name, private=True)
    assert fresh.slots_held() == {}
    fresh.close()


def test_a_private_file_that_was_just_replaced_is_not_swept_away(start, monkeypatch):
    """A process that makes another store removes private files that no process has open."""
    store = private_store(clients=256, rows=64, lock="mutex")
    cap = requirement(slot("cap", limit=9), guard="cap")
    spent = requirement(meter("spent", period=60 * MINUTE), guard="spent")
    assert store.enter(open_request(cap, spent)).admitted
    process = start("stop-inside", store.name, 1)
    assert poll(lambda: _state(process.pid) == "T")
    open_store_file = lifecycle.open_store_file

    def opened_while_another_sweeps(spec, *, create=True):
        for folder in filter(Path.exists, directory.folders()):
            with directory.directory_lock(folder):
                lifecycle._sweep(folder)
        return open_store_file(spec, create=create)

    monkeypatch.setattr(lifecycle, "open_store_file", opened_while_another_sweeps)

    def enters():
        with contextlib.suppress(StoreBusyError):
            return store.enter(open_request(cap))
        return None

    assert poll(lambda: enters() is not None)
    assert not store.enter(open_request(spent)).admitted
    process.kill()
    store.close()


def test_a_private_file_that_an_observer_has_replaced_is_there_for_the_workers(start):
    """No worker has opened it yet when another process sweeps and the observer ends."""
    store = private_store(clients=256, rows=64, lock="mutex")
    cap = requirement(slot("cap", limit=9), guard="cap")
    spent = requirement(meter("spent", period=60 * MINUTE), guard="spent")
    assert store.enter(open_request(cap, spent)).admitted
    observer = SharedStore(store.name, private=True, create=False)
    (request,) = observer.requests()
    process = start("stop-inside", store.name, 1)
    assert poll(lambda: _state(process.pid) == "T")

    def penalizes():
        with contextlib.suppress(StoreBusyError):
            return observer.penalize(request, SECOND, 0)
        return None

    assert poll(lambda: penalizes() is not None)
    for folder in filter(Path.exists, directory.folders()):
        with directory.directory_lock(folder):
            lifecycle._sweep(folder)
    observer.close()
    assert not store.enter(open_request(spent)).admitted
    assert store.slots_held() == {"cap": 1}
    process.kill()
    store.close()


class BusyMachine:
    """A clock on a machine so busy that each pause lasts 30 ms, and a lock that is held meanwhile."""

    def __init__(self, monkeypatch, pauses_until_free):
        self.now = 100.0
        self.pauses = 0
        real_attempt = StoreFile.attempt

        def attempt(file, *arguments):
            if self.pauses < pauses_until_free:
                raise StoreBusyError("its lock is held")
            return real_attempt(file, *arguments)

        monkeypatch.setattr(StoreFile, "attempt", attempt)
        monkeypatch.setattr(
            shared, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        )

    def sleep(self, _seconds):
        self.pauses += 1
        self.now += 0.03


def test_a_call_waits_for_the_lock_while_the_machine_runs_neither_process(monkeypatch):
    """Otherwise the stand-in would admit what the cap refuses, just because the machine is busy."""
    store = private_store(clients=256, rows=64)
    cap = requirement(slot("cap", limit=1), guard="cap")
    assert store.enter(open_request(cap)).admitted
    machine = BusyMachine(monkeypatch, pauses_until_free=20)

    assert not store.enter(open_request(cap)).admitted
    assert machine.pauses == 20


def test_it_waits_for_two_seconds_at_most(monkeypatch):
    store = private_store(clients=256, rows=64)
    cap = requirement(slot("cap", limit=1), guard="cap")
    assert store.enter(open_request(cap)).admitted
    machine = BusyMachine(monkeypatch, pauses_until_free=10**6)

    with pytest.raises(StoreBusyError, match="could not be taken"):
        store.enter(open_request(cap))
    assert 1.9 < machine.now - 100 < 2.1
    monkeypatch.undo()
    store.close()


@pytest.mark.one_python
@pytest.mark.parametrize("lock", ["mutex", "flock"])
@pytest.mark.parametrize("call", range(1, 4))
def test_a_stopped_holder_of_the_lock_stops_no_other_process_for_long(call, lock, start):
    """SIGSTOP inside the critical section: its file is condemned, the state goes on, it follows."""
    store = private_store(clients=256, rows=64, lock=lock)
    cap = requirement(slot("cap", limit=2), guard="cap")
    spent = requirement(meter("spent", period=60 * MINUTE), guard="spent")
    held = open_request(cap, spent)
    assert store.enter(held).admitted
    process = start("stop-inside", store.name, call)
    assert poll(lambda: _state(process.pid) == "T")
    with pytest.raises(StoreBusyError):
        store.enter(open_request(cap))

    def enters():
        with contextlib.suppress(StoreBusyError):
            return store.enter(open_request(cap))
        return None

    assert poll(lambda: enters() is not None)
    assert not store.enter(open_request(spent)).admitted
    assert store.slots_held() == {"cap": 2}
    os.kill(process.pid, signal.SIGCONT)
    assert said(process)[-1] == "refused"
    assert store.slots_held() == {"cap": 2}
    store.leave(held)
    assert store.slots_held() == {"cap": 1}
    store.close()


def test_fork_in_mid_request_doubles_nothing_and_frees_nothing(store):
    cap = requirement(slot("cap", limit=1), guard="cap")
    held = open_request(cap)
    assert store.enter(held).admitted

    def child_leaves_and_enters():
        store.leave(held)
        assert not store.enter(open_request(cap)).admitted

    with forked(child_leaves_and_enters) as pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.slots_held() == {"cap": 1}
    store.leave(held)
    assert store.slots_held() == {}
    assert store.enter(open_request(cap)).admitted


@pytest.mark.thorough
@pytest.mark.parametrize("lock", ["mutex", "flock", "memory"])
def test_ten_thousand_interrupts_lose_no_slot_and_keep_no_lock(lock, start):
    interrupted, left, works = said(start("interrupts", lock, 10_000))
    assert int(interrupted) >= 10_000
    assert (left, works) == ("0", "True")


def test_responses_dropped_in_reference_cycles_give_back_their_slots(start):
    dropped, left, works = said(start("cycles", 4_000))
    assert dropped == "4000"
    assert (left, works) == ("0", "True")


def test_threads_of_one_process_share_exactly(store, start):
    entered, most, left = said(start("threads", store.name, 3))
    assert int(entered) > 0
    assert int(most) <= 3
    assert left == "0"


def test_the_lock_s_owner_is_looked_at_by_start_time_too(store, start):
    """A pid that was given away again is another process."""
    cap = requirement(slot("cap", limit=1), guard="cap")
    process = start("hold-as-imposter", store.name, os.getpid())
    assert process.stdout.readline() == "holding\n"
    assert poll(lambda: store.enter(open_request(cap)).admitted)
    process.kill()
    process.communicate(timeout=60)


def _state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


RESTARTING = """
import os, sys
from guardrails import MaxConcurrentReqs, testing

def restarting(environ, start_response):
    if len(sys.argv) == 2:
        os.execv(sys.executable, [sys.executable, *sys.argv, "again"])
    return testing.hello(environ, start_response)

print(testing.Client(MaxConcurrentReqs(1)(restarting, store=sys.argv[1])).get("/").status)
"""


def test_what_a_process_held_before_it_executed_itself_anew_is_given_back(tmp_path):
    program = tmp_path / "restarting.py"
    program.write_text(RESTARTING)
    name = f"shm:test-{os.getpid()}-exec"
    ran = subprocess.run(
        [sys.executable, str(program), name], capture_output=True, text=True, timeout=60, check=False
    )
    for folder in directory.folders():
        for path in folder.glob(f"test-{os.getpid()}-exec*"):
            path.unlink()

    assert ran.stdout == "200 OK\n", ran.stderr


def test_a_mutex_that_is_unusable_for_good_crashes_no_process():
    """A holder died, and the next one was cut off before it could repair the mutex."""
    name = f"test-lost-{os.getpid()}"
    store = SharedStore(name, clients=64, rows=32, private=True)
    store.requests()
    store.switch("on")
    file = store._file
    pid = os.fork()
    if pid == 0:
        file._try_lock()
        os._exit(0)
    os.waitpid(pid, 0)
    assert file._try_lock() == 130
    file._unlock()  # without having made it consistent

    assert store.switch() == "on"
    pid = os.fork()
    if pid == 0:
        own = SharedStore(name, private=True)
        os._exit(0 if own.switch() == "on" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    store.close()


def test_a_child_that_drops_a_response_does_not_wait_for_the_parents_lock():
    """The memory store's lock may be held by another thread at the moment of the fork."""
    store = testing.memory_store()
    app = throttle(testing.hello, MaxConcurrentReqs(9), store=store)
    exchange = Exchange(app).call()
    with store._lock:
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            exchange.close()
            Exchange(app).finish()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    exchange.close()
    assert store.slots_held() == {}

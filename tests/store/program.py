"""What the other processes of test_processes.py do: `program.py WHAT ARGUMENTS...`."""

import fcntl
import gc
import os
import random
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from short_forms import MINUTE, meter, open_request, requirement, slot

import guardrails
from guardrails import testing
from guardrails.errors import StoreBusyError
from guardrails.store.contract import monotonic_microseconds
from guardrails.store.layout import ROW_OWNER
from guardrails.store.shared import SharedStore


def patiently(call):
    """Ask again while the store says "busy", at most a thousand times."""
    for _ in range(1000):
        try:
            return call()
        except StoreBusyError:
            pass
    raise AssertionError("the store stayed busy")


def hammer_meter(name, burst):
    """Enter until refused; print how often it was admitted."""
    store = SharedStore(name, private=True)
    limit = requirement(meter("meter", period=1000 * MINUTE, burst=int(burst)), guard="meter")
    admitted = 0
    while True:
        entering = open_request(limit)
        if not patiently(lambda entering=entering: store.enter(entering)).admitted:
            break
        patiently(lambda entering=entering: store.leave(entering))
        admitted += 1
    print(admitted)


def hammer_slot(name, limit, counted, times):
    """Enter and leave; count the holders in a file, under a lock of its own."""
    store = SharedStore(name, private=True)
    cap = requirement(slot("cap", limit=int(limit)), guard="cap")
    entered = 0
    first = open_request(cap)
    print(int(patiently(lambda: store.enter(first)).admitted), flush=True)
    sys.stdin.readline()
    patiently(lambda: store.leave(first))
    with Path(counted).open("r+b", buffering=0) as file:
        for _ in range(int(times)):
            entering = open_request(cap)
            if patiently(lambda entering=entering: store.enter(entering)).admitted:
                entered += 1
                _count(file, 1)
                os.sched_yield()
                _count(file, -1)
                patiently(lambda entering=entering: store.leave(entering))
    print(entered)


def _count(file, change):
    fcntl.flock(file, fcntl.LOCK_EX)
    file.seek(0)
    content = file.read(16)
    holders, most = int.from_bytes(content[:8]) + change, int.from_bytes(content[8:])
    file.seek(0)
    file.write(holders.to_bytes(8) + max(most, holders).to_bytes(8))
    fcntl.flock(file, fcntl.LOCK_UN)


def hold(name, slots):
    """Hold slots until killed."""
    store = SharedStore(name, private=True)
    cap = requirement(slot("cap", limit=int(slots)), guard="cap")
    held = [open_request(cap) for _ in range(int(slots))]
    for each in held:
        assert store.enter(each).admitted
    print("holding", flush=True)
    signal.pause()


def hold_as_imposter(name, pid):
    """Hold a slot in the name of a living pid that started at another time."""
    store = SharedStore(name, private=True)
    store.requests()
    store._file.owner = store._file.owner._replace(pid=int(pid))
    store._file.owner_bytes = ROW_OWNER.pack(*store._file.owner)
    assert store.enter(open_request(requirement(slot("cap", limit=1), guard="cap"))).admitted
    print("holding", flush=True)
    signal.pause()


def stop_inside(name, call):
    """Stop oneself inside the critical section: the clock is read there."""
    calls = 0

    def clock():
        nonlocal calls
        calls += 1
        if calls == stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)
        return monotonic_microseconds()

    stop_at = 0
    store = SharedStore(name, private=True, clock=clock)
    cap = requirement(slot("cap", limit=2), guard="cap")
    store.requests()
    for _ in range(int(call) - 1):
        entering = open_request(cap)
        store.enter(entering)
        store.leave(entering)
    calls, stop_at = 0, 1
    print("admitted" if store.enter(open_request(cap)).admitted else "refused")


class Interrupted(BaseException):
    """Raised by the signal handler."""


def interrupts(lock, times):
    """Be cut off by a raising signal handler, again and again, anywhere in a guarded request."""
    url = f"shm:test-interrupts-{os.getpid()}?private&clients=64&rows=64&lock={lock}"
    if lock == "memory":
        url = "memory:"
    app = guardrails.throttle(
        testing.hello,
        guardrails.MaxConcurrentReqs(3),
        guardrails.SpeedLimit("1000000/second"),
        guardrails.CPUThrottle("100%", at_once=3),
        store=url,
    )
    interrupted = 0

    def interrupt(_number, _frame):
        raise Interrupted

    def request():
        response = app(environ(), lambda _status, _headers: None)
        b"".join(response)
        response.close()

    def hunt():
        nonlocal interrupted
        while interrupted < int(times):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 200e-6))
                # Bounded, since an exception in a destructor is swallowed and leaves no timer.
                for _ in range(50):
                    request()
            except Interrupted:
                interrupted += 1
        signal.setitimer(signal.ITIMER_REAL, 0)

    request()
    sys.unraisablehook = lambda _raised: None
    signal.signal(signal.SIGALRM, interrupt)
    hunt()
    gc.collect()
    request()
    _finish(app, interrupted, [app(environ(), lambda _status, _headers: None)])


def cycles(times):
    """Drop responses in reference cycles, with the collector running everywhere."""
    url = f"shm:test-cycles-{os.getpid()}?private&clients=64&rows=256"
    app = guardrails.throttle(testing.hello, guardrails.MaxConcurrentReqs(200), store=url)
    gc.set_threshold(7)
    dropped = 0
    for _ in range(int(times)):
        knot = [app(environ(), lambda _status, _headers: None)]
        knot.append(knot)
        del knot
        dropped += 1
    gc.collect()
    _finish(app, dropped, [app(environ(), lambda _status, _headers: None)])


def _finish(app, count, responses):
    for response in responses:
        response.close()
    held = app.store.slots_held()
    counters = app.store.counters()["max-concurrent all"]
    print(count, sum(held.values()), counters.admitted > 0 and not app.errors)
    app.store.close()


def threads(name, limit):
    """Eight threads, one store."""
    store = SharedStore(name, private=True)
    cap = requirement(slot("cap", limit=int(limit)), guard="cap")
    holders, most, entered = 0, 0, 0
    counting = threading.Lock()

    def work():
        nonlocal holders, most, entered
        for _ in range(300):
            entering = open_request(cap)
            if patiently(lambda entering=entering: store.enter(entering)).admitted:
                with counting:
                    holders += 1
                    entered += 1
                    most = max(most, holders)
                with counting:
                    holders -= 1
                patiently(lambda entering=entering: store.leave(entering))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(entered, most, sum(store.slots_held().values()))
    store.close()


def environ():
    return {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "SCRIPT_NAME": "",
        "REMOTE_ADDR": "192.0.2.1",
        "HTTP_HOST": "example.org",
    }


if __name__ == "__main__":
    globals()[sys.argv[1].replace("-", "_")](*sys.argv[2:])

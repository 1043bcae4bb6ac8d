"""The scoreboard: workers, requests in flight, and penalties for requests that were ended."""

import json
import os
import resource
import secrets
import signal
import subprocess
import sys

import pytest
from short_forms import private_store

import guardrails
from guardrails import CPUThrottle, MaxConcurrentReqs, SpeedLimit, testing
from guardrails.errors import StoreBusyError
from guardrails.store import scoreboard
from guardrails.store.layout import W_NAMESPACE, W_PID, W_REQUESTS, W_RETIRING, WORKER_WORDS
from guardrails.store.records import WorkerFacts
from support import Browser

MINUTE = 60_000_000
SERVING = """
import sys
import guardrails
from guardrails import MaxConcurrentReqs, testing

app = guardrails.throttle(testing.hello, MaxConcurrentReqs(9), store=sys.argv[1])
browser = testing.Client(app)
for _ in range(int(sys.argv[2])):
    browser.get("/done").close()
held = browser.get("/held", buffered=False)
print("ready", flush=True)
sys.stdin.read()
held.close()
"""


@pytest.fixture(params=["memory", "shared"])
def store(request, clock):
    store = testing.memory_store(clock) if request.param == "memory" else private_store(clock)
    yield store
    store.close()


@pytest.fixture
def named():
    """The URL of a store that other processes open, and the store as an observer has it."""
    url = f"shm:test-scoreboard-{secrets.token_hex(6)}?private&clients=100"
    observer = guardrails.open_store(url)
    observer.create = True
    observer.requests()
    yield url, observer
    observer.close()


@pytest.fixture
def worker(named):
    """Starts workers that have served so many requests and have one open."""
    started = []

    def start(served):
        process = subprocess.Popen(
            [sys.executable, "-c", SERVING, named[0], str(served)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_worker_shows_what_it_has_served_and_what_it_is_serving(serve, clock):
    browser = serve(SpeedLimit("100/second"), MaxConcurrentReqs(5))
    assert browser.statuses(3) == [200] * 3
    clock.advance(4)
    held = browser.hold("/slow")
    clock.advance(2)

    (shown,) = browser.application_under_test.store.workers()

    assert (shown.pid, shown.requests, shown.in_flight, shown.state) == (os.getpid(), 3, 1, "serving")
    assert shown.last_seen_seconds in (2, 6)  # in shared memory a request that began is a sign too
    assert shown.limits["NOFILE"] == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert shown.cpu_seconds > 0
    assert shown.resident_bytes > 1 << 20
    held.close()
    assert browser.application_under_test.store.workers()[0].state == "idle"


def test_refused_requests_are_not_counted_as_served(serve, store):
    browser = serve(SpeedLimit("1/minute"))
    assert browser.statuses(3) == [200, 429, 429]
    assert [worker.requests for worker in store.workers()] == [1]


def test_a_scoreboard_is_plain_values_and_json(serve, store):
    browser = serve(MaxConcurrentReqs(5))
    held = browser.hold("/slow?x=1", headers={"Host": "example.org"})

    requests, workers = store.requests(), store.workers()

    assert json.loads(requests.to_json()) == [request._asdict() for request in requests]
    (written,) = json.loads(workers.to_json())
    assert written["limits"]["CORE"] == list(resource.getrlimit(resource.RLIMIT_CORE))
    (shown,) = requests
    assert (shown.method, shown.path, shown.client) == ("GET", "/slow", "192.0.2.1")
    held.close()


def test_workers_of_several_processes_are_seen_from_outside(named, worker):
    _url, observer = named
    processes = {worker(served).pid: served for served in (1, 2, 3)}

    shown = {each.pid: each.requests for each in observer.workers() if each.pid in processes}

    assert shown == processes
    assert {request.pid for request in observer.requests()} == set(processes)
    assert {each.parent for each in observer.workers()} == {os.getpid()}


def test_a_dead_worker_is_not_shown_and_its_gap_hides_no_other(named, worker):
    _url, observer = named
    processes = [worker(1) for _ in range(3)]
    processes[1].kill()
    processes[1].wait()

    living = {processes[0].pid, processes[2].pid}
    assert {each.pid for each in observer.workers()} == living
    assert {request.pid for request in observer.requests()} == living
    assert sum(observer.slots_held().values()) == 2
    assert observer.alarms() == {"reclaimed": 1}


def test_an_observer_follows_when_the_file_is_removed_and_made_anew(named, worker):
    """A cleaner or an operator removed it: the old file's requests count no longer."""
    _url, observer = named
    worker(1)
    assert len(observer.requests()) == 1
    observer._file.path.unlink()
    process = worker(2)
    assert [each.pid for each in observer.requests()] == [process.pid]


def test_reading_waits_for_nothing_while_a_stopped_process_holds_requests(named, worker):
    """The observer needs nothing from the process that it observes."""
    _url, observer = named
    process = worker(1)
    process.send_signal(signal.SIGSTOP)
    try:
        assert [each.pid for each in observer.workers()] == [process.pid]
        assert [request.path for request in observer.requests()] == ["/held"]
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_sees_nothing(named, worker):
    url, _observer = named
    worker(1)
    try:
        os.seteuid(65534)
        with pytest.raises(guardrails.StoreError):
            guardrails.open_store(url).workers()
    finally:
        os.seteuid(0)


def test_the_table_of_workers_takes_the_place_of_dead_ones(clock):
    store = private_store(clock, clients=16)
    try:
        store.register(WorkerFacts("one"))
        file = store._file
        for at in range(file.sections["workers"].word, file.sections["workers"].word + 256 * 16, 16):
            if not file.words[at]:
                file.words[at], file.words[at + 2] = 2**22 - 1, file.owner.namespace  # no such pid
        child = os.fork()
        if not child:
            store.register(WorkerFacts("two"))
            os._exit([each.server for each in store.workers()] != ["one", "two"])
        assert os.waitpid(child, 0)[1] == 0
    finally:
        store.close()


def test_a_worker_in_the_entry_of_a_dead_one_takes_over_nothing_of_it(clock):
    store = private_store(clock, clients=16)
    try:
        store.register(WorkerFacts("one"))
        file = store._file
        table = file.sections["workers"]
        for at in range(table.word, table.word + table.records * WORKER_WORDS, WORKER_WORDS):
            if not file.words[at + W_PID]:  # no process has such a number
                file.words[at + W_PID], file.words[at + W_NAMESPACE] = 2**22 - 1, file.owner.namespace
                file.words[at + W_REQUESTS], file.words[at + W_RETIRING] = 7, 1
        child = os.fork()
        if not child:
            store.register(WorkerFacts("two"))
            two = store.workers()[-1]
            os._exit((two.server, two.requests, two.state) != ("two", 0, "idle"))
        assert os.waitpid(child, 0)[1] == 0
    finally:
        store.close()


def test_a_process_with_the_pid_of_a_retiring_worker_is_not_shown_as_retiring(clock):
    store = private_store(clock, clients=16)
    try:
        store.register(WorkerFacts("one"))
        (shown,) = store.workers()
        store.mark_retiring(shown._replace(process_start=shown.process_start - 1))
        assert store.workers()[0].state == "idle"
        store.mark_retiring(shown)
        assert store.workers()[0].state == "retiring"
    finally:
        store.close()


def test_a_retiring_worker_that_does_not_end_blocks_the_others_for_a_minute_only(clock):
    store = private_store(clock, clients=16)
    store.register(WorkerFacts("one"))
    (has_begun, begun), (ends, end) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        store.register(WorkerFacts("two"))
        os.write(begun, b"retires" if store.begin_retiring() else b"cannot")
        os.read(ends, 1)  # until the test has closed its end, or is itself gone
        os._exit(0)
    try:
        assert os.read(has_begun, 7) == b"retires"
        clock.advance(59.9)
        assert not store.begin_retiring()
        clock.advance(0.1)
        assert store.begin_retiring()
        assert {each.server: each.state for each in store.workers()} == {
            "one": "retiring",
            "two": "retiring",
        }
    finally:
        for descriptor in (has_begun, begun, ends, end):
            os.close(descriptor)
        os.waitpid(child, 0)
        store.close()


def test_workers_retire_one_at_a_time(named, worker):
    _url, observer = named
    first, second = worker(0), worker(0)
    shown = {each.pid: each for each in observer.workers()}
    observer.register(WorkerFacts("observer"))

    observer.mark_retiring(shown[first.pid])
    assert {each.pid: each.state for each in observer.workers()}[first.pid] == "retiring"
    assert not observer.begin_retiring()

    first.kill()
    first.wait()
    assert not observer.begin_retiring(), "no worker serves in its place yet"
    third = worker(0)
    assert observer.begin_retiring()
    assert {each.pid: each.state for each in observer.workers()} == {
        second.pid: "serving",
        third.pid: "serving",
        os.getpid(): "retiring",
    }


class Stuck:
    """A client whose request hangs, until it is penalized."""

    def __init__(self, store, *guards, **options):
        self.store = store
        app = guardrails.throttle(testing.hello, *guards, store=store, **options)
        self.browser = Browser(app)

    def penalized(self, path="/search", seconds=60, ban_for=10 * MINUTE):
        held = self.browser.hold(path)
        (request,) = self.store.requests()
        assert self.store.penalize(request, round(seconds * 1e6), ban_for)
        held.close()
        return self.browser


def test_a_penalized_client_is_refused_the_same_resource_for_a_while(store, clock):
    stuck = Stuck(store, SpeedLimit("100/second"))
    browser = stuck.penalized("/search")

    answer = browser.get("/search?q=2")

    testing.assert_refused(answer, 503, guard="watchdog", retry_after=600)
    for spelling in ("/search;x=1", "/search/", "/x/../search"):
        testing.assert_refused(browser.get(spelling), 503, guard="watchdog")
    assert browser.get("/other").status_code == 200
    assert browser.at("192.0.2.2").get("/search").status_code == 200
    assert store.counters()["watchdog"].refused == 4
    clock.advance(600)
    assert browser.get("/search").status_code == 200


def test_a_shorter_ban_later_does_not_end_a_longer_one(store, clock):
    stuck = Stuck(store, SpeedLimit("100/second"))
    browser = stuck.penalized("/search", ban_for=10 * MINUTE)
    stuck.penalized("/other", ban_for=MINUTE)

    clock.advance(61)

    assert browser.get("/other").status_code == 200
    testing.assert_refused(browser.get("/search"), 503, guard="watchdog", retry_after=539)
    clock.advance(539)
    assert browser.get("/search").status_code == 200


def test_the_switch_exemptions_and_dry_runs_hold_for_it_too(store):
    browser = Stuck(store, SpeedLimit("100/second"), exempt_paths=["/free"]).penalized("/free")
    assert browser.get("/free").status_code == 200
    browser = Stuck(store, SpeedLimit("100/second"), dry_run=True).penalized("/dry")
    assert browser.get("/dry").status_code == 200
    browser = Stuck(store, SpeedLimit("100/second")).penalized("/switched")
    store.switch("dry-run")
    assert browser.get("/switched").status_code == 200
    store.switch("on")
    testing.assert_refused(browser.get("/switched"), 503)
    store.reset()
    assert browser.get("/switched").status_code == 200


def test_the_client_is_charged_its_whole_time(store, clock):
    """A fifth of a CPU with 15 seconds ahead: two seconds killed are ten seconds owed."""
    stuck = Stuck(store, CPUThrottle("20%", window="15s"))
    browser = stuck.penalized("/", seconds=2, ban_for=0)
    assert browser.get("/").status_code == 200
    browser = stuck.penalized("/", seconds=2, ban_for=0)
    testing.assert_refused(browser.get("/"), 503, guard="cpu-throttle client", retry_after=13)
    assert browser.at("192.0.2.2").get("/").status_code == 200
    clock.advance(13)
    assert browser.get("/").status_code == 200


@pytest.mark.parametrize("streams", [False, True])
def test_a_penalized_request_that_goes_on_is_charged_what_it_burns_besides(store, cpu, streams):
    """Two seconds charged are ten owed of the fifteen; as many again are too many."""

    def app(environ, start_response):
        (request,) = store.requests()
        assert store.penalize(request, 2_000_000, 0) == (1, False)
        start_response("200 OK", [("Content-Type", "text/plain")])
        cpu.burn(2)
        return (part for part in (b"a", b"b")) if streams else [b"ab"]

    browser = Browser(guardrails.throttle(app, CPUThrottle("20%", window="15s"), store=store))
    assert browser.statuses(2) == [200, 503]


def test_guards_that_do_not_cover_the_request_charge_nothing(store):
    stuck = Stuck(store, CPUThrottle("20%", window="15s", path="/search"))
    browser = stuck.penalized("/other", seconds=60, ban_for=0)
    assert browser.get("/search").status_code == 200


def test_a_penalty_for_a_request_that_is_over_charges_nothing(store):
    stuck = Stuck(store, CPUThrottle("20%"))
    held = stuck.browser.hold("/")
    (request,) = store.requests()
    held.close()

    assert not store.penalize(request, MINUTE, MINUTE)
    assert stuck.browser.get("/").status_code == 200


def test_a_penalty_delays_no_other_client(store):
    """While a ban of this kind stands, others take the same way as before."""
    stuck = Stuck(store, SpeedLimit("2/minute"), MaxConcurrentReqs(1))
    browser = stuck.penalized("/search")
    other = browser.at("192.0.2.9")
    assert other.statuses(3, "/x") == [200, 200, 429]
    assert store.slots_held() == {}


def test_a_long_path_is_marked_as_canonical_or_not(store):
    """A watchdog exempts it by that."""
    app = guardrails.throttle(testing.hello, SpeedLimit("9/s"), store=store, exempt_paths="/download")
    for path, usual in [("/download/" + "a" * 200, True), ("/download/./" + "a" * 200, False)]:
        with Browser(app).hold(path):
            (request,) = store.requests()
            assert request.usual_path == usual


def test_a_nul_does_not_end_a_path(store):
    app = guardrails.throttle(testing.hello, SpeedLimit("9/s"), store=store)
    with Browser(app).hold("/download%00%00/sleep"):
        (request,) = store.requests()
        assert request.path == "/download??/sleep"


def test_a_worker_that_could_not_register_is_shown_a_second_later(clock, monkeypatch):
    """The lock was held when it began. A watchdog watches only workers that are shown."""
    store = private_store(clock)
    real, busy = store._call, [True]

    def call(pid, work, *arguments):
        if busy and work is scoreboard.register:
            raise StoreBusyError("its lock could not be taken")
        return real(pid, work, *arguments)

    monkeypatch.setattr(store, "_call", call)
    browser = Browser(guardrails.throttle(testing.hello, SpeedLimit("99/s"), store=store))
    assert browser.get("/").status_code == 200
    assert store.workers() == []
    busy.clear()
    clock.advance(2)
    assert browser.get("/").status_code == 200
    assert [each.pid for each in store.workers()] == [os.getpid()]
    store.close()

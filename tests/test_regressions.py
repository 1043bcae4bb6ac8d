"""Faults that somebody found by attacking, each told as the attack."""

import gc
import os
import signal
from pathlib import Path

import pytest
from asking import private_store

from guardrails import (
    BlockAgents,
    CPUThrottle,
    MaxConcurrentReqs,
    SpeedLimit,
    testing,
    throttle,
)
from guardrails.store.shared import SharedStore
from support import Browser, Exchange, environ_of


@pytest.fixture
def shared(clock):
    store = private_store(clock, clients=64, rows=32)
    yield store
    store.close()


@pytest.mark.parametrize("order", [1, -1])
def test_unnamed_guards_of_nested_throttles_do_not_wipe_out_each_other(shared, order):
    """Both are "speed-limit client"; on one cell the short one would reset the long one."""
    outer, inner = (SpeedLimit("5/second"), SpeedLimit("20/hour"))[::order]
    site = Browser(throttle(throttle(testing.hello, inner), outer, store=shared))

    assert site.statuses(7).count(200) == 5
    admitted = 5
    for _ in range(20):
        shared._spec.clock.advance(1)
        admitted += site.statuses(7).count(200)
    assert 5 < admitted <= 20
    assert set(shared.counters()) == {"speed-limit client", "speed-limit client 2"}


def test_unnamed_caps_of_nested_throttles_have_slots_of_their_own(store):
    site = Browser(
        throttle(throttle(testing.hello, MaxConcurrentReqs(1)), MaxConcurrentReqs(9), store=store)
    )

    assert site.statuses(2) == [200, 200]


def test_a_quick_tier_does_not_wipe_out_a_slow_one(serve):
    site = serve(
        SpeedLimit(lambda environ: "5/hour" if environ["PATH_INFO"] == "/login" else "100/second")
    )

    logins = []
    for _ in range(4):
        logins += site.statuses(5, "/login")
        assert site.get("/").status_code == 200
    assert logins.count(200) == 5


def test_a_total_that_was_displaced_counts_nobody_twice(clock):
    """Two slots whose hashes meet: with 16 rows that happens often."""
    store = private_store(clock, clients=16, rows=16)
    app = throttle(testing.hello, MaxConcurrentReqs(5, by="client"), MaxConcurrentReqs(1), store=store)
    for number in range(1500):
        address = f"10.0.{number >> 8}.{number & 255}"
        first = Exchange(app, REMOTE_ADDR=address).call()
        second = Exchange(app, REMOTE_ADDR=address).call()
        assert (first.status[:3], second.status[:3]) == ("200", "503")
        first.close()
        second.close()
    assert store.slots_held() == {}
    store.close()


def test_a_mutex_that_is_lost_for_good_crashes_nobody():
    """A holder died, and who was told of it was cut off before it could mend the mutex."""
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


def test_an_inner_throttle_tells_addresses_of_one_64_apart(store):
    inner = throttle(testing.hello, SpeedLimit("1/hour"), exempt=["2001:db8::1/128"])
    site = Browser(throttle(inner, store=store))

    assert site.at("2001:db8::1").statuses(2) == [200, 200]
    assert site.at("2001:db8::bad").statuses(2) == [200, 429]


def test_a_method_in_small_letters_is_the_same_method(store):
    app = throttle(testing.hello, SpeedLimit("1/hour", methods=["POST"]), store=store)

    assert [Exchange(app, REQUEST_METHOD=method).call().status[:3] for method in ("post", "Post")] == [
        "200",
        "429",
    ]


def test_an_environ_that_comes_again_after_a_refusal_is_guarded_again(store):
    app = throttle(testing.hello, SpeedLimit("1/hour"), store=store)
    unnamed = throttle(app, SpeedLimit("99/hour"), store=store)
    environ = environ_of("/") | {"REMOTE_ADDR": "192.0.2.1"}

    statuses = []
    for _ in range(4):
        for chunk in unnamed(environ, lambda status, _headers: statuses.append(status[:3])):
            assert chunk
    assert statuses == ["200", "429", "429", "429"]


@pytest.mark.parametrize("address", [None, b"192.0.2.1", ("192.0.2.1", 80), 7])
def test_an_odd_remote_addr_does_not_switch_off_the_other_guards(store, address):
    app = throttle(testing.hello, SpeedLimit("1/hour", by="all"), store=store)

    assert [Exchange(app, REMOTE_ADDR=address).call().status[:3] for _ in range(2)] == ["200", "429"]


def test_a_link_local_address_with_a_zone_is_a_client(serve):
    assert serve(SpeedLimit("1/hour"), address="fe80::1%eth0").statuses(2) == [200, 429]


def test_a_key_that_is_no_proper_text_still_counts(serve):
    assert serve(SpeedLimit("1/hour", by=lambda _environ: "\ud800")).statuses(2) == [200, 429]


def test_keys_of_any_length_are_told_apart(serve):
    site = serve(SpeedLimit("1/hour", by="header:X-Key"))
    long = "x" * 5000

    assert [site.get("/", headers={"X-Key": long + end}).status_code for end in "aab"] == [
        200,
        429,
        200,
    ]


def test_only_robots_txt_itself_is_never_refused(serve):
    site = serve(BlockAgents("guardrails"))

    assert site.get("/robots.txt").status_code == 200
    assert site.get("/robots.txt/login").status_code == 403


def test_a_server_without_a_file_wrapper_may_say_so(store):
    app = throttle(testing.hello, MaxConcurrentReqs(1), store=store)

    assert Exchange(app, **{"wsgi.file_wrapper": None}).finish() == b"hello\n"


@pytest.mark.thorough
@pytest.mark.parametrize(
    "guard",
    [
        MaxConcurrentReqs(lambda environ: int(environ["HTTP_X"]) % 5000 + 1),
        CPUThrottle(lambda environ: int(environ["HTTP_X"]) % 5000 + 1),
        SpeedLimit("9/second", cost=lambda environ: int(environ["HTTP_X"]) % 9),
        SpeedLimit(lambda environ: f"{int(environ['HTTP_X']) + 1}/second"),
    ],
)
def test_what_callables_say_is_remembered_within_bounds(shared, guard):
    app = throttle(testing.hello, guard, store=shared)
    for number in range(5000):
        Exchange(app, HTTP_X=str(number)).finish()

    assert len(shared._file.bounds) <= 4096
    assert len(app._posts[0].tiers) <= 256
    assert not app.errors


@pytest.mark.thorough
def test_the_memory_store_forgets_clients_whose_time_has_passed(store, clock):
    app = throttle(testing.hello, SpeedLimit("1/second"), store=store)
    for number in range(40_000):
        Exchange(app, REMOTE_ADDR=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}").finish()
        clock.advance(0.001)

    assert len(store._cells) < 20_000


def test_a_plan_that_is_not_used_again_keeps_no_old_file_mapped(clock):
    store = SharedStore(f"test-mapped-{os.getpid()}", clients=16, rows=16, private=True, clock=clock)
    app = throttle(testing.hello, SpeedLimit("99/second"), store=store)
    for number in range(10):
        Exchange(app, path=f"/{number}").finish()
        store._file.path.unlink()
        clock.advance(2)
        Exchange(app).finish()
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    assert maps.count("test-mapped") <= 2
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


def test_who_waited_for_a_slot_still_waits_for_its_turn(clock, store):
    """Both delays count: the slot's first, then the rate's."""
    slept = []
    sleep = clock.sleep
    clock.sleep = lambda seconds: (slept.append(seconds), sleep(seconds))
    waiting = testing.memory_store(clock)
    app = throttle(
        testing.hello,
        SpeedLimit("1/second", burst=1, wait="20s"),
        MaxConcurrentReqs(1, wait="20s"),
        store=waiting,
    )
    app._entrance._waiting.may_wait(os.getpid())
    app._entrance._waiting._threads.update(range(8))
    holder = Exchange(app).call()
    clock.sleep = lambda seconds: (slept.append(seconds), holder.close(), sleep(seconds))
    waiting._sleep = clock.sleep
    slept.clear()
    now = clock()
    assert Exchange(app).finish() == b"hello\n"
    assert sum(slept) == pytest.approx((clock() - now) / 1_000_000, abs=1e-3)
    assert sum(slept) > 0.9

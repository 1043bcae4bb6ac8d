"""Holding a request back before refusing it: on the store's clock, whose sleep is not slept."""

import pytest

from guardrails import CPUThrottle, MaxConcurrentReqs, SpeedLimit, testing, throttle
from support import Browser, Exchange, MeanwhileClock, Threads, nothing_is_left_in


def decision_of(response):
    return response.request.environ["guardrails.decision"]


@pytest.fixture
def crowd():
    """Eight threads that serve: a quarter of them, two, may wait."""
    with Threads(8) as threads:
        yield threads


def seen(crowd, site):
    """Let each thread serve a request, so that guardrails knows it; none of them is counted."""
    for number in range(len(crowd)):
        crowd.do(number, lambda: site.get("/robots.txt"))
    return site


def test_a_request_just_too_early_is_held_back_and_admitted(serve, crowd, clock):
    site = seen(crowd, serve(SpeedLimit("1/second", wait="2s")))
    site.get("/")
    before = clock()

    response = crowd.do(0, lambda: site.get("/"))

    assert response.status_code == 200
    assert decision_of(response).outcome == "DELAYED"
    assert clock() - before == 1_000_000


def test_requests_that_were_held_back_keep_the_rate(serve, crowd, clock):
    site = seen(crowd, serve(SpeedLimit("1/second", wait="2s")))
    before = clock()
    statuses = crowd.do(0, lambda: site.statuses(4))

    assert statuses == [200] * 4
    assert clock() - before == 3_000_000


def test_who_would_have_to_wait_for_longer_is_refused_at_once(serve, crowd, clock):
    site = seen(crowd, serve(SpeedLimit("1/minute", wait="2s")))
    site.get("/")
    before = clock()

    testing.assert_refused(crowd.do(0, lambda: site.get("/")), 429, retry_after=60)
    assert clock() == before


def test_without_wait_nobody_is_held_back(serve, crowd, clock):
    site = seen(crowd, serve(SpeedLimit("1/second")))
    site.get("/")
    before = clock()

    assert crowd.do(0, lambda: site.get("/")).status_code == 429
    assert clock() == before


def test_the_only_thread_never_waits(serve, clock):
    """Whoever would wait in it would hold up the request that he waits for."""
    site = serve(SpeedLimit("1/second", wait="2s"))
    site.get("/")
    before = clock()

    assert site.get("/").status_code == 429
    assert clock() == before


def test_of_three_threads_none_waits(serve, clock):
    site = serve(SpeedLimit("1/second", wait="2s"))
    with Threads(3) as few:
        for number in range(3):
            few.do(number, lambda: site.get("/robots.txt"))
        few.do(0, lambda: site.get("/"))

        assert few.do(0, lambda: site.get("/")).status_code == 429


def test_at_most_a_quarter_of_the_threads_waits(crowd):
    """While two of eight wait, a third one is refused; it asks in the midst of their sleep."""
    clock = MeanwhileClock()
    site = seen(
        crowd,
        Browser(
            throttle(
                testing.hello, SpeedLimit("1/second", wait="9s"), store=testing.memory_store(clock)
            )
        ),
    )
    site.get("/")
    met = []

    def second_waits():
        met.append(crowd.do(1, lambda: site.get("/").status_code))

    def third_is_refused():
        met.append(crowd.do(2, lambda: site.get("/").status_code))

    clock.meanwhile = {1: second_waits, 2: third_is_refused}

    assert crowd.do(0, lambda: site.get("/").status_code) == 200
    assert met == [429, 200]


def test_a_request_waits_for_a_slot_that_comes_free(crowd):
    clock = MeanwhileClock()
    store = testing.memory_store(clock)
    site = seen(crowd, Browser(throttle(testing.hello, MaxConcurrentReqs(1, wait="2s"), store=store)))
    holder = site.hold()
    clock.meanwhile = {5: holder.close}

    response = crowd.do(0, lambda: site.get("/"))

    assert response.status_code == 200
    assert decision_of(response).outcome == "DELAYED"
    assert len(clock.slept) == 5
    assert all(0.005 <= pause <= 0.020 for pause in clock.slept)
    assert nothing_is_left_in(store)


def test_who_waits_for_a_slot_in_vain_is_refused_after_its_patience(crowd):
    clock = MeanwhileClock()
    store = testing.memory_store(clock)
    site = seen(crowd, Browser(throttle(testing.hello, MaxConcurrentReqs(1, wait="2s"), store=store)))

    with site.hold():
        before = clock()
        response = crowd.do(0, lambda: site.get("/"))
        waited = (clock() - before) / 1e6

    testing.assert_refused(response, 503)
    assert 2 <= waited <= 2.02
    assert nothing_is_left_in(store)


def test_asking_again_for_a_slot_charges_nothing(crowd):
    """The rate beside the cap is charged once, however often the request asks."""
    clock = MeanwhileClock()
    store = testing.memory_store(clock)
    guards = [MaxConcurrentReqs(1, wait="2s"), SpeedLimit("3/hour")]
    site = seen(crowd, Browser(throttle(testing.hello, *guards, store=store)))
    holder = site.hold()
    clock.meanwhile = {9: holder.close}

    assert crowd.do(0, lambda: site.get("/").status_code) == 200
    assert site.statuses(2) == [200, 429]


def test_waiting_in_vain_is_counted_as_one_refusal(crowd):
    store = testing.memory_store(MeanwhileClock())
    cap = MaxConcurrentReqs(1, wait="1s", name="cap")
    site = seen(crowd, Browser(throttle(testing.hello, cap, store=store)))

    with site.hold():
        crowd.do(0, lambda: site.get("/"))

    assert store.counters()["cap"].refused == 1


def test_another_guard_that_refuses_ends_the_waiting_for_a_slot(crowd):
    clock = MeanwhileClock()
    store = testing.memory_store(clock)
    guards = [MaxConcurrentReqs(1, wait="2s"), SpeedLimit("1/hour")]
    site = seen(crowd, Browser(throttle(testing.hello, *guards, store=store)))

    with site.hold():
        response = crowd.do(0, lambda: site.get("/"))

    assert response.status_code == 503
    assert clock.slept == []


def test_a_cpu_share_may_hold_back_too(serve, crowd, cpu, clock):
    """1.1 s of CPU at 20 % are 5.5 s, half a second above the window."""
    site = seen(
        crowd, serve(CPUThrottle("20%", window="5s", wait="2s"), app=burning_but_not_robots(cpu, 1.1))
    )
    site.get("/")
    before = clock()

    response = crowd.do(0, lambda: site.get("/"))

    assert response.status_code == 200
    assert decision_of(response).outcome == "DELAYED"
    assert 500_000 <= clock() - before <= 500_010


def burning_but_not_robots(cpu, seconds):
    return cpu.app(lambda environ: 0 if environ["PATH_INFO"] == "/robots.txt" else seconds)


def test_a_dry_run_holds_nobody_back_and_says_for_whom_it_would(serve, crowd, clock):
    site = seen(crowd, serve(SpeedLimit("1/second", wait="2s"), dry_run=True))
    site.get("/")
    before = clock()

    response = crowd.do(0, lambda: site.get("/"))

    assert decision_of(response).outcome == "DELAYED_DRY_RUN"
    assert clock() == before


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
    holder = Exchange(app).call()
    app._admission._delays._threads.update(range(8))
    clock.sleep = lambda seconds: (slept.append(seconds), holder.close(), sleep(seconds))
    waiting._sleep = clock.sleep
    slept.clear()
    now = clock()
    assert Exchange(app).finish() == b"hello\n"
    assert sum(slept) == pytest.approx((clock() - now) / 1_000_000, abs=1e-3)
    assert sum(slept) > 0.9

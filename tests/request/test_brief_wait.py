"""A cap by client waits a moment for the end of the client's last response."""

import pytest

from guardrails import CPUThrottle, MaxConcurrentReqs, SpeedLimit, testing, throttle
from guardrails.errors import StoreError
from guardrails.request import brief_wait
from support import Browser, CountingStore, FaultyStore, MeanwhileClock, Threads, nothing_is_left_in

LONGEST = 0.05


class Waiting:
    """A site whose requests wait on a clock by hand, which is the process's clock too."""

    def __init__(self, monkeypatch, *guards, app=testing.hello, **options):
        self.clock = MeanwhileClock()
        self.store = testing.memory_store(self.clock)
        self.site = Browser(throttle(app, *guards, store=self.store, **options))
        monkeypatch.setattr(brief_wait, "monotonic", lambda: self.clock() / 1e6)

    def waited(self, site=None, path="/"):
        """Ask, and return the status and how long the request has waited."""
        before = self.clock()
        status = (site or self.site).get(path).status_code
        return status, (self.clock() - before) / 1e6


@pytest.fixture
def waiting(monkeypatch):
    return lambda *guards, **options: Waiting(monkeypatch, *guards, **options)


@pytest.mark.parametrize(
    "guard",
    [
        MaxConcurrentReqs(1, by="client"),
        MaxConcurrentReqs(1, by="client+agent"),
        MaxConcurrentReqs(1, by="header:X-Api-Key"),
        MaxConcurrentReqs(1, by=lambda _environ: "somebody"),
        MaxConcurrentReqs(lambda _environ: 1, by="client"),
        CPUThrottle("20%", at_once=1),
    ],
)
def test_a_request_just_before_the_end_of_the_last_one_is_admitted(waiting, guard):
    """Also in the only thread: the last response is in another process, or it is closed already."""
    here = waiting(guard)
    here.clock.meanwhile = {2: here.site.hold().close}

    response = here.site.get("/")

    assert response.status_code == 200
    assert response.request.environ["guardrails.decision"].outcome == "DELAYED"
    assert sum(here.clock.slept) <= 0.005
    assert nothing_is_left_in(here.store)


def test_a_client_that_is_really_twice_at_once_is_refused_after_a_few_milliseconds(waiting):
    here = waiting(MaxConcurrentReqs(1, by="client", name="cap", ban="1h"))

    with here.site.hold():
        assert here.waited() == (503, LONGEST)
    assert here.store.counters()["cap"].refused == 1
    assert here.site.get("/").status_code == 503, "the refusal has banned the client"
    assert nothing_is_left_in(here.store)


@pytest.mark.parametrize("by", ["all", "host", "path"])
def test_a_cap_that_clients_share_waits_for_nobody(waiting, by):
    here = waiting(MaxConcurrentReqs(1, by=by), MaxConcurrentReqs(2, by="client"))

    with here.site.hold():
        assert here.waited() == (503, 0)


def test_a_client_that_another_guard_refuses_does_not_wait(waiting):
    here = waiting(MaxConcurrentReqs(1, by="client"), SpeedLimit("1/hour", name="rate"))

    with here.site.hold():
        assert here.waited() == (503, 0)
    assert here.waited() == (429, 0)
    assert here.store.counters()["rate"].refused == 2


def test_of_each_client_one_request_waits(waiting):
    here = waiting(MaxConcurrentReqs(1, by="client"))
    other = here.site.at("192.0.2.2")
    met = []

    def meanwhile():
        met.append(here.site.get("/").status_code)
        met.append(len(here.clock.slept))
        with other.hold():
            met.append(other.get("/").status_code)
        met.append(len(here.clock.slept))

    here.clock.meanwhile = {1: meanwhile}
    with here.site.hold():
        here.site.get("/")
    assert met == [503, 1, 503, 1 + len(brief_wait.PAUSES)]


def test_after_a_wait_in_vain_nobody_waits_for_nine_times_as_long(waiting):
    """So those who hold their slots on purpose take at most a tenth of a worker's time."""
    here = waiting(MaxConcurrentReqs(1, by="client"))
    other = here.site.at("192.0.2.2")

    with here.site.hold(), other.hold():
        assert here.waited() == (503, LONGEST)
        assert here.waited() == (503, 0)
        assert here.waited(other) == (503, 0)
        here.clock.advance(9 * LONGEST)
        assert here.waited(other) == (503, LONGEST)


def test_a_wait_that_helped_delays_no_other(waiting):
    here = waiting(MaxConcurrentReqs(1, by="client"))

    for _ in range(5):
        here.clock.meanwhile = {len(here.clock.slept) + 1: here.site.hold().close}
        assert here.site.get("/").status_code == 200


def test_with_wait_the_request_waits_for_longer_where_a_thread_can_be_spared(waiting):
    here = waiting(MaxConcurrentReqs(1, by="client", wait="2s"))

    with here.site.hold():
        assert here.waited() == (503, LONGEST)
    here.clock.advance(1)
    with Threads(8) as crowd, here.site.hold():
        for number in range(len(crowd)):
            crowd.do(number, lambda: here.site.get("/robots.txt"))
        status, waited = crowd.do(0, here.waited)
    assert status == 503
    assert 2 <= waited <= 2.1


def test_a_dry_run_waits_for_nothing(waiting):
    here = waiting(MaxConcurrentReqs(1, by="client"), dry_run=True)

    with here.site.hold():
        assert here.waited() == (200, 0)


def test_an_admitted_request_asks_the_store_once():
    store = CountingStore()
    site = Browser(throttle(testing.hello, MaxConcurrentReqs(1, by="client"), store=store))
    site.statuses(5)

    assert store.calls == ["enter", "leave"] * 5


def test_where_the_store_fails_the_request_waits_as_well(store):
    """This process's memory stands in, on the real clock."""
    faulty = FaultyStore(store, StoreError("gone"), nth=1, persistent=True)
    site = Browser(throttle(testing.hello, MaxConcurrentReqs(1, by="client"), store=faulty))

    with site.hold():
        assert site.get("/").status_code == 503
    assert site.get("/").status_code == 200

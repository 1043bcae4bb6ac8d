"""A throttle in a throttle: one request, one client, one row, each guard once."""

import tempfile

import pytest

from guardrails import (
    BlockAgents,
    CPUThrottle,
    MaxConcurrentReqs,
    RequestInterruptedError,
    SpeedLimit,
    testing,
    throttle,
)
from guardrails.store import directory
from support import Browser, CountingStore, Exchange, nothing_is_left_in


def nested(outer_guards, inner_guards, *, store, app=testing.hello, inner=None, **outer):
    """An app behind two throttles. The inner one has a store of its own only if `inner` gives it."""
    within = throttle(app, *inner_guards, **(inner or {}))
    return Browser(throttle(within, *outer_guards, store=store, **outer))


def test_both_throttles_guard(store):
    site = nested([SpeedLimit("2/minute")], [SpeedLimit("1/minute", path="/login")], store=store)

    assert site.statuses(2, "/login") == [200, 429]
    assert site.at("192.0.2.2").statuses(3) == [200, 200, 429]


def test_the_inner_one_counts_in_the_outer_ones_store_and_on_its_clock(store, clock):
    site = nested([], [SpeedLimit("1/minute")], store=store)
    assert site.statuses(2) == [200, 429]

    clock.advance(60)

    assert site.get("/").status_code == 200
    assert store.counters()["speed-limit client"].admitted == 2


def test_the_same_guard_met_twice_charges_once(store):
    limit = SpeedLimit("2/minute")
    site = nested([limit], [limit], store=store)

    assert site.statuses(3) == [200, 200, 429]


def test_the_same_cap_met_twice_takes_one_slot(store):
    cap = MaxConcurrentReqs(1)
    site = nested([cap], [cap], store=store)

    with site.hold() as held:
        assert held.status_code == 200
        assert site.get("/").status_code == 503
    assert nothing_is_left_in(store)


def test_the_inner_one_has_the_outer_ones_client(store):
    """The outer one knows the proxy; the inner one was told nothing."""
    site = nested([], [SpeedLimit("1/minute")], store=store, trusted_proxies=["192.0.2.1"])
    first, second = ({"headers": {"X-Forwarded-For": f"198.51.100.{n}"}} for n in (1, 2))

    assert site.get("/", **first).status_code == 200
    assert site.get("/", **second).status_code == 200
    assert site.get("/", **first).status_code == 429


def test_an_inner_one_with_proxies_of_its_own_reads_the_client_itself(store):
    site = nested(
        [],
        [SpeedLimit("1/minute")],
        store=store,
        inner={"trusted_proxies": ()},
        trusted_proxies=["192.0.2.1"],
    )

    assert site.get("/", headers={"X-Forwarded-For": "198.51.100.1"}).status_code == 200
    assert site.get("/", headers={"X-Forwarded-For": "198.51.100.2"}).status_code == 429


def test_who_is_exempt_outside_is_exempt_inside(store):
    site = nested(
        [], [SpeedLimit("1/minute")], store=store, exempt=["192.0.2.1"], exempt_paths=["/health"]
    )

    assert site.statuses(3) == [200, 200, 200]
    assert site.at("192.0.2.2").statuses(3, "/health") == [200, 200, 200]
    assert site.at("192.0.2.2").statuses(2) == [200, 429]


def test_exemptions_of_its_own_replace_the_outer_ones(store):
    site = nested(
        [], [SpeedLimit("1/minute")], store=store, inner={"exempt": ["192.0.2.9"]}, exempt=["192.0.2.1"]
    )

    assert site.statuses(2) == [200, 429]
    assert site.at("192.0.2.9").statuses(3) == [200, 200, 200]


def test_a_guards_own_exemptions_hold_inside(store):
    site = nested([], [SpeedLimit("1/minute", exempt=["192.0.2.1"])], store=store)

    assert site.statuses(3) == [200, 200, 200]
    assert site.at("192.0.2.2").statuses(2) == [200, 429]


def test_a_request_has_one_row_however_many_throttles(store):
    rows = []

    def app(environ, start_response):
        rows.append(len(store.requests()))
        return testing.hello(environ, start_response)

    nested([SpeedLimit("9/minute")], [MaxConcurrentReqs(5)], store=store, app=app).get("/")

    assert rows == [1]
    assert nothing_is_left_in(store)


def test_a_request_is_left_once(store):
    counting = CountingStore(store)
    nested([SpeedLimit("9/minute")], [MaxConcurrentReqs(5)], store=counting).get("/")

    assert counting.calls.count("leave") == 1


def test_cpu_is_measured_once(store, cpu):
    """An outer and an inner share, both charged with the same 1.51 s: over half a window."""
    site = nested(
        [CPUThrottle("20%", name="outer")],
        [CPUThrottle("20%", name="inner")],
        store=store,
        app=cpu.app(1.51),
    )

    assert site.statuses(3) == [200, 200, 503]


def test_the_same_cpu_share_met_twice_charges_once(store, cpu):
    share = CPUThrottle("20%", window="15s")
    site = nested([share], [share], store=store, app=cpu.app(1.51))

    assert site.statuses(3) == [200, 200, 503]


def test_an_inner_cpu_share_is_charged_too(store, cpu):
    site = nested([SpeedLimit("99/minute")], [CPUThrottle("20%")], store=store, app=cpu.app(60.0))

    assert site.statuses(2) == [200, 503]


def test_what_the_inner_one_refuses_leaves_nothing_behind(store):
    site = nested([MaxConcurrentReqs(3)], [BlockAgents("guardrails")], store=store)
    site.statuses(3)

    assert nothing_is_left_in(store)


def test_an_inner_slot_lasts_as_long_as_the_response(store):
    site = nested([], [MaxConcurrentReqs(1)], store=store)

    with site.hold():
        assert site.get("/").status_code == 503
    assert site.get("/").status_code == 200


def test_an_inner_slot_for_the_call_is_given_back_when_the_app_returned(store):
    site = nested([], [MaxConcurrentReqs(1, hold="call")], store=store)

    with site.hold():
        assert site.get("/").status_code == 200


def test_an_inner_one_with_a_store_of_its_own_counts_there(store):
    other = testing.memory_store()
    site = nested([MaxConcurrentReqs(5)], [MaxConcurrentReqs(1)], store=store, inner={"store": other})

    with site.hold():
        assert len(store.requests()) == 1
        assert len(other.requests()) == 1
        assert site.get("/").status_code == 503
    assert nothing_is_left_in(store)
    assert nothing_is_left_in(other)


def test_an_inner_one_without_a_store_of_its_own_makes_none(store, tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "PREFERRED", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    site = nested([SpeedLimit("9/s")], [SpeedLimit("9/s", name="inner")], store=store)

    assert site.get("/").status_code == 200
    assert list(tmp_path.iterdir()) == []


def test_three_throttles_deep(store):
    guard = SpeedLimit("2/minute")
    app = throttle(throttle(throttle(testing.hello, guard), guard), guard, store=store)

    assert Browser(app).statuses(3) == [200, 200, 429]
    assert nothing_is_left_in(store)


def test_an_inner_one_that_is_switched_off_is_passed_through(store):
    site = nested(
        [SpeedLimit("3/minute")], [SpeedLimit("1/minute")], store=store, inner={"enabled": False}
    )

    assert site.statuses(2) == [200, 200]


def test_an_app_that_asks_its_own_site_is_a_request_of_its_own(store):
    """A sub-request with a fresh environ counts by itself, and everything is given back."""
    answers = []

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/outer":
            answers.append(Exchange(site, "/inner").finish())
        return testing.hello(environ, start_response)

    site = throttle(app, MaxConcurrentReqs(1, path="/outer"), SpeedLimit("2/minute"), store=store)
    Exchange(site, "/outer").finish()

    assert answers == [b"hello\n"]
    assert Browser(site).get("/").status_code == 429
    assert nothing_is_left_in(store)


def test_a_dry_run_outside_is_not_hidden_by_what_passes_inside(store):
    """The app sees the decision that says most: somebody would have refused."""
    site = nested(
        [SpeedLimit("1/minute", dry_run=True)], [SpeedLimit("9/minute", path="/x")], store=store
    )
    site.get("/")

    assert site.get("/").request.environ["guardrails.decision"].outcome == "REJECTED_DRY_RUN"


def test_two_caps_within_the_slots_of_one_request_may_be_nested(store):
    outer = [MaxConcurrentReqs(9, name=f"outer {n}") for n in range(4)]
    inner = [MaxConcurrentReqs(9, name=f"inner {n}") for n in range(4)]
    site = nested(outer, inner, store=store)

    with site.hold():
        assert sum(store.slots_held().values()) == 8
    assert nothing_is_left_in(store)


def test_more_caps_than_a_request_can_hold_slots_never_switch_the_inner_guards_off(store):
    """Five outside and five inside are more than eight: none of them may silently stop counting."""
    outer = [MaxConcurrentReqs(9, name=f"outer {n}") for n in range(5)]
    inner = [MaxConcurrentReqs(1, name=f"inner {n}") for n in range(5)]
    site = nested(outer, inner, store=store)

    with site.hold():
        assert site.get("/").status_code == 503


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


def test_an_inner_throttle_tells_addresses_of_one_64_apart(store):
    inner = throttle(testing.hello, SpeedLimit("1/hour"), exempt=["2001:db8::1/128"])
    site = Browser(throttle(inner, store=store))

    assert site.at("2001:db8::1").statuses(2) == [200, 200]
    assert site.at("2001:db8::bad").statuses(2) == [200, 429]


class InterruptedOnce(BlockAgents):
    """A guard in whose work a watchdog ends the request, once."""

    interrupted = False

    def requirement(self, bound, environ):
        if not type(self).interrupted:
            type(self).interrupted = True
            raise RequestInterruptedError
        return super().requirement(bound, environ)


def test_a_request_that_is_interrupted_while_an_inner_guard_is_asked_ends(store, clock):
    """It is not taken for a guard that failed."""
    inner = throttle(testing.hello, InterruptedOnce("bad"), store=testing.memory_store(clock))
    app = throttle(inner, SpeedLimit("9/second"), store=store)

    with pytest.raises(RequestInterruptedError):
        Exchange(app).call()
    assert store.requests() == []
    assert app.errors == inner.errors == {}

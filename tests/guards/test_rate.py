import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import SpeedLimit, testing, throttle
from support import Exchange

MICROSECOND = 0.000_001


def test_who_asks_faster_than_the_rate_is_refused_and_told_when_to_come_back(serve, clock):
    """10 a minute with a burst of 1 is one each 6 s: after 1.5 s there are 4.5 to go, told as 5."""
    site = serve(SpeedLimit("10/minute", burst=1))
    site.get("/")
    clock.advance(1.5)

    testing.assert_refused(site.get("/"), 429, retry_after=5)


def test_who_comes_back_when_told_is_admitted_and_not_a_microsecond_earlier(serve, clock):
    site = serve(SpeedLimit("1/minute"))
    site.get("/")
    told = int(site.get("/").headers["Retry-After"])

    clock.advance(told - MICROSECOND)
    assert site.get("/").status_code == 429

    clock.advance(MICROSECOND)
    assert site.get("/").status_code == 200


def test_a_rate_is_a_burst_of_its_count_and_then_goes_on_evenly(serve, clock):
    """So 120 a minute is 120 at once, and then two a second."""
    site = serve(SpeedLimit("120/minute"))

    assert site.statuses(121) == [200] * 120 + [429]
    clock.advance(1)
    assert site.statuses(3) == [200, 200, 429]


def test_the_first_minute_of_120_a_minute_sees_239_at_most(serve, clock):
    """A client that asks at every instant when it could be admitted."""
    site = serve(SpeedLimit("120/minute"))
    admitted = site.statuses(121).count(200)
    for _ in range(119):
        clock.advance(0.5)
        admitted += site.statuses(2).count(200)

    assert admitted == 239


def test_a_burst_of_its_own_says_how_many_may_come_at_once(serve):
    site = serve(SpeedLimit("120/minute", burst=3))

    assert site.statuses(4) == [200, 200, 200, 429]


def test_each_client_has_a_rate_of_its_own(serve):
    site = serve(SpeedLimit("1/minute"))
    site.get("/")

    assert site.get("/").status_code == 429
    assert site.at("192.0.2.2").get("/").status_code == 200


def test_a_refused_request_does_not_put_off_the_next_admission(serve, clock):
    site = serve(SpeedLimit("1/minute"))
    site.get("/")
    clock.advance(30)
    site.statuses(20)
    clock.advance(30)

    assert site.get("/").status_code == 200


def test_of_several_rates_each_must_admit(serve, clock):
    """2 a second and 3 a minute: the first refuses the third at once, the second the fourth later."""
    site = serve(SpeedLimit("2/second; 3/minute"))

    assert site.statuses(3) == [200, 200, 429]
    clock.advance(1)
    assert site.statuses(2) == [200, 429]


def test_of_several_rates_that_refuse_the_latest_is_told(serve):
    site = serve(SpeedLimit("1/second; 1/minute"))
    site.get("/")

    testing.assert_refused(site.get("/"), 429, retry_after=60)


def test_a_request_refused_by_one_rate_is_not_charged_on_the_other(serve, clock):
    site = serve(SpeedLimit("1/second; 3/minute"))
    site.statuses(10)
    clock.advance(1)
    site.statuses(10)
    clock.advance(1)

    assert site.get("/").status_code == 200


def test_a_cost_takes_so_many_units(serve):
    site = serve(SpeedLimit("10/minute", cost=4))

    assert site.statuses(3) == [200, 200, 429]


def test_a_cost_may_depend_on_the_request(serve):
    def pages(environ):
        return 5 if environ["PATH_INFO"] == "/export" else 1

    site = serve(SpeedLimit("10/minute", cost=pages))

    assert site.get("/export").status_code == 200
    assert site.statuses(6) == [200] * 5 + [429]


def test_a_cost_of_nothing_only_looks(serve):
    """A request that costs 0 passes while one unit's worth is not asked for, and charges nothing."""
    site = serve(SpeedLimit("1/minute", cost=lambda environ: int(environ["PATH_INFO"] != "/free")))
    site.statuses(5, "/free")

    assert site.statuses(2) == [200, 429]


def test_a_cost_that_could_never_be_admitted_is_refused_without_retry_after(serve, caplog):
    site = serve(SpeedLimit("3/minute", cost=lambda _environ: 4))

    refused = site.get("/")
    site.get("/")

    testing.assert_refused(refused, 429)
    assert "Retry-After" not in refused.headers
    assert caplog.text.count("a request costs more than could ever be admitted") == 1


def test_a_rate_may_depend_on_the_request(serve):
    """Tiers: who has a key gets more, and who is of the house has no limit at all."""

    def tier(environ):
        return {"gold": "3/minute", "house": None}.get(environ.get("HTTP_X_TIER"), "1/minute")

    site = serve(SpeedLimit(tier, by="header:X-Tier"))

    assert site.statuses(2) == [200, 429]
    assert site.statuses(4, headers={"X-Tier": "gold"}) == [200, 200, 200, 429]
    assert site.statuses(9, headers={"X-Tier": "house"}) == [200] * 9


def test_a_tier_counts_for_the_throttle_that_asks(serve):
    """One value on duty in two throttles, under two names: each names itself."""
    shared = SpeedLimit(lambda _environ: "1/minute")
    one = serve(SpeedLimit("9/minute", name="other"), shared)
    two = serve(SpeedLimit("9/minute"), shared, store=testing.memory_store())

    assert one.statuses(2) == [200, 429]
    assert two.get("/").status_code == 200
    testing.assert_refused(two.get("/"), 429, guard="speed-limit client 2")


def test_what_a_tier_says_wrong_lets_the_request_pass_and_is_logged(serve, caplog):
    site = serve(SpeedLimit(lambda _environ: "many"))

    assert site.get("/").status_code == 200
    assert "'many' is not a rate" in caplog.text


ENVIRON = Exchange(testing.hello).environ


def admitted_instants(limit, gaps):
    """When the requests of a client were admitted, that come with such gaps, in microseconds."""
    clock = testing.Clock()
    app = throttle(testing.hello, limit, store=testing.memory_store(clock))
    instants = []
    for gap in gaps:
        clock.advance(gap / 1e6)
        exchange = Exchange(app, environ=ENVIRON)
        exchange.finish()
        if exchange.status.startswith("200"):
            instants.append(clock())
    return instants


@given(
    count=st.integers(1, 7),
    period=st.integers(1, 9),
    gaps=st.lists(st.integers(0, 2_000_000), min_size=10, max_size=60),
)
def test_strict_lets_no_window_of_the_period_see_more_than_the_count(count, period, gaps):
    instants = admitted_instants(SpeedLimit(f"{count}/{period} seconds", strict=True), gaps)

    for start in instants:
        assert sum(start <= instant < start + period * 1_000_000 for instant in instants) <= count


@given(
    count=st.integers(2, 7),
    burst=st.integers(1, 7),
    gaps=st.lists(
        st.sampled_from([0, 1, 333_333, 500_000, 999_999, 1_000_000]), min_size=10, max_size=60
    ),
)
def test_strict_holds_with_a_burst_of_ones_own(count, burst, gaps):
    limit = SpeedLimit(f"{count}/second", burst=min(burst, count), strict=True)
    instants = admitted_instants(limit, gaps)

    for start in instants:
        assert sum(start <= instant < start + 1_000_000 for instant in instants) <= count


@given(
    count=st.integers(1, 5),
    burst=st.integers(1, 9),
    gaps=st.lists(st.integers(0, 2_000_000), min_size=5, max_size=60),
)
def test_no_window_ever_sees_more_than_the_burst_and_what_the_rate_allows(count, burst, gaps):
    """The bound of the algorithm: in any time t at most burst + rate x t."""
    instants = admitted_instants(SpeedLimit(f"{count}/second", burst=burst), gaps)

    for first, start in enumerate(instants):
        for last, end in enumerate(instants[first:], first):
            assert (last - first + 1 - burst) * 1_000_000 <= (end - start) * count


def test_strict_lets_half_come_at_once(serve):
    site = serve(SpeedLimit("10/minute", strict=True))

    assert site.statuses(6) == [200] * 5 + [429]


@pytest.mark.parametrize("remaining", [2, 1, 0])
def test_the_decision_says_how_many_more_may_come(serve, remaining):
    site = serve(SpeedLimit("3/minute"))
    site.statuses(2 - remaining)

    assert site.get("/").request.environ["guardrails.decision"].remaining == remaining


def test_a_quick_tier_does_not_wipe_out_a_slow_one(serve):
    site = serve(
        SpeedLimit(lambda environ: "5/hour" if environ["PATH_INFO"] == "/login" else "100/second")
    )

    logins = []
    for _ in range(4):
        logins += site.statuses(5, "/login")
        assert site.get("/").status_code == 200
    assert logins.count(200) == 5

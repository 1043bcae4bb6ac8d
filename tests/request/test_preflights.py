"""Preflights: a page of another origin asks by OPTIONS before each of its calls."""

import pytest

from guardrails import CPUThrottle, MaxConcurrentReqs, SpeedLimit, testing, throttle

ORIGIN = {"Origin": "https://front.example"}
PREFLIGHT = {**ORIGIN, "Access-Control-Request-Method": "PUT"}


def preflight(site, path="/api", headers=PREFLIGHT):
    return site.options(path, headers=headers).status_code


def calls(site, count, path="/api"):
    """The pairs of statuses of so many calls from a page of another origin."""
    return [(preflight(site, path), site.put(path, headers=ORIGIN).status_code) for _ in range(count)]


def test_a_page_of_another_origin_makes_as_many_calls_as_the_rate_says(serve):
    site = serve(SpeedLimit("10/minute", path="/api"))

    assert calls(site, 10) == [(200, 200)] * 10
    assert site.put("/api", headers=ORIGIN).status_code == 429


def test_a_flood_of_preflights_is_limited_by_the_same_figures(serve, clock):
    site = serve(SpeedLimit("10/minute"))

    assert [preflight(site) for _ in range(12)] == [200] * 10 + [429] * 2
    assert site.statuses(11) == [200] * 10 + [429]
    clock.advance(6)
    assert [preflight(site), preflight(site)] == [200, 429]


def test_each_of_several_rates_counts_preflights_apart(serve, clock):
    site = serve(SpeedLimit("5/second; 7/minute"))

    assert calls(site, 5) == [(200, 200)] * 5
    clock.advance(1)
    assert calls(site, 3) == [(200, 200)] * 2 + [(429, 429)]


@pytest.mark.parametrize("methods", ["OPTIONS", ["options", "PUT"]])
def test_a_guard_that_names_options_counts_preflights_as_any(serve, methods):
    site = serve(SpeedLimit("3/minute", methods=methods))

    statuses = [preflight(site), site.options("/api").status_code, preflight(site), preflight(site)]
    assert statuses == [200, 200, 200, 429]


def test_a_guard_for_other_methods_does_not_cover_preflights(serve):
    site = serve(SpeedLimit("1/minute", methods=["PUT"]))

    assert [preflight(site) for _ in range(3)] == [200] * 3


@pytest.mark.parametrize(
    "headers", [{}, ORIGIN, {"Access-Control-Request-Method": "PUT"}, {**PREFLIGHT, "Origin": ""}]
)
def test_another_request_by_options_is_no_preflight(serve, headers):
    site = serve(SpeedLimit("2/minute"))
    site.get("/api")

    assert [preflight(site, headers=headers) for _ in range(2)] == [200, 429]


def test_the_headers_of_a_preflight_make_none_of_another_method(serve):
    site = serve(SpeedLimit("2/minute"))

    assert site.statuses(3, headers=PREFLIGHT) == [200, 200, 429]


def test_tiers_count_preflights_apart(serve):
    """A preflight has no key of the API, so it is of the lowest tier."""

    def tier(environ):
        return "3/minute" if environ.get("HTTP_X_API_KEY") else "2/minute"

    site = serve(SpeedLimit(tier))

    assert calls(site, 2) == [(200, 200)] * 2
    assert preflight(site) == 429
    assert site.statuses(4, headers={"X-Api-Key": "k"}) == [200, 200, 200, 429]


def test_a_preflight_takes_a_slot_as_any(serve):
    site = serve(MaxConcurrentReqs(1))

    with site.hold():
        assert preflight(site) == 503
    with site.options("/", headers=PREFLIGHT, buffered=False):
        assert site.get("/").status_code == 503


def test_the_cpu_of_preflights_is_charged_as_any(serve, cpu):
    site = serve(CPUThrottle("20%", window="5s"), app=cpu.app(3.0))

    assert preflight(site) == 200
    assert site.get("/").status_code == 503


def test_a_ban_refuses_preflights_and_a_flood_of_them_bans(serve):
    guard = SpeedLimit("2/minute", ban="1h")
    site = serve(guard)
    site.statuses(3)
    assert preflight(site) == 429

    same_site = PREFLIGHT | {"Sec-Fetch-Site": "same-site"}
    flooding = site.at("192.0.2.2")
    assert [preflight(flooding, headers=same_site) for _ in range(3)] == [200, 200, 429]
    assert flooding.get("/").status_code == 429


def test_all_workers_count_preflights_together(shared):
    workers = [throttle(testing.hello, SpeedLimit("2/minute"), store=shared) for _ in range(2)]
    first, second = (testing.Client(worker) for worker in workers)

    statuses = [client.options("/", headers=PREFLIGHT).status_code for client in (first, second, first)]
    assert statuses == [200, 200, 429]


def test_an_inner_throttle_counts_preflights_apart(store):
    inner = throttle(testing.hello, SpeedLimit("2/minute", name="inner"))
    site = testing.Client(throttle(inner, SpeedLimit("9/minute"), store=store))

    assert calls(site, 3) == [(200, 200)] * 2 + [(429, 429)]

"""robots.txt: 30 plain requests a minute are never refused; the rest is guarded like any other path."""

import pytest

from guardrails import BlockAgents, CPUThrottle, MaxConcurrentReqs, SpeedLimit, testing, throttle
from support import Browser

ROBOTS = "/robots.txt"


@pytest.mark.parametrize("agent", ["EvilBot", "Mozilla/5.0"])
def test_within_the_allowance_nothing_refuses_it(serve, cpu, agent):
    """Not a rate, a cap, a CPU share, a list of agents, nor a ban."""
    guards = [
        SpeedLimit("1/hour", ban="1h"),
        MaxConcurrentReqs(1),
        CPUThrottle("1%", window="1s"),
        BlockAgents("EvilBot", missing="refuse", ban="1h"),
    ]
    site = serve(*guards, app=cpu.app(60.0), agent=agent)
    site.statuses(3)

    with site.hold(ROBOTS):
        assert site.statuses(28, ROBOTS) == [200] * 28
        assert site.head(ROBOTS).status_code == 200
    assert site.get("/robots.txt.bak").status_code in {403, 429, 503}


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", ROBOTS),
        ("DELETE", ROBOTS),
        ("OPTIONS", ROBOTS),
        ("GET", ROBOTS + "?all=1"),
        ("HEAD", ROBOTS + "?x"),
        ("GET", ROBOTS + "/"),
        ("GET", ROBOTS + "/login"),
        ("GET", "//robots.txt"),
        ("GET", "/Robots.txt"),
    ],
)
def test_any_other_request_is_guarded_like_any_other_path(serve, method, target):
    site = serve(BlockAgents("EvilBot"), SpeedLimit("1/minute", ban="1h"))

    assert site.at(agent="EvilBot").open(target, method=method).status_code == 403
    statuses = [site.open(target, method=method).status_code for _ in range(2)]
    assert statuses == [200, 429]
    assert site.open(target, method=method).status_code == 429
    assert site.get(ROBOTS).status_code == 200


def test_a_flood_of_it_is_guarded_like_any_other_path(serve, clock):
    site = serve(SpeedLimit("2/minute", ban="20m"))

    assert site.statuses(34, ROBOTS) == [200] * 32 + [429] * 2
    assert site.get("/").status_code == 429
    clock.advance(60)
    assert site.statuses(31, ROBOTS) == [200] * 30 + [429]
    assert site.at("192.0.2.2").statuses(30, ROBOTS) == [200] * 30


def test_beyond_the_allowance_a_blocked_agent_is_refused(serve):
    site = serve(BlockAgents("EvilBot"), agent="EvilBot")

    assert site.statuses(31, ROBOTS) == [200] * 30 + [403]


def test_what_the_allowance_lets_through_is_charged_to_no_guard(serve, store):
    site = serve(SpeedLimit("2/minute"))
    site.statuses(30, ROBOTS)

    assert site.statuses(3) == [200, 200, 429]
    assert store.counters()["robots.txt"].admitted == 30


def test_all_workers_count_it_together(shared):
    sites = [Browser(throttle(testing.hello, BlockAgents("."), store=shared)) for _ in range(2)]

    assert sites[0].statuses(20, ROBOTS) + sites[1].statuses(11, ROBOTS) == [200] * 30 + [403]


@pytest.mark.parametrize(
    "options", [{"exempt": ["192.0.2.1"]}, {"exempt_paths": [ROBOTS]}, {"dry_run": True}]
)
def test_who_is_exempt_needs_no_allowance(serve, options):
    site = serve(BlockAgents("."), **options)

    assert site.statuses(40, ROBOTS) == [200] * 40
    assert not site.application_under_test.errors


def test_a_store_that_is_switched_to_a_dry_run_refuses_it_not(serve, store):
    site = serve(BlockAgents("."))
    store.switch("dry-run")

    assert site.statuses(40, ROBOTS) == [200] * 40
    assert not site.application_under_test.errors


def test_requests_without_a_client_share_an_allowance(serve):
    site = serve(BlockAgents("."), address="")

    assert site.statuses(31, ROBOTS) == [200] * 30 + [403]


def test_throttles_within_each_other_ask_the_allowance_once(store):
    inner = throttle(testing.hello, BlockAgents("."), exempt_paths=["/static"])
    site = Browser(throttle(inner, SpeedLimit("1/minute"), exempt=["192.0.2.9"], store=store))

    assert site.statuses(32, ROBOTS) == [200] * 30 + [403, 429]
    exempt_outside = site.at("192.0.2.9")
    assert exempt_outside.statuses(31, ROBOTS) == [200] * 30 + [403]

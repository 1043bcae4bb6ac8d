"""Requests that a page of another site makes its visitors send: refused as any, but they ban nobody.

tests/servers/test_chromium.py shows that a browser marks such requests as it is assumed here.
"""

import pytest

from guardrails import BlockAgents, MaxConcurrentReqs, SpeedLimit, testing, throttle

HERE, ELSEWHERE = "https://shop.example", "https://evil.example"
LOGIN = SpeedLimit("5/minute", path="/login", methods=["POST"], ban="20m")


def post(site, count=1, path="/login", **headers):
    """Statuses of so many posts to shop.example."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named.setdefault("Host", "shop.example")
    return [site.post(path, headers=named).status_code for _ in range(count)]


FOREIGN = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "cross-site", "Origin": ELSEWHERE},
    {"Sec_Fetch_Site": "cross-site", "Origin": HERE},
    {"Origin": ELSEWHERE},
    {"Origin": "https://www.shop.example"},
    {"Origin": "null"},
]
OWN = [
    {},
    {"Sec_Fetch_Site": "same-origin"},
    {"Sec_Fetch_Site": "same-site", "Origin": "https://www.shop.example"},
    {"Sec_Fetch_Site": "none"},
    {"Origin": HERE},
    {"Origin": "http://SHOP.example:8080"},
    {"Origin": HERE, "Host": "shop.example.:443"},
    {"Origin": "http://[2001:db8::1]:8080", "Host": "[2001:db8::1]"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_foreign_page_bans_none_of_its_visitors(serve, clock, headers):
    site = serve(LOGIN)

    assert post(site, 8, **headers) == [200] * 5 + [429] * 3
    assert site.get("/").status_code == 200
    clock.advance(60)
    assert post(site) == [200]


@pytest.mark.parametrize("headers", OWN)
def test_the_sites_own_pages_and_programs_are_banned_as_ever(serve, clock, headers):
    site = serve(LOGIN)

    assert post(site, 6, **headers) == [200] * 5 + [429]
    assert site.get("/").status_code == 429
    clock.advance(60)
    assert post(site) == [429]


def test_such_requests_are_counted_as_any(serve):
    site = serve(LOGIN)

    assert post(site, 3, Origin=ELSEWHERE) + post(site, 3) == [200] * 5 + [429]
    assert site.get("/").status_code == 429


def test_a_banned_client_cannot_get_in_by_claiming_to_come_from_elsewhere(serve):
    site = serve(LOGIN)
    post(site, 6)

    for headers in FOREIGN:
        assert post(site, 1, "/", **headers) == [429]


def test_the_answer_to_such_a_request_names_no_ban(serve):
    site = serve(SpeedLimit("1/minute", ban="20m"))
    site.get("/")

    refused = site.get("/", headers={"Sec-Fetch-Site": "cross-site"})
    testing.assert_refused(refused, 429, retry_after=60)


def test_no_kind_of_guard_bans_for_such_a_request(serve):
    guards = [
        BlockAgents("EvilBot", ban="1h"),
        MaxConcurrentReqs(1, path="/report", ban="1h"),
        SpeedLimit(lambda _environ: "1/minute", path="/api", ban="1h"),
    ]
    site = serve(*guards)
    headers = {"Sec-Fetch-Site": "cross-site"}

    assert site.at(agent="EvilBot").get("/", headers=headers).status_code == 403
    with site.hold("/report"):
        assert site.get("/report", headers=headers).status_code == 503
    assert site.statuses(2, "/api", headers=headers) == [200, 429]
    assert site.get("/").status_code == 200
    assert site.get("/api").status_code == 429
    assert site.get("/").status_code == 429


def test_a_flood_of_preflights_from_a_foreign_page_bans_nobody(serve):
    site = serve(SpeedLimit("2/minute", ban="1h"))
    headers = {
        "Origin": ELSEWHERE,
        "Access-Control-Request-Method": "PUT",
        "Sec-Fetch-Site": "cross-site",
    }

    statuses = [site.options("/", headers=headers).status_code for _ in range(4)]
    assert statuses == [200, 200, 429, 429]
    assert site.get("/").status_code == 200


def test_a_dry_run_reports_no_ban_for_such_a_request(serve):
    site = serve(LOGIN, dry_run=True)
    post(site, 8, Origin=ELSEWHERE)

    decision = site.get("/").request.environ["guardrails.decision"]
    assert decision.outcome == "PASSED"


def test_an_inner_throttle_bans_nobody_either(store):
    inner = throttle(testing.hello, LOGIN)
    site = testing.Client(throttle(inner, SpeedLimit("99/minute"), store=store))

    assert post(site, 6, Origin=ELSEWHERE) == [200] * 5 + [429]
    assert site.get("/").status_code == 200


def test_all_workers_agree_that_nobody_is_banned(shared):
    sites = [testing.Client(throttle(testing.hello, LOGIN, store=shared)) for _ in range(2)]
    for site in sites:
        post(site, 4, Origin=ELSEWHERE)

    assert [site.get("/").status_code for site in sites] == [200, 200]
    assert post(sites[0]) == [429]
    assert sites[1].get("/").status_code == 429

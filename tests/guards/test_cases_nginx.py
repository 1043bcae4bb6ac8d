"""What nginx' own tests say of limit_req and limit_conn, asked of SpeedLimit and MaxConcurrentReqs.

nginx counts `burst` beyond the first request; ours counts all that may come at once, so one more.
Its zones are our names: one guard over several paths is one zone over several locations.
"""

import logging

import pytest

from guardrails import MaxConcurrentReqs, SpeedLimit, testing, throttle
from support import Browser, Exchange, MeanwhileClock, Threads, cases, lines, nothing_is_left_in

RATES = cases("limit_req_nginx")
CAPS = cases("limit_conn_nginx")


def limit_of(case, **options):
    """Nginx' figures in our words."""
    given = RATES[case]["given"]
    return SpeedLimit(given["rate"], burst=given["burst"] + 1, **options)


def test_burst_nodelay(serve):
    """Nginx refuses with 503, we with 429: a client that is too fast is no overload."""
    statuses = [step["expect"]["status"] for step in RATES["burst-nodelay"]["steps"]]
    site = serve(limit_of("burst-nodelay", status=503))

    assert site.statuses(len(statuses)) == statuses


def test_custom_status_same_zone(serve):
    """Two locations that share a zone with a status each are two throttles around one rate here.

    A guard has one status, so the zone's other location is a guard of its own name; what is shared,
    and asserted, is the rate: one guard over both paths, in the status that the case wants.
    """
    status = RATES["custom-status-same-zone"]["expect"]["status"]
    site = serve(limit_of("custom-status-same-zone", path=["/one", "/other"], status=status))
    site.statuses(3, "/one")

    assert site.get("/other").status_code == status


def test_rejects_not_counted(serve, clock):
    site = serve(limit_of("rejects-not-counted"))
    site.statuses(9)
    clock.advance(0.5)

    assert site.get("/").status_code == RATES["rejects-not-counted"]["expect"]["status"]


def test_delayed_body_whole(clock, store):
    size = RATES["delayed-body-whole"]["given"]["body_bytes"]

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return iter([b"x" * (size // 4)] * 4)

    site = Browser(throttle(app, SpeedLimit("2/second", burst=1, wait="3s"), store=store))
    with Threads(4) as threads:
        for number in range(4):
            threads.do(number, lambda: site.get("/robots.txt"))
        first = threads.do(0, lambda: site.get("/"))
        delayed = threads.do(0, lambda: site.get("/"))

    assert delayed.request.environ["guardrails.decision"].outcome == "DELAYED"
    assert len(delayed.data) == len(first.data) == size


def test_negative_excess(serve, clock):
    site = serve(limit_of("negative-excess"))
    site.get("/")
    clock.advance(0.1)

    assert site.get("/").status_code == RATES["negative-excess"]["expect"]["status"]


def test_two_stage_delay():
    """nginx: of a burst of 2 one passes at once, the other late, and the next is refused.

    Ours has no two stages in one figure: burst=2 is what passes at once, and wait="2s" holds the third
    back by one interval of 2 s. The fourth comes meanwhile, would have to wait for longer, and is
    refused.
    """
    clock = MeanwhileClock()
    limit = SpeedLimit(RATES["two-stage-delay"]["given"]["rate"], burst=2, wait="2s", status=503)
    site = Browser(throttle(testing.hello, limit, store=testing.memory_store(clock)))
    met = {}

    def ask(number):
        response = site.get("/")
        outcome = response.request.environ["guardrails.decision"].outcome
        met[number] = {"status": response.status_code, "delayed": outcome == "DELAYED"}

    with Threads(8) as threads:
        for thread in range(8):
            threads.do(thread, lambda: site.get("/robots.txt"))
        clock.meanwhile = {1: lambda: threads.do(1, lambda: ask(3))}
        for number in range(3):
            threads.do(0, lambda number=number: ask(number))

    expected = [{"delayed": False, **step["expect"]} for step in RATES["two-stage-delay"]["steps"]]
    assert [met[number] for number in range(4)] == expected


def test_same_zone_two_locations(serve):
    cap = MaxConcurrentReqs(1, name="a", path=["/w", "/", "/1"])
    site = serve(cap)

    with site.hold("/w"):
        for step in CAPS["same-zone-two-locations"]["expect"]:
            assert site.get(step["path"]).status_code == step["status"]


def test_other_zone_free(serve):
    site = serve(
        MaxConcurrentReqs(1, name="a", exempt_paths=["/zone"]),
        MaxConcurrentReqs(1, name="b", path="/zone"),
    )

    with site.hold("/w"):
        assert site.get("/").status_code == 503
        assert site.get("/zone").status_code == 200


def test_client_gone_frees_slot(store):
    app = throttle(testing.hello, MaxConcurrentReqs(1), store=store)
    held = Exchange(app, "/w").call()
    held.close()

    assert Browser(app).get("/1").status_code == 200
    assert nothing_is_left_in(store)


def test_custom_status(serve, caplog):
    caplog.set_level(logging.INFO, "guardrails")
    status = CAPS["custom-status"]["expect"]["status"]
    site = serve(MaxConcurrentReqs(1, name="c", path="/custom", status=status))

    with site.hold("/custom/w"):
        assert site.get("/custom").status_code == status
    (line,) = lines(caplog, level="INFO")
    assert " by c: " in line


def test_per_location_maximum(serve):
    """nginx: one counter, a maximum of its own per location. Ours: a limit that depends on the path.

    The missing file of the case (404) is whatever the app answers; here it answers with 200.
    """
    site = serve(
        MaxConcurrentReqs(lambda environ: 5 if environ["PATH_INFO"] == "/unlim" else 1, name="a")
    )

    with site.hold("/w"):
        assert site.get("/unlim").status_code == 200
        assert site.get("/").status_code == 503


@pytest.mark.parametrize("file", [RATES, CAPS], ids=["limit_req", "limit_conn"])
def test_no_case_of_the_files_is_left_out(file):
    for case in file:
        assert f"test_{case.replace('-', '_')}" in globals()

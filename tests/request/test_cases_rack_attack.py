"""What rack-attack's own tests say, asked of guardrails.

Three differences are on purpose, and each test that meets one says so:
- rack-attack counts in windows aligned to the epoch, so the whole count may come at the end of one and
  again at the start of the next. guardrails' rates are GCRA: one each `period / count` after the burst.
- Retry-After is always sent with a 429; rack-attack leaves it out unless told otherwise.
- A refused request is not counted, so nothing grows while a client knocks; rack-attack counts on.
"""

import pytest

from guardrails import BlockAgents, Decision, SpeedLimit, testing
from guardrails.store.records import GuardCounters
from support import cases

CASES = cases("middleware_rack_attack")


def key_in(environ):
    return environ.get("HTTP_X_API_KEY")


def walk(case, site, clock, check):
    """Walk through the steps of a case in the order of their times, each client on its own address."""
    now = 0
    for step in sorted(CASES[case]["steps"], key=lambda step: step.get("t", 0)):
        clock.advance(step.get("t", 0) - now)
        now = step.get("t", 0)
        headers = {"X-Api-Key": "k"} if step.get("api_key") else {}
        agent = step.get("user_agent", "guardrails-testing")
        check(site.at(step["client"], agent=agent).get("/", headers=headers), step["expect"])


def statuses(response, expect):
    assert response.status_code == expect["status"]


def test_one_per_minute(serve, clock):
    """We send Retry-After, and a body that says why; rack-attack says "Retry later"."""

    def check(response, expect):
        statuses(response, expect)
        if expect["status"] == 429:
            assert response.headers["Retry-After"] == "60"
            assert "Try again in 60 s." in response.text

    walk("one-per-minute", serve(SpeedLimit("1/minute")), clock, check)


def test_retry_after(serve, clock):
    """In the case a window began at 0; ours begins with the request at 0, so the figure is the same."""

    def check(response, expect):
        statuses(response, expect)
        for name, value in expect.get("header", {}).items():
            assert response.headers[name] == value

    walk("retry-after", serve(SpeedLimit("1/minute")), clock, check)


def test_limit_per_request(serve, clock):
    site = serve(SpeedLimit(lambda environ: "2/minute" if key_in(environ) else "1/minute"))

    walk("limit-per-request", site, clock, statuses)


def test_period_per_request(serve, clock):
    site = serve(SpeedLimit(lambda environ: "1/10 seconds" if key_in(environ) else "1/30 seconds"))

    walk("period-per-request", site, clock, statuses)


def test_notify_only_on_throttle(serve, clock):
    """on_decision tells of refusals only. It has no count: refused requests are not counted here."""
    told = []
    site = serve(
        SpeedLimit("1/minute", name="by ip"),
        on_decision=lambda decision, _environ: told.append(decision),
    )

    def check(response, expect):
        statuses(response, expect)
        assert len(told) == expect["events"]
        if "event" in expect:
            assert (told[0].guard, told[0].key) == (expect["event"]["rule"], expect["event"]["key"])

    walk("notify-only-on-throttle", site, clock, check)


def test_throttle_data_on_pass(serve, clock):
    """rack-attack counts up to the limit, we say how many more may come: limit 1, count 1, 0 remain."""

    def check(response, expect):
        statuses(response, expect)
        data = expect["environ_data"]
        decision = response.request.environ["guardrails.decision"]
        assert decision.remaining == data["limit"] - data["count"]
        assert response.request.environ["REMOTE_ADDR"] == data["key"]

    walk("throttle-data-on-pass", serve(SpeedLimit("1/minute", name="ip/sec")), clock, check)


def test_throttle_data_on_refusal(serve, clock):
    def check(response, expect):
        statuses(response, expect)
        if "environ_data" in expect:
            data = expect["environ_data"]
            decision = response.request.environ["guardrails.decision"]
            assert (decision.guard, decision.key) == (data["rule"], data["key"])
            assert decision.outcome == "REJECTED"
            assert decision.retry_after == data["period"]

    walk("throttle-data-on-refusal", serve(SpeedLimit("1/minute", name="ip/sec")), clock, check)


def test_no_key_no_count(serve, store):
    """There is a Decision on each request, which says that nothing was decided."""
    site = serve(SpeedLimit("1/minute", by=lambda _environ: None))

    responses = [site.get("/") for _ in range(9)]

    assert {response.status_code for response in responses} == {200}
    for response in responses:
        decision = response.request.environ["guardrails.decision"]
        assert decision == Decision(id=decision.id)
    assert store.counters() == {"speed-limit <lambda>": GuardCounters()}


@pytest.mark.parametrize("normalised", [True, False])
def test_key_normalised(serve, normalised):
    """A key is what the callable returns: it normalises, or there are as many counters as spellings."""
    emails = ["person@example.com", "PERSON@example.com ", " person@example.com\r\n  "]
    asked = iter(emails * 2)

    def email(_environ):
        return next(asked).strip().lower() if normalised else next(asked)

    site = serve(SpeedLimit("4/minute", by=email))
    admitted = site.statuses(6).count(200)

    # Six requests are one counter at 4, or three counters at 2.
    assert admitted == (4 if normalised else 6)


def test_custom_refusal(serve, clock):
    """A status of one's own, yes; a body of one's own is the business of the server in front."""

    def check(response, expect):
        statuses(response, expect)
        if expect["status"] == 503:
            testing.assert_refused(response, 503, retry_after=60)

    walk("custom-refusal", serve(SpeedLimit("1/minute", status=503)), clock, check)


def test_count_goes_on(serve):
    """It does not, here: a refused request changes nothing, so both refusals say the same."""
    site = serve(SpeedLimit("1/minute", name="by ip"))
    site.get("/")
    refusals = [site.get("/").request.environ["guardrails.decision"] for _ in range(2)]

    assert refusals[0]._replace(id=0) == refusals[1]._replace(id=0)


def blocklist_of(case):
    """Guardrails blocks agents, and addresses by a ban; a list of addresses is what the case wants.

    An address that is to be refused always is a client with a tier of its own: no request of it can be
    admitted, since its cost is above the burst. That is a refusal for good, without Retry-After.
    """
    listed = CASES[case]["given"]["blocklist"]
    return SpeedLimit(
        "1/second",
        by=lambda environ: environ["REMOTE_ADDR"] if environ["REMOTE_ADDR"] in listed else None,
        cost=lambda _environ: 2,
        status=403,
        name="blocklist",
    )


def test_blocklist(serve, clock):
    def check(response, expect):
        statuses(response, expect)
        if expect["status"] == 403:
            assert response.text.startswith("403 Forbidden\n")
            assert "Retry-After" not in response.headers
            assert response.request.environ["guardrails.decision"].guard == "blocklist"

    walk("blocklist", serve(blocklist_of("blocklist")), clock, check)


def test_safelist_wins(serve, clock):
    """A safelist by agent is no good idea, since anybody may name one: exemptions are by network.

    What the case promises is kept: whoever is exempt passes, although a guard would refuse.
    """
    site = serve(blocklist_of("safelist-wins"), exempt=CASES["safelist-wins"]["given"]["blocklist"])

    walk("safelist-wins", site, clock, statuses)


def test_switch_off(serve, store):
    site = serve(blocklist_of("switch-off"), address="1.2.3.4")
    met = [site.get("/").status_code]
    store.switch("off", "blocklist")
    met.append(site.get("/").status_code)

    assert met == CASES["switch-off"]["expect"]


def test_a_window_at_whose_border_the_count_comes_twice_is_not_ours(serve, clock):
    """The first difference, in figures: 5 at the end of a window, and 5 more 2 s later."""
    site = serve(SpeedLimit("5/minute"))
    clock.advance(59)
    at_the_end = site.statuses(5)
    clock.advance(2)
    at_the_start = site.statuses(5)

    assert at_the_end == [200] * 5
    assert at_the_start == [429] * 5


def test_a_blocklist_of_agents_is_a_guard_of_its_own(serve):
    assert serve(BlockAgents("EvilBot"), agent="EvilBot").get("/").status_code == 403


def test_no_case_of_the_file_is_left_out():
    for case in CASES:
        assert f"test_{case.replace('-', '_')}" in globals()

"""Off, dry run, on: in the environment, in the arguments, per guard, and in the store at run time."""

import logging

import pytest

from guardrails import (
    BlockAgents,
    CPUThrottle,
    MaxConcurrentReqs,
    SpeedLimit,
    testing,
    throttle,
    watchdog,
)
from support import Browser, CountingStore, lines, nothing_is_left_in, slots_held


def outcome_of(response):
    return response.request.environ["guardrails.decision"].outcome


def test_enabled_false_guards_nothing(serve):
    assert serve(SpeedLimit("1/minute"), enabled=False).statuses(3) == [200, 200, 200]


def test_what_is_off_does_not_even_look_into_its_store(store):
    counting = CountingStore(store)
    Browser(throttle(testing.hello, SpeedLimit("1/minute"), store=counting, enabled=False)).get("/")

    assert counting.calls == []


def test_a_dry_run_refuses_nobody_and_says_whom_it_would_have(serve):
    site = serve(SpeedLimit("1/minute"), dry_run=True)

    assert outcome_of(site.get("/")) == "PASSED"
    decision = site.get("/").request.environ["guardrails.decision"]
    assert decision.admitted
    assert decision.status is None
    assert (decision.outcome, decision.guard, decision.retry_after) == (
        "REJECTED_DRY_RUN",
        "speed-limit client",
        60,
    )


def test_a_dry_run_tells_on_decision_and_the_log(serve, caplog):
    caplog.set_level(logging.INFO, "guardrails")
    told = []
    site = serve(
        SpeedLimit("1/minute"),
        dry_run=True,
        on_decision=lambda decision, _environ: told.append(decision.outcome),
    )
    site.statuses(2)

    assert told == ["REJECTED_DRY_RUN"]
    assert [line.split()[0] for line in lines(caplog)] == ["REJECTED_DRY_RUN"]


def test_a_dry_run_counts_as_it_would_when_on(serve):
    """What it would refuse is charged nothing, so the figures it shows are the real ones."""
    site = serve(SpeedLimit("2/minute"), dry_run=True)
    outcomes = [outcome_of(site.get("/")) for _ in range(4)]

    assert outcomes == ["PASSED", "PASSED", "REJECTED_DRY_RUN", "REJECTED_DRY_RUN"]


def test_one_guard_may_run_dry_while_others_refuse(serve):
    site = serve(SpeedLimit("1/minute", name="new", dry_run=True), SpeedLimit("3/minute", name="old"))
    responses = [site.get("/") for _ in range(4)]

    assert [response.status_code for response in responses] == [200, 200, 200, 429]
    testing.assert_refused(responses[3], guard="old")
    assert outcome_of(responses[1]) == "REJECTED_DRY_RUN"


def test_a_dry_run_bans_nobody(serve):
    site = serve(SpeedLimit("1/second", path="/login", ban="20m"), dry_run=True)
    site.statuses(3, "/login")

    assert site.get("/").status_code == 200


def test_a_dry_run_shows_the_ban_it_would_have_set(serve):
    site = serve(SpeedLimit("1/second", path="/login", ban="20m", dry_run=True))
    site.statuses(2, "/login")

    decision = site.get("/").request.environ["guardrails.decision"]
    assert (decision.outcome, decision.retry_after) == ("REJECTED_DRY_RUN", 1200)


def test_what_a_dry_run_would_have_banned_is_not_banned_when_it_is_switched_on(serve):
    site = serve(SpeedLimit("1/second", ban="20m"), dry_run=True)
    site.statuses(3)

    assert serve(SpeedLimit("1/second", ban="20m")).get("/").status_code in {200, 429}
    assert serve(SpeedLimit("1/second", path="/other", ban="20m")).get("/").status_code == 200


@pytest.mark.parametrize(
    "guard", [MaxConcurrentReqs(1), BlockAgents("guardrails-testing"), CPUThrottle("20%")]
)
def test_each_guard_can_run_dry(guard, serve, cpu):
    site = serve(guard, app=cpu.app(60.0), dry_run=True)

    with site.hold(), site.hold() as second:
        pass
    third = site.get("/")

    assert second.status_code == third.status_code == 200
    assert "REJECTED_DRY_RUN" in {outcome_of(second), outcome_of(third)}


@pytest.mark.parametrize(
    ("word", "options", "statuses"),
    [
        ("off", {}, [200, 200]),
        ("dry-run", {}, [200, 200]),
        ("on", {}, [200, 429]),
        ("on", {"enabled": False}, [200, 429]),
        ("on", {"dry_run": True}, [200, 429]),
        ("off", {"dry_run": True}, [200, 200]),
    ],
)
def test_the_word_in_the_environment_overrides_the_arguments(
    serve, monkeypatch, word, options, statuses
):
    monkeypatch.setenv("GUARDRAILS", word)

    assert serve(SpeedLimit("1/minute"), **options).statuses(2) == statuses


@pytest.mark.parametrize(
    ("value", "statuses"),
    [
        ("", [200, 429]),
        (" ", [200, 429]),
        ("OFF", [200, 200]),
        ("Dry-Run", [200, 200]),
        ("ON", [200, 429]),
    ],
)
def test_an_empty_word_is_none_and_its_case_does_not_matter(serve, monkeypatch, value, statuses):
    """A compose file hands on a variable that is not set as an empty one."""
    monkeypatch.setenv("GUARDRAILS", value)

    assert serve(SpeedLimit("1/minute")).statuses(2) == statuses


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_store_in_the_environment_is_none(monkeypatch, value):
    monkeypatch.setenv("GUARDRAILS_STORE", value)

    assert repr(throttle(testing.hello).store).startswith("shm:app-")
    assert watchdog().store_name is None


def test_dry_run_in_the_environment_still_says_what_it_would_do(serve, monkeypatch):
    monkeypatch.setenv("GUARDRAILS", "dry-run")
    site = serve(SpeedLimit("1/minute"))
    site.get("/")

    assert outcome_of(site.get("/")) == "REJECTED_DRY_RUN"


def test_switched_off_at_run_time_everything_passes_from_the_next_request_on(serve, store):
    site = serve(SpeedLimit("1/minute"))
    assert site.statuses(2) == [200, 429]

    store.switch("off")
    assert site.statuses(3) == [200, 200, 200]

    store.switch("on")
    assert site.get("/").status_code == 429


def test_switched_to_dry_run_at_run_time_nobody_is_refused(serve, store):
    site = serve(SpeedLimit("1/minute"))
    site.get("/")

    store.switch("dry-run")

    response = site.get("/")
    assert response.status_code == 200
    assert outcome_of(response) == "REJECTED_DRY_RUN"


@pytest.mark.parametrize("word", ["off", "dry-run"])
def test_one_guard_may_be_switched_at_run_time(serve, store, word):
    site = serve(SpeedLimit("1/minute", name="new"), SpeedLimit("2/minute", name="old"))
    store.switch(word, "new")

    responses = [site.get("/") for _ in range(3)]

    assert [response.status_code for response in responses] == [200, 200, 429]
    testing.assert_refused(responses[2], guard="old")


def test_a_guard_may_be_switched_before_the_first_request(shared):
    """A request to /login may be rare; its guard can be switched from the start."""
    inner = throttle(testing.hello, SpeedLimit("1/minute", name="inner", path="/a"))
    site = Browser(throttle(inner, SpeedLimit("1/minute", path="/login"), store=shared))
    site.get("/")

    shared.switch("off", "speed-limit /login client")
    shared.switch("off", "inner")

    assert site.statuses(2, "/login") == [200, 200]
    assert site.statuses(2, "/a") == [200, 200]


def test_a_guard_that_is_off_is_not_charged(serve, store):
    site = serve(SpeedLimit("1/minute", name="new"))
    store.switch("off", "new")
    site.statuses(3)
    store.switch("on", "new")

    assert site.statuses(2) == [200, 429]


@pytest.mark.parametrize("word", ["off", "dry-run"])
@pytest.mark.parametrize("guard", [None, "cap"])
def test_what_is_held_when_it_is_switched_is_still_given_back(serve, store, word, guard):
    site = serve(MaxConcurrentReqs(1, name="cap"))
    held = site.hold()
    assert slots_held(store) == 1

    store.switch(word, guard)
    held.close()
    site.get("/")

    assert nothing_is_left_in(store)
    store.switch("on", guard)
    assert site.get("/").status_code == 200


def test_what_came_in_while_off_gives_nothing_back_that_it_never_took(serve, store):
    site = serve(MaxConcurrentReqs(1, name="cap"))
    store.switch("off")
    uncounted = site.hold()
    store.switch("on")
    counted = site.hold()

    uncounted.close()

    assert slots_held(store) == 1
    assert site.get("/").status_code == 503
    counted.close()
    assert nothing_is_left_in(store)


@pytest.mark.parametrize(("word", "admitted"), [("OFF", 3), (" Off ", 3), ("Dry-Run", 3), ("ON", 1)])
def test_the_case_of_the_word_in_the_environment_does_not_count(store, monkeypatch, word, admitted):
    monkeypatch.setenv("GUARDRAILS", word)
    site = Browser(throttle(testing.hello, SpeedLimit("1/minute"), store=store, enabled=False))

    assert site.statuses(3).count(200) == admitted


@pytest.mark.parametrize("word", ["", "  "])
def test_an_empty_word_in_the_environment_is_no_word(store, monkeypatch, word):
    monkeypatch.setenv("GUARDRAILS", word)

    assert Browser(throttle(testing.hello, SpeedLimit("1/minute"), store=store)).statuses(2) == [
        200,
        429,
    ]

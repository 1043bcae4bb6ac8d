"""A store that fails: at its first call, its second, its third ..., once, or from then on.

Whatever it does, no request fails for it, nothing stays held, and the log says so once.
"""

import pytest

from guardrails import (
    BlockAgents,
    CPUThrottle,
    MaxConcurrentReqs,
    SpeedLimit,
    StoreError,
    testing,
    throttle,
)
from guardrails.store.contract import Requirement
from support import Browser, Exchange, FaultyStore, lines, nothing_is_left_in, slots_held

STORE_ERRORS = [StoreError("gone"), OSError(28, "No space left on device"), RuntimeError("odd")]


def streaming(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return (chunk for chunk in [b"hel", b"lo\n"])


def guards():
    return [
        SpeedLimit("99/second"),
        MaxConcurrentReqs(9),
        MaxConcurrentReqs(9, hold="call", by="client"),
        CPUThrottle("20%"),
    ]


@pytest.mark.parametrize("on_store_error", ["fallback", "allow"])
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("after", [False, True], ids=["before its work", "after its work"])
@pytest.mark.parametrize("nth", range(1, 14))
def test_a_store_that_fails_at_any_call_fails_no_request_and_leaks_nothing(
    store, caplog, nth, after, persistent, on_store_error
):
    """Four requests make at most twelve calls, so the last run finishes untouched."""
    faulty = FaultyStore(store, StoreError("gone"), nth=nth, persistent=persistent, after=after)
    app = throttle(streaming, *guards(), store=faulty, on_store_error=on_store_error)

    answers = [Exchange(app).finish() for _ in range(4)]

    assert answers == [b"hello\n"] * 4
    assert len(lines(caplog, level="ERROR")) == (1 if faulty.failures else 0)
    faulty.mend()
    Exchange(app).finish()
    Exchange(app).finish()
    assert nothing_is_left_in(store)


@pytest.mark.parametrize("verb", ["enter", "update", "leave"])
@pytest.mark.parametrize("error", STORE_ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_store_raises_and_wherever_no_request_fails(store, verb, error):
    faulty = FaultyStore(store, error, nth=1, persistent=True, verbs=[verb])
    app = throttle(streaming, *guards(), store=faulty)

    assert [Exchange(app).finish() for _ in range(3)] == [b"hello\n"] * 3
    faulty.mend()
    Exchange(app).finish()
    Exchange(app).finish()
    assert nothing_is_left_in(store)


@pytest.mark.parametrize("error", STORE_ERRORS, ids=lambda error: type(error).__name__)
def test_refuse_answers_with_503_while_the_store_fails(store, error):
    faulty = FaultyStore(store, error, nth=2, persistent=True, verbs=["enter"])
    site = Browser(
        throttle(testing.hello, SpeedLimit("9/second"), store=faulty, on_store_error="refuse")
    )

    assert site.get("/").status_code == 200
    refused = site.get("/")
    testing.assert_refused(refused, 503)
    assert int(refused.headers["Retry-After"]) >= 1

    faulty.mend()
    assert site.get("/").status_code == 200


def test_refuse_never_refuses_robots_txt_nor_an_exempt_path(store):
    faulty = FaultyStore(store, StoreError("gone"), nth=1, persistent=True)
    site = Browser(
        throttle(
            testing.hello,
            SpeedLimit("9/second"),
            store=faulty,
            on_store_error="refuse",
            exempt_paths=["/healthz"],
            exempt=["192.0.2.9"],
        )
    )

    assert site.get("/robots.txt").status_code == 200
    assert site.get("/healthz").status_code == 200
    assert site.at("192.0.2.9").get("/").status_code == 200
    assert site.get("/").status_code == 503


def test_refuse_does_not_refuse_in_a_dry_run(store):
    faulty = FaultyStore(store, StoreError("gone"), nth=1, persistent=True)
    site = Browser(
        throttle(
            testing.hello, SpeedLimit("9/second"), store=faulty, on_store_error="refuse", dry_run=True
        )
    )

    assert site.get("/").status_code == 200


def test_allowing_lets_everything_pass_while_the_store_fails(store):
    faulty = FaultyStore(store, StoreError("gone"), nth=1, persistent=True)
    site = Browser(throttle(testing.hello, SpeedLimit("1/hour"), store=faulty, on_store_error="allow"))

    assert site.statuses(3) == [200, 200, 200]
    faulty.mend()
    assert site.statuses(2) == [200, 429]


@pytest.mark.parametrize("on_store_error", ["fallback", "allow", "refuse"])
def test_a_blocked_agent_is_refused_without_any_store(store, on_store_error):
    faulty = FaultyStore(store, StoreError("gone"), nth=1, persistent=True)
    site = Browser(
        throttle(testing.hello, BlockAgents("EvilBot"), store=faulty, on_store_error=on_store_error),
        agent="EvilBot",
    )

    testing.assert_refused(site.get("/"), 403)


def test_falling_back_limits_go_on_in_this_process(store):
    faulty = FaultyStore(store, StoreError("gone"), nth=1, persistent=True)
    site = Browser(throttle(testing.hello, SpeedLimit("2/hour"), MaxConcurrentReqs(1), store=faulty))

    with site.hold():
        assert site.get("/").status_code == 503
    assert site.statuses(2) == [200, 429]


def test_when_the_store_is_back_it_counts_again(store):
    faulty = FaultyStore(store, StoreError("gone"), nth=1, persistent=True)
    site = Browser(throttle(testing.hello, SpeedLimit("1/hour"), store=faulty))
    assert site.statuses(2) == [200, 429]

    faulty.mend()

    assert site.statuses(2) == [200, 429]


def test_a_slot_taken_before_the_store_failed_is_given_back_when_it_is_mended(store):
    faulty = FaultyStore(store, StoreError("gone"), nth=1, persistent=True, verbs=["leave"])
    site = Browser(throttle(testing.hello, MaxConcurrentReqs(5), store=faulty))
    site.statuses(3)
    assert slots_held(store) == 3

    faulty.mend()
    site.get("/")

    assert nothing_is_left_in(store)


def test_a_failure_is_logged_with_what_is_done_about_it(store, caplog):
    for on_store_error, said in [
        ("fallback", "the store failed; until it is back, counting in this process alone"),
        ("allow", 'the store failed; until it is back, on_store_error="allow" applies'),
        ("refuse", 'the store failed; until it is back, on_store_error="refuse" applies'),
    ]:
        caplog.clear()
        faulty = FaultyStore(store, StoreError("gone"), nth=1, persistent=True)
        app = throttle(
            testing.hello, SpeedLimit("9/second"), store=faulty, on_store_error=on_store_error
        )
        Browser(app).statuses(5)

        assert lines(caplog, level="ERROR") == [said + ": gone"]


def test_failures_are_counted_each(store):
    faulty = FaultyStore(store, StoreError("gone"), nth=1, persistent=True, verbs=["enter"])
    app = throttle(testing.hello, SpeedLimit("9/second"), store=faulty)
    Browser(app).statuses(5)

    assert app.errors["StoreError"] == 5


@pytest.mark.parametrize(
    "stop", [SystemExit(1), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"]
)
@pytest.mark.parametrize("verb", ["enter", "leave"])
@pytest.mark.parametrize("after", [False, True], ids=["before its work", "after its work"])
def test_what_stops_a_worker_in_the_store_passes_and_leaks_nothing(store, stop, verb, after):
    faulty = FaultyStore(store, stop, nth=1, verbs=[verb], after=after)
    app = throttle(streaming, *guards(), store=faulty)

    with pytest.raises(type(stop)):
        Exchange(app).finish()
    Exchange(app).finish()
    Exchange(app).finish()

    assert nothing_is_left_in(store)


def test_an_inner_throttle_survives_a_failing_store_too(store):
    """The second call is the inner one's: it lets pass what it cannot count."""
    for nth in range(1, 6):
        faulty = FaultyStore(store, StoreError("gone"), nth=nth)
        app = throttle(throttle(streaming, *guards()), *guards()[:2], store=faulty)

        assert Exchange(app).finish() == b"hello\n"
        Exchange(app).finish()
        Exchange(app).finish()
        assert nothing_is_left_in(store)


def test_a_guard_of_ones_own_that_is_broken_fails_no_request(store):
    """Not even one that answers with something that is no demand."""

    class Broken(SpeedLimit):
        def varies(self):
            return True

        def requirement(self, post, environ):
            return Requirement  # the class, by mistake

    site = Browser(throttle(testing.hello, Broken("1/second"), store=store))

    assert site.statuses(2) == [200, 200]
    assert nothing_is_left_in(store)


@pytest.mark.parametrize("reader", ["path", "host", "method"])
def test_an_environ_that_breaks_the_rules_fails_no_request(store, reader):
    """Some servers and tests put bytes or numbers where texts belong."""
    variable = {"path": "PATH_INFO", "host": "HTTP_HOST", "method": "REQUEST_METHOD"}[reader]
    app = throttle(
        testing.hello, SpeedLimit("1/second", path="/x", host="h", methods=["GET"]), store=store
    )

    for wrong in [7, b"bytes", None]:
        assert Exchange(app, **{variable: wrong}).finish() == b"hello\n"
    assert nothing_is_left_in(store)

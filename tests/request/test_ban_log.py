"""A ban is logged when it begins, at the level that is shown by default, whatever clients do."""

import logging

import pytest

from guardrails import BlockAgents, SpeedLimit, testing, throttle
from guardrails.request import ban_log
from support import Browser, lines


@pytest.fixture
def minutes(monkeypatch):
    """Lets minutes go by for the log."""
    now = [1000.0]
    monkeypatch.setattr(ban_log, "monotonic", lambda: now[0])

    def pass_by(count):
        now[0] += count * 60

    return pass_by


def test_a_ban_is_one_warning_when_it_begins(serve, clock, caplog):
    site = serve(SpeedLimit("1/minute", path="/login", ban="20m"), SpeedLimit("100/second"))
    site.statuses(5, "/login")
    site.statuses(3)

    line = "speed-limit /login client bans 192.0.2.1 for 20 minutes, after 'GET' '/login'"
    assert lines(caplog, level="WARNING") == [line]

    clock.advance(20 * 60)
    site.statuses(2, "/login")
    assert lines(caplog, level="WARNING") == [line, line]


def test_each_worker_that_meets_a_banned_client_is_silent(serve, caplog):
    """Each throttle on one store is as a worker of its own."""
    here, there = (serve(SpeedLimit("1/minute", ban="1h")) for _ in range(2))
    here.statuses(2)
    there.statuses(3)

    assert len(lines(caplog, level="WARNING")) == 1


def test_an_agent_on_a_blocklist_may_be_banned_too(serve, caplog):
    serve(BlockAgents("zgrab", ban=90), agent="zgrab").statuses(2)

    assert lines(caplog, level="WARNING") == [
        "block-agents bans 192.0.2.1 for 90 seconds, after 'GET' '/'"
    ]


@pytest.mark.parametrize("options", [{"dry_run": True}, {"ban": None}])
def test_what_bans_nobody_says_of_no_ban(serve, caplog, options):
    serve(SpeedLimit("1/minute", **{"ban": "1h"} | options)).statuses(4)

    assert lines(caplog, level="WARNING") == []


def test_many_bans_are_counted(store, caplog, minutes):
    app = throttle(testing.hello, BlockAgents("zgrab", ban="1h"), store=store)
    for number in range(100):
        Browser(app, address=f"192.0.2.{number}", agent="zgrab").get("/")

    said = lines(caplog, level="WARNING")
    assert len(said) == ban_log.MOST_LINES
    assert said[-1].endswith("; further bans within a minute are only counted")

    minutes(1)
    Browser(app, address="198.51.100.1", agent="zgrab").get("/")

    assert lines(caplog, level="WARNING")[ban_log.MOST_LINES :] == [
        "80 more bans have begun since the last line about one",
        "block-agents bans 198.51.100.1 for 1 hour, after 'GET' '/'",
    ]


def test_the_line_of_a_refusal_stays_at_info(serve, caplog):
    caplog.set_level(logging.INFO, "guardrails")
    serve(SpeedLimit("1/minute", ban="1h")).statuses(2)

    assert [record.levelname for record in caplog.records if "REJECTED" in record.getMessage()] == [
        "INFO"
    ]

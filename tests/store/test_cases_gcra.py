"""The reference table of throttled and redis-cell, through the front door.

Their `burst` is how many may come beyond the first; ours counts all that may come at once.
"""

import pytest

from guardrails import ConfigurationError, SpeedLimit, testing, throttle
from guardrails.errors import StoreBusyError
from support import Browser, FaultyStore, cases, lines, nothing_is_left_in

CASES = cases("gcra")
STEPS = CASES["gcra-table"]["steps"]


class Table:
    """The table's limit, tried step by step on its clock, with the cost in a header."""

    def __init__(self):
        self.start = 1_000
        self.clock = testing.Clock(self.start)
        self.store = testing.memory_store(self.clock)
        given = CASES["gcra-table"]["given"]
        limit = SpeedLimit(
            f"{given['rate_per_s']}/second",
            burst=given["burst"] + 1,
            cost=lambda environ: int(environ["HTTP_X_COST"]),
        )
        self.site = Browser(throttle(testing.hello, limit, store=self.store))

    def keyed(self, step):
        self.clock.advance(self.start + step["t"] - self.clock() / 1e6)
        response = self.site.get("/", headers={"X-Cost": str(step["cost"])})
        return response.request.environ["guardrails.decision"]

    def up_to(self, number):
        for step in STEPS[:number]:
            self.keyed(step)
        return self.keyed(STEPS[number])


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_a_step_of_the_table_is_limited_as_there(number):
    assert Table().up_to(number).admitted != STEPS[number]["expect"]["limited"]


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_a_step_of_the_table_says_when_to_retry(number):
    decision = Table().up_to(number)

    assert decision.retry_after == STEPS[number]["expect"]["retry_after_s"]


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_a_step_of_the_table_leaves_as_much_room_as_there(number):
    """Ours says how many more requests *like this one* would be admitted, so we ask with units of 1.

    `remaining` is what so many requests of cost 1 find, one after the other, at the same instant.
    """
    table = Table()
    table.up_to(number)
    unit = {"t": STEPS[number]["t"], "cost": 1}
    admitted = [table.keyed(unit).admitted for _ in range(7)].count(True)

    assert admitted == STEPS[number]["expect"]["remaining"]


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_a_step_of_the_table_is_wholly_forgotten_after_its_reset(number):
    """After `reset_after_s` the whole burst may come again, and shortly before it may not."""
    expected = STEPS[number]["expect"]["reset_after_s"]
    whole = {"t": STEPS[number]["t"] + expected, "cost": 5}
    table = Table()
    table.up_to(number)
    assert table.keyed(whole).admitted

    if expected:
        table = Table()
        table.up_to(number)
        assert not table.keyed({**whole, "t": whole["t"] - 0.01}).admitted


def test_a_rate_of_three_in_ten_milliseconds_keeps_its_pace():
    """Upstream: each request at a positive multiple of 3 is refused, as its bucket holds 3 a period.

    Ours with burst=3 is refused after 3 as well. An interval is rounded up to whole microseconds, so a
    period of 3 intervals is 10.002 ms; and the refused request is not counted: after it 3 more pass.
    """
    clock = testing.Clock()
    limit = SpeedLimit(CASES["gcra-zero-burst"]["given"]["rate"], burst=3)
    site = Browser(throttle(testing.hello, limit, store=testing.memory_store(clock)))
    refused = []
    for number in range(27):
        if site.get("/").status_code == 429:
            refused.append(number)
            clock.advance(0.010_002)

    assert refused == list(range(3, 27, 4))


def test_a_burst_of_one_is_the_strictest_pace_below_a_second():
    clock = testing.Clock()
    site = Browser(
        throttle(testing.hello, SpeedLimit("3/10 ms", burst=1), store=testing.memory_store(clock))
    )
    admitted = 0
    for _ in range(100):
        admitted += site.get("/").status_code == 200
        clock.advance(0.001)

    # 100 ms at 3 per 10 ms are 30 intervals of 3.334 ms, met on a grid of 1 ms: one each 4 ms.
    assert admitted == 25


@pytest.mark.parametrize("case", ["gcra-cas-fails", "gcra-cas-bounded", "gcra-cas-default"])
def test_a_store_that_never_gets_its_turn_ends_in_an_error_not_in_a_loop(case, caplog):
    """Upstream's compare-and-swap gives up after n attempts and the caller sees the error.

    Ours has no such loop: the store says that it is busy, which is logged once, and what happens to
    the request is `on_store_error`. No client ever sees the error.
    """
    assert "error" in CASES[case]["expect"]
    store = testing.memory_store()
    faulty = FaultyStore(store, StoreBusyError("foo: busy"), nth=1, persistent=True)
    site = Browser(throttle(testing.hello, SpeedLimit("1/second", burst=2), store=faulty))

    assert site.statuses(3) == [200, 200, 429]
    assert faulty.calls <= 3 * 2
    (line,) = lines(caplog, level="ERROR")
    assert line.startswith("the store failed")
    assert nothing_is_left_in(store)


@pytest.mark.parametrize("case", ["gcra-zero-rate", "emission-0 per 1 ns", "emission-1 per 0 ns"])
def test_a_rate_of_nothing_is_refused_when_it_is_built(case):
    """Upstream has an interval of 0 for these and refuses each request; ours are refused at once."""
    rate = CASES[case]["given"]["rate"].replace("ns", "ms")

    with pytest.raises(ConfigurationError, match="can never admit a request"):
        SpeedLimit(rate)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.startswith("emission-") and not case.endswith("ns")],
)
def test_a_rate_admits_one_request_in_each_emission_interval(case):
    interval = CASES[case]["expect"]["emission_interval_s"]
    clock = testing.Clock()
    limit = SpeedLimit(CASES[case]["given"]["rate"], burst=1)
    site = Browser(throttle(testing.hello, limit, store=testing.memory_store(clock)))
    site.get("/")

    clock.advance(interval - 0.000_001)
    assert site.get("/").status_code == 429
    clock.advance(0.000_001)
    assert site.get("/").status_code == 200


def test_no_case_of_the_file_is_left_out():
    handled = {
        "gcra-table",
        "gcra-zero-burst",
        "gcra-cas-fails",
        "gcra-cas-bounded",
        "gcra-cas-default",
    }
    handled |= {"gcra-zero-rate", "emission-0 per 1 ns", "emission-1 per 0 ns"}
    handled |= {"emission-24/day", "emission-6/hour", "emission-6/minute", "emission-6 per 2 minutes"}
    handled |= {"emission-5/second"}

    assert set(CASES) == handled

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.errors import ConfigurationError
from guardrails.units import parse_duration, parse_percent, parse_rates, parse_size

SECOND = 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86_400 * SECOND


@pytest.mark.parametrize(
    ("text", "count", "period", "burst"),
    [
        ("10/second", 10, SECOND, 10),
        ("10/s", 10, SECOND, 10),
        ("10/sec", 10, SECOND, 10),
        ("10 / second", 10, SECOND, 10),
        ("10 per second", 10, SECOND, 10),
        ("10 PER Second", 10, SECOND, 10),
        ("100 per 2 hours", 100, 2 * HOUR, 100),
        ("100/2hours", 100, 2 * HOUR, 100),
        ("5/second burst 20", 5, SECOND, 20),
        ("5/second BURST 1", 5, SECOND, 1),
        ("3/10 ms", 3, 10_000, 3),
        ("1/minute", 1, MINUTE, 1),
        ("1/m", 1, MINUTE, 1),
        ("1/min", 1, MINUTE, 1),
        ("24/day", 24, DAY, 24),
        ("1/week", 1, 7 * DAY, 1),
        ("1/month", 1, 30 * DAY, 1),
        ("1/year", 1, 365 * DAY, 1),
    ],
)
def test_a_rate_is_a_count_in_a_period_with_a_burst(text, count, period, burst):
    (rate,) = parse_rates(text)

    assert (rate.count, rate.period, rate.burst) == (count, period, burst)


@pytest.mark.parametrize("separator", [";", "; ", ",", " | "])
def test_several_rates_stand_in_one_text(separator):
    rates = parse_rates(f"5/second burst 20{separator}500/hour")

    assert [(rate.count, rate.period, rate.burst) for rate in rates] == [
        (5, SECOND, 20),
        (500, HOUR, 500),
    ]


@given(
    count=st.integers(1, 10**6),
    multiple=st.integers(1, 1000),
    unit=st.sampled_from([("second", SECOND), ("minutes", MINUTE), ("hours", HOUR)]),
)
def test_an_interval_is_rounded_up_so_that_the_count_is_never_exceeded(count, multiple, unit):
    """However the division comes out, `count` intervals are at least the whole period."""
    name, microseconds = unit
    (rate,) = parse_rates(f"{count}/{multiple} {name}")

    assert rate.interval * count >= multiple * microseconds
    assert (rate.interval - 1) * count < multiple * microseconds


@pytest.mark.parametrize(
    ("value", "microseconds"),
    [
        (15, 15 * SECOND),
        (0.25, 250_000),
        (0, 0),
        ("15", 15 * SECOND),
        ("15s", 15 * SECOND),
        ("15 seconds", 15 * SECOND),
        (" 15 s ", 15 * SECOND),
        ("20m", 20 * MINUTE),
        ("20 min", 20 * MINUTE),
        ("2H", 2 * HOUR),
        ("1.5h", 90 * MINUTE),
        ("250ms", 250_000),
        ("1d", DAY),
        ("2 weeks", 14 * DAY),
    ],
)
def test_a_duration_is_seconds_or_a_number_with_a_unit(value, microseconds):
    assert parse_duration(value, "wait") == microseconds


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (1024, 1024),
        ("1024", 1024),
        ("512M", 512 * 2**20),
        ("512m", 512 * 2**20),
        ("512MB", 512 * 2**20),
        ("512 MiB", 512 * 2**20),
        ("1G", 2**30),
        ("1.5k", 1536),
        ("2T", 2 * 2**40),
    ],
)
def test_a_size_is_bytes_or_a_number_with_a_power_of_1024(value, size):
    assert parse_size(value, "DATA") == size


@pytest.mark.parametrize(
    ("value", "share"),
    [("20%", 0.2), (20, 0.2), ("20", 0.2), ("20 %", 0.2), (12.5, 0.125), ("200%", 2.0), (1, 0.01)],
)
def test_a_percent_is_a_share_of_one_cpu(value, share):
    assert parse_percent(value, "percent") == share


@pytest.mark.parametrize("value", [float("inf"), float("nan"), float("-inf")])
def test_a_duration_that_is_no_number_is_a_configuration_error(value):
    with pytest.raises(ConfigurationError, match="wait: "):
        parse_duration(value, "wait")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_percent_that_is_no_number_is_a_configuration_error(value):
    with pytest.raises(ConfigurationError, match="percent: "):
        parse_percent(value, "percent")


@given(st.text(max_size=30))
def test_any_text_is_a_rate_or_a_configuration_error(text):
    try:
        rates = parse_rates(text)
    except ConfigurationError as error:
        assert str(error).startswith("rate: ")  # noqa: PT017 - either outcome is right
    else:
        assert all(rate.count >= 1 and rate.interval >= 1 for rate in rates)


@given(
    st.one_of(
        st.text(max_size=20), st.none(), st.booleans(), st.binary(max_size=3), st.lists(st.none())
    )
)
def test_anything_is_a_duration_a_size_and_a_percent_or_a_configuration_error(value):
    for parse in (parse_duration, parse_size, parse_percent):
        try:
            parse(value, "argument")
        except ConfigurationError as error:
            assert str(error).startswith(f"argument: {value!r}")  # noqa: PT017 - as above


@pytest.mark.parametrize(
    "parse", [parse_duration, parse_size, parse_percent], ids=lambda parse: parse.__name__
)
@pytest.mark.parametrize("digits", [400, 5000])
def test_a_figure_of_any_length_is_taken_or_a_configuration_error(parse, digits):
    with pytest.raises(ConfigurationError, match=r"\Aargument: "):
        parse("9" * digits, "argument")


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_rate_of_any_length_is_a_configuration_error(digits):
    with pytest.raises(ConfigurationError, match=r"\Arate: "):
        parse_rates("1/" + "9" * digits + " seconds")

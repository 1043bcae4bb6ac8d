"""What is said about a wrong configuration, word for word: argument, value, rule and remedy."""

import dataclasses
import pickle
import re

import pytest

import guardrails
from guardrails import (
    BlockAgents,
    ConfigurationError,
    CPUThrottle,
    MaxConcurrentReqs,
    SpeedLimit,
    rlimits,
    testing,
    throttle,
)
from guardrails.request.setup_checks import CODES
from guardrails.store.processes import limit_numbers

hello = testing.hello

WRITE_A_RATE = 'write COUNT/UNIT, such as "10/second", "100 per 2 hours" or "5/second burst 20"'
CAN_NEVER_ADMIT = (
    "can never admit a request: count, period and burst are at least 1; to refuse all requests "
    "remove the route, to switch the guard off leave it out"
)
WRITE_A_DURATION = 'is not a duration: write seconds, or a text such as "15s", "20m" or "2h"'
WRITE_A_PERCENT = 'is outside 1 to 100000 percent of one CPU: a fifth of a CPU is "20%" or 20, not 0.2'
WRITE_A_LIMIT = "is not a whole number from 1 to 1048576: write such a number, or leave the guard out"
WRITE_A_NETWORK = (
    'write an address such as "192.0.2.7", a network such as "192.0.2.0/24" or "2001:db8::/32", '
    '"loopback" or "private"'
)
WRITE_HOPS = (
    "is not a number of proxies from 1 to 32: write how many proxies each request passes, or leave it "
    "out"
)
WRITE_A_PREFIX = (
    "is not a number of bits from 16 to 128: write 64, the smallest network that providers give a "
    "customer, or 56 or 48"
)
WRITE_A_STORE = 'use "memory:", "shm:" or "shm:NAME?clients=50000"'
USE_A_METHOD = (
    "is not an HTTP method: use CONNECT, DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, TRACE or a "
    "WebDAV method"
)
WRITE_A_REFUSAL = "is not an HTTP status of a refusal: write one from 400 to 599, such as 429 or 503"
USE_BY = (
    'is unknown: use "client", "client+agent", "all", "host", "path", "user", "header:NAME", '
    '"cookie:NAME", a callable, or a list of these'
)
A_LINE_EACH = "name a readable text file in UTF-8 with one regular expression a line"


def view():
    return "a page"


def django_view(request, page):
    return "a page"


def wrong(name, build, message):
    return pytest.param(build, message, id=name)


WRONG_FIGURES = [
    wrong(
        "unknown unit",
        lambda: SpeedLimit("10/fortnight"),
        "rate: '10/fortnight' has an unknown unit 'fortnight': use second, minute, hour, day, week, "
        "month or year",
    ),
    wrong(
        "words",
        lambda: SpeedLimit("ten a second"),
        f"rate: 'ten a second' is not a rate: {WRITE_A_RATE}",
    ),
    wrong(
        "a number",
        lambda: SpeedLimit(10),
        'rate: 10 is not a rate: a rate is a text such as "10/second" or "100 per 2 hours"',
    ),
    wrong("no text", lambda: SpeedLimit(""), f"rate: '' is not a rate: {WRITE_A_RATE}"),
    wrong("none", lambda: SpeedLimit("0/second"), f"rate: '0/second' {CAN_NEVER_ADMIT}"),
    wrong("no period", lambda: SpeedLimit("5/0 seconds"), f"rate: '5/0 seconds' {CAN_NEVER_ADMIT}"),
    wrong(
        "no burst",
        lambda: SpeedLimit("5/second burst 0"),
        f"rate: '5/second burst 0' {CAN_NEVER_ADMIT}",
    ),
    wrong(
        "second rate wrong",
        lambda: SpeedLimit("5/second; 0/hour"),
        f"rate: '0/hour' {CAN_NEVER_ADMIT}",
    ),
    wrong(
        "cost above burst",
        lambda: SpeedLimit("10/second", cost=11),
        "cost: 11 can never be admitted by '10/second', where at most 10 may come at once: raise burst "
        "to 11 or more",
    ),
    wrong(
        "cost above the smaller burst",
        lambda: SpeedLimit("5/second; 500/hour", cost=6),
        "cost: 6 can never be admitted by '5/second; 500/hour', where at most 5 may come at once: "
        "raise burst to 6 or more",
    ),
    wrong(
        "one burst, two rates",
        lambda: SpeedLimit("5/second; 500/hour", burst=10),
        "burst: 10 with 2 rates in '5/second; 500/hour' is ambiguous: write it at the rate it is for, "
        'as in "5/second burst 20; 500/hour"',
    ),
    wrong(
        "burst above a strict count",
        lambda: SpeedLimit("10/second", burst=11, strict=True),
        "burst: 11 is more than the 10 that strict=True allows in any second: use a burst of at most "
        "10",
    ),
    wrong("percent below one", lambda: CPUThrottle(0.2), f"percent: 0.2 {WRITE_A_PERCENT}"),
    wrong("text below one", lambda: CPUThrottle("0.2%"), f"percent: '0.2%' {WRITE_A_PERCENT}"),
    wrong(
        "percent in words",
        lambda: CPUThrottle("a fifth"),
        "percent: 'a fifth' is not a percent: write \"20%\" or 20 for a fifth of one CPU",
    ),
    wrong(
        "window too short",
        lambda: CPUThrottle("20%", window="1ms"),
        "window: '1ms' is less than a second: write a longer one, such as \"15s\"",
    ),
    wrong(
        "resume above one",
        lambda: CPUThrottle("20%", resume=2),
        "resume: 2 is not a part of the window: write a number from 0 to 1, such as 0.5",
    ),
    wrong(
        "resume is a text",
        lambda: CPUThrottle("20%", resume="0.5"),
        "resume: '0.5' is not a part of the window: write a number from 0 to 1, such as 0.5",
    ),
    wrong("limit of none", lambda: MaxConcurrentReqs(0), f"limit: 0 {WRITE_A_LIMIT}"),
    wrong("limit is a text", lambda: MaxConcurrentReqs("10"), f"limit: '10' {WRITE_A_LIMIT}"),
    wrong("limit is a flag", lambda: MaxConcurrentReqs(True), f"limit: True {WRITE_A_LIMIT}"),
    wrong(
        "hold",
        lambda: MaxConcurrentReqs(5, hold="for ever"),
        'hold: \'for ever\' is unknown: write "response" or "call"',
    ),
    wrong(
        "max_hold",
        lambda: MaxConcurrentReqs(5, max_hold=0),
        'max_hold: 0 would free every slot at once: write a time such as "10m"',
    ),
    wrong(
        "wait in words",
        lambda: MaxConcurrentReqs(5, wait="a while"),
        f"wait: 'a while' {WRITE_A_DURATION}",
    ),
    wrong(
        "negative wait",
        lambda: MaxConcurrentReqs(5, wait=-1),
        'wait: -1 is negative: a duration is 0 or more, such as 15 or "15s"',
    ),
]

WRONG_OPTIONS = [
    wrong("method", lambda: SpeedLimit("1/s", methods=["GTE"]), f"methods: 'GTE' {USE_A_METHOD}"),
    wrong("method is a number", lambda: SpeedLimit("1/s", methods=[7]), f"methods: 7 {USE_A_METHOD}"),
    wrong(
        "path without a slash",
        lambda: SpeedLimit("1/s", path="login"),
        "path: 'login' does not start with a slash: write the path as clients request it, such as "
        '"/login"',
    ),
    wrong(
        "exempt path without a slash",
        lambda: SpeedLimit("1/s", exempt_paths=["static"]),
        "exempt_paths: 'static' does not start with a slash: write the path as clients request it, "
        'such as "/static"',
    ),
    wrong(
        "exempt path is a pattern",
        lambda: SpeedLimit("1/s", exempt_paths=re.compile("/static/.*")),
        'exempt_paths: \'/static/.*\' is a pattern: give prefixes, such as ["/static/", "/healthz"]',
    ),
    wrong(
        "network",
        lambda: SpeedLimit("1/s", exempt=["192.0.2.0/99"]),
        "exempt: '192.0.2.0/99' is not a network ('192.0.2.0/99' does not appear to be an IPv4 or IPv6 "
        f"network): {WRITE_A_NETWORK}",
    ),
    wrong("status", lambda: SpeedLimit("1/s", status=200), f"status: 200 {WRITE_A_REFUSAL}"),
    wrong(
        "status is a text", lambda: SpeedLimit("1/s", status="429"), f"status: '429' {WRITE_A_REFUSAL}"
    ),
    wrong(
        "empty name",
        lambda: SpeedLimit("1/s", name=" "),
        "name: ' ' is not a name: give a text that is not empty, or leave it out",
    ),
    wrong(
        "ban for no time",
        lambda: SpeedLimit("1/s", ban=0),
        'ban: 0 bans for no time: write how long, such as "20m", or leave it out',
    ),
    wrong("ban in words", lambda: SpeedLimit("1/s", ban="long"), f"ban: 'long' {WRITE_A_DURATION}"),
    wrong(
        "negative ban",
        lambda: SpeedLimit("1/s", ban=-5),
        'ban: -5 is negative: a duration is 0 or more, such as 15 or "15s"',
    ),
    wrong(
        "on_error",
        lambda: SpeedLimit("1/s", on_error="raise"),
        'on_error: \'raise\' is unknown: write "allow" or "refuse"',
    ),
    wrong("by", lambda: SpeedLimit("1/s", by="ip"), f"by: 'ip' {USE_BY}"),
    wrong("by no header", lambda: SpeedLimit("1/s", by="header:"), f"by: 'header:' {USE_BY}"),
    wrong(
        "by a number",
        lambda: SpeedLimit("1/s", by=7),
        "by: 7 is neither a text nor a callable, nor a list of these: give one of these",
    ),
]

WRONG_AGENTS = [
    wrong(
        "no pattern",
        BlockAgents,
        "patterns: none is given, so nothing would be refused: give regular expressions, or use "
        "BlockAgents.from_file(path)",
    ),
    wrong(
        "pattern does not compile",
        lambda: BlockAgents("curl", "["),
        "patterns: '[', number 2 of patterns, is not a regular expression (unterminated character set "
        "at position 0): correct it, or escape the characters that are meant literally",
    ),
    wrong(
        "a list of patterns",
        lambda: BlockAgents(["curl"]),
        "patterns: ['curl'] is not a text: give regular expressions as texts, one argument each",
    ),
    wrong(
        "missing",
        lambda: BlockAgents("curl", missing="block"),
        'missing: \'block\' is unknown: write "allow" or "refuse"',
    ),
    wrong(
        "no such file",
        lambda: BlockAgents.from_file("/nonexistent/agents.txt"),
        "file: '/nonexistent/agents.txt' cannot be read (No such file or directory): " + A_LINE_EACH,
    ),
]


def not_wsgi(who, app):
    return (
        f"{who}: {app!r} is not a WSGI app, which takes (environ, start_response): wrap the app and "
        "name the view by its path, as in app.wsgi_app = guardrails.throttle(app.wsgi_app, "
    )


WRONG_THROTTLES = [
    wrong(
        "no guard",
        lambda: throttle(hello, "SpeedLimit"),
        "guards: 'SpeedLimit' is not a guard: build one first, as in throttle(app, "
        'SpeedLimit("120/minute"))',
    ),
    wrong(
        "guards in a list",
        lambda: throttle(hello, [SpeedLimit("1/s", name="a")]),
        f"guards: {[SpeedLimit('1/s', name='a')]!r} is a list, and each guard is an argument: write "
        "throttle(app, *guards)",
    ),
    wrong(
        "equal names",
        lambda: throttle(hello, SpeedLimit("1/s", name="login"), SpeedLimit("9/s", name="login")),
        "name: 'login' is given to 2 guards, and each keeps its state under its name: give each its "
        "own, or leave the names out",
    ),
    wrong(
        "a guard on a view function",
        lambda: SpeedLimit("1/s")(view),
        not_wsgi("SpeedLimit", "view") + 'SpeedLimit(..., path="/that/view"))',
    ),
    wrong(
        "a guard on a Django view",
        lambda: MaxConcurrentReqs(1)(django_view),
        not_wsgi("MaxConcurrentReqs", "django_view") + 'MaxConcurrentReqs(..., path="/that/view"))',
    ),
    wrong(
        "throttle() on a view function",
        lambda: throttle(view, SpeedLimit("1/s")),
        not_wsgi("throttle", "view") + 'SpeedLimit(..., path="/that/view"))',
    ),
    wrong(
        "unknown store",
        lambda: throttle(hello, store="mem"),
        f"store: nothing handles 'mem': {WRITE_A_STORE}; the store of that name is \"shm:mem\"",
    ),
    wrong(
        "redis",
        lambda: throttle(hello, store="redis://localhost"),
        "store: nothing handles 'redis://localhost': this version has no store for Redis or Valkey "
        f"yet, which comes as the extra [redis]: {WRITE_A_STORE}",
    ),
    wrong(
        "store name",
        lambda: throttle(hello, store="shm:../x"),
        "store: '../x' in 'shm:../x' is not a name: use up to 64 letters, digits, '_', '.' and '-', "
        "not starting with '.' or '-'",
    ),
    wrong(
        "store option",
        lambda: throttle(hello, store="shm:x?colour=red"),
        "store: colour=red in 'shm:x?colour=red' is unknown: the options are clients=NUMBER, "
        "rows=NUMBER, private and lock=flock",
    ),
    wrong(
        "proxies are no list",
        lambda: throttle(hello, trusted_proxies=1),
        'trusted_proxies: 1 is not a list: give a list of networks, such as ["192.0.2.0/24"]',
    ),
    wrong(
        "no proxy at all",
        lambda: throttle(hello, proxy_hops=0),
        f"proxy_hops: 0 {WRITE_HOPS}",
    ),
    wrong(
        "hops by yes or no",
        lambda: throttle(hello, proxy_hops=True),
        f"proxy_hops: True {WRITE_HOPS}",
    ),
    wrong(
        "hops and networks",
        lambda: throttle(hello, proxy_hops=2, trusted_proxies=["10.0.0.0/8"]),
        "proxy_hops: 2 and trusted_proxies were both given, and each alone says who the client is: "
        "write the proxies' networks, or their number if those are not known",
    ),
    wrong(
        "no header's name",
        lambda: throttle(hello, forwarded="X-Forwarded-For:"),
        "forwarded: 'X-Forwarded-For:' is not the name of a header: write \"x-forwarded-for\", "
        '"forwarded", or the one that your proxy sets, such as "x-real-ip"',
    ),
    wrong(
        "client is a text",
        lambda: throttle(hello, client="192.0.2.1"),
        "client: '192.0.2.1' is not callable: give a function of the environ that returns an address "
        "as a text, or None",
    ),
    wrong(
        "client beside what it stands in for",
        lambda: throttle(hello, client=lambda _environ: None, proxy_hops=1),
        "client: a callable replaces trusted_proxies, proxy_hops and forwarded, and one of these was "
        "given too: leave them out, or leave client out",
    ),
    wrong(
        "prefix of no use",
        lambda: throttle(hello, ipv6_prefix=0),
        f"ipv6_prefix: 0 {WRITE_A_PREFIX}",
    ),
    wrong(
        "prefix in words",
        lambda: throttle(hello, ipv6_prefix="64"),
        f"ipv6_prefix: '64' {WRITE_A_PREFIX}",
    ),
    wrong(
        "exempt is neither",
        lambda: throttle(hello, exempt=[5]),
        f"exempt: 5 is not a network (it is not a text): {WRITE_A_NETWORK}",
    ),
    wrong(
        "silence of an unknown check",
        lambda: throttle(hello, silence="undeclared_proxy"),
        "silence: 'undeclared_proxy' is not the code of a check: use " + ", ".join(CODES),
    ),
    wrong(
        "proxy that does not parse",
        lambda: throttle(hello, trusted_proxies=["proxy.example"]),
        "trusted_proxies: 'proxy.example' is not a network ('proxy.example' does not appear to be an "
        f"IPv4 or IPv6 network): {WRITE_A_NETWORK}",
    ),
    wrong(
        "exempt path without a slash, for all",
        lambda: throttle(hello, exempt_paths=["static"]),
        "exempt_paths: 'static' does not start with a slash: write the path as clients request it, "
        'such as "/static"',
    ),
    wrong(
        "exempt path is a pattern, for all",
        lambda: throttle(hello, exempt_paths=re.compile("/static/.*")),
        'exempt_paths: \'/static/.*\' is a pattern: give prefixes, such as ["/static/", "/healthz"]',
    ),
    wrong(
        "on_store_error",
        lambda: throttle(hello, on_store_error="ignore"),
        'on_store_error: \'ignore\' is unknown: write "fallback", "allow" or "refuse"',
    ),
    wrong(
        "on_decision",
        lambda: throttle(hello, on_decision="log"),
        "on_decision: 'log' is not callable: give a function of (decision, environ)",
    ),
    wrong(
        "switch word",
        lambda: testing.memory_store().switch("of"),
        "switch: 'of' is not a position of the switch: use 'on', 'dry-run', 'off'",
    ),
]

WRONG_RLIMITS = [
    wrong(
        "unknown limit",
        lambda: rlimits(GPU="1M"),
        "rlimits: 'GPU' is not an option: write CPU; the options are "
        + ", ".join(sorted([*limit_numbers(), "cpu_per_request", "defaults", "nice"])),
    ),
    wrong(
        "size in words",
        lambda: rlimits(DATA="lots"),
        'DATA: \'lots\' is not a size: write bytes, or a text such as "512M" or "1G"',
    ),
    wrong(
        "soft above hard",
        lambda: rlimits(DATA="2G:1G"),
        "DATA: '2G:1G' has a soft limit above the hard one: write the smaller one first",
    ),
    wrong(
        "only a colon",
        lambda: rlimits(DATA=":"),
        'DATA: \':\' has neither a soft nor a hard limit: write "SOFT:HARD", "SOFT:" or ":HARD"',
    ),
]


@pytest.mark.parametrize(
    ("build", "message"),
    [*WRONG_FIGURES, *WRONG_OPTIONS, *WRONG_AGENTS, *WRONG_THROTTLES, *WRONG_RLIMITS],
)
def test_a_wrong_configuration_is_refused_in_these_words(build, message):
    with pytest.raises(ConfigurationError) as caught:
        build()

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("argument", "build"),
    [
        pytest.param("burst", lambda: SpeedLimit("10/second", burst=0), id="burst"),
        pytest.param("cost", lambda: SpeedLimit("10/second", cost=0), id="cost"),
        pytest.param("at_once", lambda: CPUThrottle("20%", at_once=0), id="at_once"),
        pytest.param("NOFILE", lambda: rlimits(NOFILE="many"), id="NOFILE"),
        pytest.param(
            "store", lambda: throttle(hello, store="shm:x?clients=1"), id="clients of a store"
        ),
    ],
)
def test_the_remedy_for_a_number_fits_the_argument(argument, build):
    """To leave the guard out helps against a limit of 0; it is no remedy for an option."""
    with pytest.raises(
        ConfigurationError, match=rf"\A{argument}.* is not a whole number from "
    ) as caught:
        build()

    assert "leave the guard out" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "build"),
    [
        ("path", lambda: SpeedLimit("1/s", path=7)),
        ("methods", lambda: SpeedLimit("1/s", methods=7)),
        ("host", lambda: SpeedLimit("1/s", host=7)),
        ("exempt", lambda: SpeedLimit("1/s", exempt=7)),
        ("exempt_paths", lambda: SpeedLimit("1/s", exempt_paths=7)),
        ("exempt_paths", lambda: throttle(hello, exempt_paths=7)),
        ("exempt", lambda: throttle(hello, exempt=7)),
        ("exempt", lambda: throttle(hello, exempt=[7])),
        ("trusted_proxies", lambda: throttle(hello, trusted_proxies=[7])),
        ("store", lambda: throttle(hello, store=7)),
    ],
)
def test_a_number_where_texts_are_meant_is_a_configuration_error_that_names_the_argument(
    argument, build
):
    with pytest.raises(ConfigurationError, match=rf"\A{argument}: "):
        build()


def test_one_text_for_exempt_paths_is_taken_whole_or_refused_whole():
    """`exempt_paths="/static/"` is a likely slip: its letters must not be taken for paths."""
    try:
        throttle(hello, SpeedLimit("1/s"), exempt_paths="/static/")
    except ConfigurationError as error:
        assert "'/static/'" in str(error)  # noqa: PT017 - either outcome is right


def test_a_pattern_that_matches_every_agent_is_no_slip_of_an_empty_text():
    """An empty pattern is found in every agent: it would refuse the whole site."""
    with pytest.raises(ConfigurationError, match=r"\Apatterns: ''"):
        BlockAgents("curl", "")


@pytest.mark.parametrize("word", ["of", "dry run"])
def test_a_wrong_word_in_the_environment_is_refused(word, monkeypatch):
    monkeypatch.setenv("GUARDRAILS", word)

    with pytest.raises(ConfigurationError) as caught:
        throttle(hello)

    assert str(caught.value) == (
        f"GUARDRAILS: {word!r} in the environment is not a position of the switch: write on, dry-run "
        "or off, or unset it"
    )


def test_a_wrong_store_in_the_environment_is_refused_when_built(monkeypatch):
    monkeypatch.setenv("GUARDRAILS_STORE", "redis://localhost")

    with pytest.raises(ConfigurationError, match="redis://localhost"):
        throttle(hello)


def test_a_rate_beyond_what_a_store_can_count_is_refused():
    """No figure exceeds 2**51 microseconds, which is 71 years: stores must compute exactly."""
    with pytest.raises(ConfigurationError) as caught:
        SpeedLimit("1000/100 years")

    message = str(caught.value)
    assert message.startswith("rate: '1000/100 years' reaches beyond ")
    assert message.endswith(", the most that stores can count: use a smaller count, burst or period")


def test_the_largest_figure_is_named_as_people_count():
    with pytest.raises(ConfigurationError) as caught:
        SpeedLimit("1000/100 years")

    assert "e+" not in str(caught.value)


def test_a_file_that_is_no_utf_8_is_refused_with_its_name(tmp_path):
    agents = tmp_path / "agents.txt"
    agents.write_bytes(b"caf\xe9\n")

    with pytest.raises(ConfigurationError) as caught:
        BlockAgents.from_file(agents)

    message = str(caught.value)
    assert message.startswith(f"file: {str(agents)!r} cannot be read (")
    assert message.endswith(A_LINE_EACH)


def test_a_wrong_pattern_in_a_file_is_named_with_its_file(tmp_path):
    agents = tmp_path / "agents.txt"
    agents.write_text("# fetchers\n\ncurl\n(wget\n")

    with pytest.raises(ConfigurationError) as caught:
        BlockAgents.from_file(agents)

    assert f"'(wget', number 2 of {agents}, is not a regular expression" in str(caught.value)


def test_more_caps_than_a_request_can_hold_slots_are_refused():
    with pytest.raises(ConfigurationError, match=r"\Aguards: 9 of them cap concurrent requests"):
        throttle(hello, *(MaxConcurrentReqs(limit) for limit in range(1, 10)))


@pytest.mark.parametrize(
    "build",
    [
        lambda: SpeedLimit("1/s", path=["/a", "/b/"], methods="POST", host="example.org"),
        lambda: SpeedLimit("1/s", path=re.compile("/a/[0-9]+"), methods=["PROPFIND", "get"]),
        lambda: SpeedLimit("1/s", exempt=["192.0.2.7", "2001:db8::/32", "loopback", "private"]),
        lambda: SpeedLimit("1/s", status=503, ban="20m", wait="2s", on_error="refuse", dry_run=True),
        lambda: SpeedLimit(lambda _environ: None, cost=lambda _environ: 2, by="header:X-Api-Key"),
        lambda: MaxConcurrentReqs(10, by="client", hold="call", max_hold="1h"),
        lambda: CPUThrottle(20, window=15, resume=0, at_once=3, by="cookie:session"),
        lambda: BlockAgents(missing="refuse"),
        lambda: throttle(hello),
        lambda: throttle(hello, trusted_proxies=(), exempt=["192.0.2.0/24"], exempt_paths=["/static/"]),
        lambda: throttle(hello, store="shm:api?clients=1000&rows=64&private"),
        lambda: rlimits(CORE=0, DATA="1G:2G", AS=":unlimited", NOFILE="1024"),
    ],
)
def test_a_right_configuration_is_taken(build):
    build()


def test_a_guard_is_a_frozen_value():
    guard = SpeedLimit("1/s")

    with pytest.raises(dataclasses.FrozenInstanceError):
        guard.rate = "2/s"


def test_guards_with_the_same_figures_are_equal():
    assert SpeedLimit("1/s", path="/a") == SpeedLimit("1/s", path="/a")
    assert SpeedLimit("1/s", path="/a") != SpeedLimit("2/s", path="/a")


def test_a_guard_says_in_words_what_its_rate_means():
    assert "120 at once, then one every 0.5 s, at most 239 in the first minute" in repr(
        SpeedLimit("120/minute")
    )


def test_every_error_of_guardrails_has_one_parent():
    assert issubclass(ConfigurationError, guardrails.GuardrailsError)
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(guardrails.StoreError, guardrails.GuardrailsError)


class Tier(SpeedLimit):
    """A guard of a user's own, with arguments of its own."""

    def __init__(self, tier):
        super().__init__({"free": "1/second", "paid": "10/second"}[tier])
        object.__setattr__(self, "tier", tier)


def test_a_guard_with_arguments_of_its_own_can_be_copied_by_pickle():
    again = pickle.loads(pickle.dumps(Tier("paid")))  # noqa: S301 - our own

    assert again == Tier("paid")
    assert again.tier == "paid"
    assert again.rate == "10/second"


def test_a_guard_that_is_given_twice_is_refused_since_the_second_does_nothing():
    with pytest.raises(
        ConfigurationError, match="is given twice, and the second does nothing: leave one"
    ):
        throttle(hello, SpeedLimit("5/minute"), SpeedLimit("5/minute"))


def test_two_equal_rates_with_other_keys_are_two_guards():
    throttle(hello, SpeedLimit("5/minute"), SpeedLimit("5/minute", by="all"))


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("shop", 'the store of that name is "shm:shop"'),
        ("shm:shop?client=1000", "client=1000 in 'shm:shop?client=1000' is unknown: write clients; "),
    ],
)
def test_a_misspelt_store_is_told_with_what_was_meant(url, remedy):
    with pytest.raises(ConfigurationError) as raised:
        throttle(hello, SpeedLimit("5/minute"), store=url)
    assert remedy in str(raised.value)

"""What a guard counts by: the keys that are made of headers, users and callables' answers."""

import pickle

import pytest

from guardrails import BlockAgents, ConfigurationError, MaxConcurrentReqs, SpeedLimit, throttle
from guardrails.testing import hello
from support import Browser, lines

USER = "REMOTE_USER"
ALWAYS = (
    "by: 'all' always has a value, so what comes after it in the list is never counted by: "
    "write it last"
)


def statuses(site, count=1, **environ):
    return site.statuses(count, environ_overrides=environ)


def test_a_key_that_is_no_proper_text_still_counts(serve):
    assert serve(SpeedLimit("1/hour", by=lambda _environ: "\ud800")).statuses(2) == [200, 429]


def test_keys_of_any_length_are_told_apart(serve):
    site = serve(SpeedLimit("1/hour", by="header:X-Key"))
    long = "x" * 5000

    assert [site.get("/", headers={"X-Key": long + end}).status_code for end in "aab"] == [
        200,
        429,
        200,
    ]


def test_the_first_of_a_list_that_has_a_value_counts(serve):
    site = serve(SpeedLimit("2/minute", by=["user", "client"]))

    assert statuses(site, 3, REMOTE_USER="ann") == [200, 200, 429]
    assert statuses(site, 3) == [200, 200, 429]
    assert statuses(site.at("192.0.2.9"), 1, REMOTE_USER="ann") == [429]
    assert statuses(site.at("192.0.2.9"), 3) == [200, 200, 429]


def test_a_list_may_hold_headers_cookies_and_callables(serve):
    site = serve(
        SpeedLimit(
            "1/minute", by=["header:X-Key", "cookie:sid", lambda environ: environ.get("tenant"), "all"]
        )
    )

    for environ in ({"HTTP_X_KEY": "k"}, {"HTTP_COOKIE": "sid=k"}, {"tenant": "k"}, {}):
        assert statuses(site, 2, **environ) == [200, 429]
    assert statuses(site.at("192.0.2.9")) == [429]


def test_a_list_that_ends_with_a_header_counts_those_without_it_by_client(serve):
    """Otherwise leaving the header out would be the way past the limit."""
    site = serve(SpeedLimit("1/minute", by=["user", "header:X-Key"]))

    assert statuses(site, 2) == [200, 429]
    assert statuses(site.at("192.0.2.9"), 2) == [200, 429]


def test_a_request_that_nothing_in_the_list_has_a_value_for_is_not_counted(serve):
    site = serve(SpeedLimit("1/minute", by=["user", lambda environ: environ.get("tenant")]))

    assert statuses(site, 2) == [200, 200]


def test_an_empty_text_of_a_callable_in_a_list_is_no_value(serve):
    """Otherwise all visitors without a tenant would share one count."""

    def tenant(environ):
        return environ.get("tenant", "")

    site = serve(SpeedLimit("1/minute", by=[tenant, "client"]))

    assert statuses(site, 2) == [200, 429]
    assert statuses(site.at("192.0.2.9"), 2) == [200, 429]


@pytest.mark.parametrize(
    ("by", "other"),
    [
        ("user", {USER: "AAAA"}),
        ("header:X-Key", {"HTTP_X_KEY": "AAAA"}),
        (lambda environ: environ.get("tenant"), {"tenant": "AAAA"}),
    ],
    ids=["user", "header", "callable"],
)
def test_no_text_is_the_key_of_an_address(serve, by, other):
    """65.65.65.65 is the bytes AAAA."""
    site = serve(SpeedLimit("1/minute", by=[by, "client"]), address="65.65.65.65")

    assert statuses(site) == [200]
    assert statuses(site.at("192.0.2.1"), 1, **other) == [200]


def test_equal_values_of_two_sources_are_two_keys(serve):
    site = serve(SpeedLimit("1/minute", by=["header:X-A", "header:X-B", "user"]))

    assert statuses(site, 1, HTTP_X_A="v") == [200]
    assert statuses(site, 1, HTTP_X_B="v") == [200]
    assert statuses(site, 2, REMOTE_USER="v") == [200, 429]


def test_the_name_of_a_guard_has_the_list():
    def tenant(environ):
        return None

    guards = (
        SpeedLimit("1/s", path="/login", by=["user", "client"]),
        SpeedLimit("1/s", by=[tenant, "header:X-Key"]),
        MaxConcurrentReqs(2, by=("user",)),
    )

    assert [guard.default_name() for guard in guards] == [
        "speed-limit /login user,client",
        "speed-limit tenant,header:X-Key",
        "max-concurrent user",
    ]
    assert pickle.loads(pickle.dumps(guards[0])) == guards[0]  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("environ", "shown"),
    [({}, "192.0.2.1"), ({"path": "/a/"}, "/a"), ({"host": "Example.org"}, "Example.org")],
)
def test_a_key_of_a_list_is_shown_as_that_of_its_part(serve, environ, shown):
    parts = {"path": ["path"], "host": ["host"]}
    by = ["user", *parts.get(next(iter(environ), ""), ["client"])]
    site = serve(SpeedLimit("1/minute", by=by))
    overrides = {"HTTP_HOST": environ["host"]} if "host" in environ else {}
    path = environ.get("path", "/")
    site.get(path, environ_overrides=overrides)

    refused = site.get(path, environ_overrides=overrides)

    assert refused.request.environ["guardrails.decision"].key == shown


def test_the_name_of_a_user_is_not_shown(serve):
    site = serve(SpeedLimit("1/minute", by=["user", "client"]))
    statuses(site, 1, REMOTE_USER="ann")

    refused = site.get("/", environ_overrides={USER: "ann"})

    assert "ann" not in refused.request.environ["guardrails.decision"].key
    assert refused.request.environ["guardrails.decision"].key != "192.0.2.1"


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ([], "by: [] is neither a text nor a callable, nor a list of these: give one of these"),
        (["user", 7], "by: 7 is neither a text nor a callable, nor a list of these: give one of these"),
        (["user", "user"], "by: 'user' is in the list twice: leave one out"),
        (["all", "user"], ALWAYS),
    ],
)
def test_a_list_of_which_a_part_can_never_count_is_refused(by, message):
    with pytest.raises(ConfigurationError) as caught:
        SpeedLimit("1/s", by=by)

    assert str(caught.value) == message


def test_an_unknown_word_in_a_list_is_refused():
    with pytest.raises(ConfigurationError, match=r"\Aby: 'ip' is unknown"):
        SpeedLimit("1/s", by=["user", "ip"])


@pytest.mark.parametrize("inner_options", [{}, {"ipv6_prefix": 48}, {"trusted_proxies": ["loopback"]}])
def test_every_callable_finds_the_client_in_the_environ(store, inner_options):
    seen = {}

    def asked(what, answer):
        def callable_of_the_user(environ):
            seen[what] = environ.get("guardrails.client")
            return answer

        return callable_of_the_user

    def guard(place):
        return SpeedLimit(
            asked(f"{place} rate", "1/minute"),
            by=asked(f"{place} by", place),
            cost=asked(f"{place} cost", 1),
            exempt=asked(f"{place} guard's exempt", False),
        )

    inner = throttle(hello, guard("inner"), exempt=asked("inner exempt", False), **inner_options)
    app = throttle(
        inner,
        guard("outer"),
        exempt=asked("exempt", False),
        on_decision=lambda _decision, environ: asked("on_decision", None)(environ),
        store=store,
    )

    assert Browser(app).statuses(2) == [200, 429]
    assert len(seen) == 11
    assert set(seen.values()) == {"192.0.2.1"}


def test_a_limit_by_the_client_in_the_environ_limits(serve):
    site = serve(SpeedLimit("1/minute", by=lambda environ: environ["guardrails.client"]))

    assert site.statuses(2) == [200, 429]
    assert site.at("192.0.2.9").statuses(2) == [200, 429]


def test_what_gives_no_request_a_key_is_said_once(serve, caplog):
    def tenant(environ):
        return environ.get("tenant")

    site = serve(
        SpeedLimit("1/minute", by="user"),
        SpeedLimit("1/minute", by=tenant),
        SpeedLimit("1/minute", by=["user", tenant], path="/"),
        BlockAgents("zgrab"),
    )
    site.statuses(999)
    assert lines(caplog, level="WARNING") == []

    site.statuses(1001)

    assert lines(caplog, level="WARNING") == [
        f"{name}: by={by} gave none of the first 1000 requests a key, so the guard has not applied to "
        f"any: correct it, or name what counts instead, as in by={remedy} [by-gives-nothing]"
        for name, by, remedy in [
            ("speed-limit user", '"user"', '["user", "client"]'),
            ("speed-limit tenant", "tenant", '[tenant, "client"]'),
            ("speed-limit / user,tenant", '["user", tenant]', '["user", tenant, "client"]'),
        ]
    ]


def test_what_gave_one_request_a_key_is_not_remarked_on(serve, caplog):
    site = serve(SpeedLimit("1/minute", by="user"), SpeedLimit("9999/second", by=["user", "client"]))
    statuses(site, 1, REMOTE_USER="ann")

    site.statuses(1500)

    assert lines(caplog, level="WARNING") == []


def test_requests_that_the_guard_does_not_cover_are_not_counted_as_without_a_key(serve, caplog):
    site = serve(SpeedLimit("1/minute", by="user", path="/login"))

    site.statuses(1500)

    assert lines(caplog, level="WARNING") == []

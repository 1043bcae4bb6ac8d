"""The promises of `throttle()`, through the front door."""

import logging
import re

import pytest

import guardrails
from guardrails import BlockAgents, CPUThrottle, MaxConcurrentReqs, SpeedLimit, testing, throttle
from support import Browser, Exchange, environ_of, lines, nothing_is_left_in


def decision_of(response):
    return response.request.environ["guardrails.decision"]


# What a throttle is


def test_a_throttle_without_guards_lets_everything_pass(serve):
    assert serve().get("/").text == "hello\n"


def test_the_wrapped_app_is_at_hand():
    assert throttle(testing.hello).app is testing.hello


def test_any_other_attribute_names_the_remedy():
    with pytest.raises(AttributeError) as caught:
        _ = throttle(testing.hello).route

    assert str(caught.value) == (
        "Throttle has no attribute 'route': it stands in for the WSGI app that it wraps, which is at "
        ".app; to keep your framework's object write app.wsgi_app = "
        "guardrails.throttle(app.wsgi_app, ...)"
    )


@pytest.mark.parametrize(
    ("guard", "status"),
    [
        (SpeedLimit("1/minute"), 429),
        (MaxConcurrentReqs(1), 503),
        (CPUThrottle("20%"), 503),
        (BlockAgents("EvilBot"), 403),
    ],
)
def test_each_guard_is_a_middleware_of_its_own(guard, status, store, cpu):
    site = Browser(guard(cpu.app(60.0), store=store), agent="EvilBot")

    with site.hold() as first:
        second = site.get("/")
    third = site.get("/")

    assert status in {first.status_code, second.status_code, third.status_code}


def test_a_guard_is_a_decorator():
    @SpeedLimit("1/minute")
    def app(environ, start_response):
        return testing.hello(environ, start_response)

    assert isinstance(app, guardrails.Throttle)
    assert app.guards == (SpeedLimit("1/minute"),)


def test_a_guard_takes_the_options_of_a_throttle(store):
    site = Browser(SpeedLimit("1/minute")(testing.hello, store=store, exempt=["192.0.2.1"]))

    assert site.statuses(3) == [200, 200, 200]


def test_a_bound_method_is_an_app(store):
    class Framework:
        def wsgi_app(self, environ, start_response):
            return testing.hello(environ, start_response)

    site = Browser(throttle(Framework().wsgi_app, SpeedLimit("1/minute"), store=store))

    assert site.statuses(2) == [200, 429]


# Which requests a guard covers


def test_a_guard_covers_its_path_on_segment_borders(serve):
    site = serve(SpeedLimit("1/minute", path="/foo"))
    site.get("/foo")

    for path in ["/foo", "/foo/", "/foo/x"]:
        assert site.get(path).status_code == 429
    for path in ["/foobar", "/Foo", "/", "/x/foo"]:
        assert site.statuses(2, path) == [200, 200]


def test_a_guard_covers_any_of_several_paths(serve):
    site = serve(SpeedLimit("1/minute", path=["/login", "/reset/"]))
    site.get("/login")

    assert site.get("/reset").status_code == 429
    assert site.get("/reset/now").status_code == 429
    assert site.get("/").status_code == 200


def test_a_pattern_is_tried_from_the_start_of_the_path(serve):
    site = serve(SpeedLimit("1/minute", path=re.compile("/user/[0-9]+/export")))
    site.get("/user/7/export")

    assert site.get("/user/8/export.csv").status_code == 429
    assert site.get("/x/user/8/export").status_code == 200


def test_a_guard_covers_the_path_of_a_mounted_app(serve):
    """The path is the one the client asked for: SCRIPT_NAME and PATH_INFO together."""
    site = serve(SpeedLimit("1/minute", path="/shop/cart"))
    mounted = {"environ_overrides": {"SCRIPT_NAME": "/shop"}}
    site.get("/cart", **mounted)

    assert site.get("/cart", **mounted).status_code == 429
    assert site.get("/cart").status_code == 200


def test_the_environs_path_is_left_as_it_was(serve):
    seen = []

    def app(environ, start_response):
        seen.append((environ["SCRIPT_NAME"], environ["PATH_INFO"]))
        return testing.hello(environ, start_response)

    site = serve(SpeedLimit("9/minute", path="/a"), app=app)
    site.get("/", environ_overrides={"SCRIPT_NAME": "/m", "PATH_INFO": "//a/../b;x"})

    assert seen == [("/m", "//a/../b;x")]


def test_a_guard_covers_its_methods_only(serve):
    site = serve(SpeedLimit("1/minute", methods=["POST"]))
    site.post("/")

    assert site.post("/").status_code == 429
    assert site.statuses(3) == [200, 200, 200]


def test_get_implies_head(serve):
    site = serve(SpeedLimit("1/minute", methods=["GET"]))
    site.get("/")

    assert site.head("/").status_code == 429
    assert site.post("/").status_code == 200


@pytest.mark.parametrize("host", ["example.org", "EXAMPLE.org", "example.org.", "example.org:8080"])
def test_a_host_counts_without_case_port_and_last_dot(serve, host):
    site = serve(SpeedLimit("1/minute", host="Example.ORG:80"))
    site.get("/", headers={"Host": "example.org"})

    assert site.get("/", headers={"Host": host}).status_code == 429


def test_a_guard_leaves_other_hosts_alone(serve):
    site = serve(SpeedLimit("1/minute", host=["example.org", "www.example.org"]))
    site.get("/", headers={"Host": "example.org"})

    assert site.get("/", headers={"Host": "static.example.org"}).status_code == 200
    assert site.get("/", headers={"Host": "www.example.org"}).status_code == 429


# Exemptions


def test_exempt_networks_are_never_throttled(serve):
    site = serve(SpeedLimit("1/minute"), MaxConcurrentReqs(1), exempt=["192.0.2.0/28", "2001:db8::/32"])

    with site.hold():
        assert site.statuses(3) == [200, 200, 200]
    assert site.at("192.0.2.16").statuses(2) == [200, 429]
    assert site.at("2001:db8::1").statuses(2) == [200, 200]


def test_an_exempt_networks_requests_take_nothing_from_others(serve):
    site = serve(SpeedLimit("1/minute", by="all"), exempt=["192.0.2.0/28"])
    site.statuses(5)

    assert site.at("198.51.100.1").statuses(2) == [200, 429]


def test_exempt_paths_are_never_throttled(serve):
    site = serve(SpeedLimit("1/minute"), exempt_paths=["/static/", "/healthz"])
    site.get("/")

    for path in ["/static/logo.png", "/static", "/healthz"]:
        assert site.get(path).status_code == 200
    for path in ["/healthzz", "/stat", "/x/static/"]:
        assert site.get(path).status_code == 429


def test_a_guard_may_leave_networks_alone_by_itself(serve):
    site = serve(SpeedLimit("1/minute", exempt=["192.0.2.1"]), SpeedLimit("3/minute"))

    assert site.statuses(4) == [200, 200, 200, 429]


def test_a_guard_may_leave_paths_alone_by_itself(serve):
    site = serve(SpeedLimit("1/minute", exempt_paths=["/feed"]), SpeedLimit("3/minute"))

    assert site.statuses(4, "/feed/atom") == [200, 200, 200, 429]
    assert site.at("192.0.2.2").statuses(2) == [200, 429]


def test_a_wrong_kind_of_exempt_path_never_switches_the_guards_off(serve):
    """Were a pattern taken for prefixes, each request would fail inside and go on unguarded."""
    try:
        site = serve(SpeedLimit("1/minute", exempt_paths=re.compile("/static")))
    except guardrails.ConfigurationError:
        return
    assert site.statuses(2) == [200, 429]


# Several guards at once


def test_a_request_refused_by_one_guard_burns_no_rate_of_the_others(serve):
    """A request refused by the cap does not count against the client's rate."""
    site = serve(MaxConcurrentReqs(1), SpeedLimit("2/minute"))

    with site.hold():
        assert site.statuses(5) == [503] * 5
    assert site.statuses(2) == [200, 429]


def test_a_refused_request_holds_no_slot(serve, store):
    site = serve(MaxConcurrentReqs(1), SpeedLimit("1/minute"))
    site.statuses(5)

    assert nothing_is_left_in(store)


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_guards_changes_nothing_but_which_one_is_named(serve, order):
    rate, cap = SpeedLimit("1/minute"), MaxConcurrentReqs(1)
    site = serve(*[rate, cap][::order])

    with site.hold():
        refused = site.get("/")

    testing.assert_refused(refused, retry_after=60)
    named = {1: ("speed-limit client", 429), -1: ("max-concurrent all", 503)}[order]
    assert (decision_of(refused).guard, refused.status_code) == named


def test_retry_after_is_the_latest_of_all_who_refuse(serve):
    site = serve(SpeedLimit("1/second", name="short"), SpeedLimit("1/minute", name="long"))
    site.get("/")

    testing.assert_refused(site.get("/"), 429, guard="short", retry_after=60)


def test_a_status_of_ones_own(serve):
    site = serve(SpeedLimit("1/minute", status=503))
    site.get("/")

    assert site.get("/").status == "503 Service Unavailable"


# Bans


def test_who_is_banned_is_refused_everywhere_for_so_long(serve, clock):
    site = serve(SpeedLimit("1/second", path="/login", ban="20m"))
    assert site.statuses(2, "/login") == [200, 429]

    testing.assert_refused(site.get("/elsewhere"), 429, retry_after=1200)
    clock.advance(1199.999)
    assert site.get("/").status_code == 429
    clock.advance(0.001)
    assert site.get("/").status_code == 200


def test_the_refusal_that_bans_names_the_end_of_the_ban(serve):
    site = serve(SpeedLimit("1/second", ban="20m"))
    site.get("/")

    testing.assert_refused(site.get("/"), 429, retry_after=1200)


def test_knocking_does_not_make_a_ban_longer(serve, clock):
    site = serve(SpeedLimit("1/second", ban="20m"))
    site.statuses(2)
    for _ in range(19):
        clock.advance(60)
        assert site.get("/").status_code == 429
    clock.advance(60)

    assert site.get("/").status_code == 200


def test_a_ban_bans_that_client_only(serve):
    site = serve(SpeedLimit("1/second", ban="20m"))
    site.statuses(2)

    assert site.at("192.0.2.2").get("/").status_code == 200


def test_a_ban_answers_as_the_guard_that_set_it(serve):
    site = serve(BlockAgents("EvilBot", ban="1m"), SpeedLimit("9/minute"))
    site.at(agent="EvilBot").get("/")

    testing.assert_refused(site.get("/"), 403, guard="block-agents", retry_after=60)


def test_a_ban_by_a_guard_that_counts_by_something_else_bans_the_client(serve):
    site = serve(SpeedLimit("1/minute", by="header:X-Api-Key", ban="10m"))
    site.statuses(2, headers={"X-Api-Key": "k"})

    assert site.get("/", headers={"X-Api-Key": "another"}).status_code == 429
    assert site.at("192.0.2.2").get("/", headers={"X-Api-Key": "another"}).status_code == 200


def test_who_is_exempt_is_not_banned(serve):
    site = serve(SpeedLimit("1/second", ban="20m", exempt=["192.0.2.1"]))
    site.statuses(5)

    assert site.get("/").status_code == 200


# Whom a guard counts by


@pytest.mark.parametrize(
    ("by", "one", "another"),
    [
        ("client", {}, {"environ_overrides": {"REMOTE_ADDR": "192.0.2.9"}}),
        ("client+agent", {}, {"environ_overrides": {"HTTP_USER_AGENT": "another"}}),
        ("client+agent", {}, {"environ_overrides": {"REMOTE_ADDR": "192.0.2.9"}}),
        ("host", {"headers": {"Host": "a.example"}}, {"headers": {"Host": "b.example"}}),
        ("path", {"path": "/a"}, {"path": "/b"}),
        (
            "user",
            {"environ_overrides": {"REMOTE_USER": "ann"}},
            {"environ_overrides": {"REMOTE_USER": "bob"}},
        ),
        ("header:X-Api-Key", {"headers": {"X-Api-Key": "1"}}, {"headers": {"X-Api-Key": "2"}}),
        ("cookie:session", {"headers": {"Cookie": "session=1"}}, {"headers": {"Cookie": "session=2"}}),
    ],
)
def test_a_guard_counts_each_apart_by_what_it_is_told(serve, by, one, another):
    site = serve(SpeedLimit("1/minute", by=by))

    assert site.open(**one).status_code == 200
    assert site.open(**one).status_code == 429
    assert site.open(**another).status_code == 200


@pytest.mark.parametrize(
    ("by", "one", "same"),
    [
        ("all", {}, {"environ_overrides": {"REMOTE_ADDR": "192.0.2.9"}, "path": "/x"}),
        ("client", {}, {"environ_overrides": {"HTTP_USER_AGENT": "another"}, "path": "/x"}),
        ("host", {"headers": {"Host": "a.example"}}, {"headers": {"Host": "A.example.:80"}}),
        (
            "header:X-Api-Key",
            {"headers": {"X-Api-Key": "1"}},
            {"headers": {"X-Api-Key": "1"}, "environ_overrides": {"REMOTE_ADDR": "192.0.2.9"}},
        ),
        (
            "cookie:session",
            {"headers": {"Cookie": "session=1"}},
            {"headers": {"Cookie": "theme=dark; session=1"}},
        ),
    ],
)
def test_a_guard_counts_together_what_is_the_same_to_it(serve, by, one, same):
    site = serve(SpeedLimit("1/minute", by=by))
    site.open(**one)

    assert site.open(**same).status_code == 429


@pytest.mark.parametrize("by", ["header:X-Api-Key", "cookie:session"])
def test_without_the_header_or_cookie_the_client_is_counted(serve, by):
    """Nobody gets round a limit by leaving out what it counts by."""
    site = serve(SpeedLimit("1/minute", by=by))

    assert site.statuses(2) == [200, 429]
    assert site.at("192.0.2.2").get("/").status_code == 200


def test_nobody_can_use_up_anothers_rate_by_sending_an_address_as_a_key(serve):
    site = serve(SpeedLimit("1/minute", by="header:X-Api-Key"))
    site.at("192.0.2.9").get("/", headers={"X-Api-Key": "192.0.2.1"})
    site.at("192.0.2.9").get("/", headers={"X-Api-Key": "\xc0\x00\x02\x01"})

    assert site.get("/").status_code == 200


def test_without_a_user_a_guard_by_user_does_not_apply(serve):
    site = serve(SpeedLimit("1/minute", by="user"))

    assert site.statuses(3) == [200, 200, 200]


def test_a_callable_says_whom_to_count_and_none_means_nobody(serve):
    site = serve(SpeedLimit("1/minute", by=lambda environ: environ.get("HTTP_X_TENANT")))

    assert site.statuses(2, headers={"X-Tenant": "t"}) == [200, 429]
    assert site.statuses(3) == [200, 200, 200]


@pytest.mark.parametrize("by", ["header:X-Api-Key", "cookie:session", "client+agent", "user"])
def test_a_value_is_never_shown_as_it_is(serve, caplog, by):
    caplog.set_level(logging.DEBUG, "guardrails")
    secret = "s3cr3t-value"  # noqa: S105 - a stand-in
    site = serve(SpeedLimit("1/minute", by=by))
    facts = {
        "headers": {"X-Api-Key": secret, "Cookie": f"session={secret}"},
        "environ_overrides": {"REMOTE_USER": secret, "HTTP_USER_AGENT": secret},
    }
    site.get("/", **facts)
    refused = site.get("/", **facts)

    assert refused.status_code == 429
    assert secret not in str(decision_of(refused))
    assert secret not in caplog.text
    assert secret not in refused.text


def test_equal_values_are_shown_alike_and_others_otherwise(serve):
    """So that an operator can follow one of them through the log."""
    site = serve(SpeedLimit("1/minute", by="header:X-Api-Key"))
    shown = []
    for key in ["a", "a", "a", "b", "b"]:
        shown.append(decision_of(site.get("/", headers={"X-Api-Key": key})).key)

    assert shown[1] == shown[2]
    assert shown[1] != shown[4]


# What users and operators see


def test_the_app_sees_the_decision_and_the_client(serve):
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        return testing.hello(environ, start_response)

    serve(SpeedLimit("5/minute"), app=app).get("/")

    assert seen["guardrails.client"] == "192.0.2.1"
    decision = seen["guardrails.decision"]
    assert (decision.admitted, decision.outcome, decision.remaining) == (True, "PASSED", 4)


def test_a_refusal_is_told_to_on_decision_with_all_that_is_known(serve):
    told = []
    site = serve(
        SpeedLimit("1/minute", name="front"),
        on_decision=lambda decision, environ: told.append((decision, environ["PATH_INFO"])),
    )
    site.get("/")
    site.get("/page")

    ((decision, path),) = told
    assert path == "/page"
    assert decision == guardrails.Decision(
        admitted=False,
        outcome="REJECTED",
        guard="front",
        key="192.0.2.1",
        retry_after=60,
        remaining=0,
        status=429,
        id=decision.id,
    )


def test_on_decision_may_raise_without_harm(serve, caplog):
    def callback(decision, environ):
        raise LookupError("the user's own")

    site = serve(SpeedLimit("1/minute"), on_decision=callback)

    assert site.statuses(4) == [200, 429, 429, 429]
    assert len(lines(caplog, level="ERROR")) == 1


def test_the_reference_in_the_answer_is_the_decisions_id_and_in_the_log(serve, caplog):
    caplog.set_level(logging.INFO, "guardrails")
    site = serve(SpeedLimit("1/minute"))
    site.get("/")
    refused = site.get("/")

    reference = f"{decision_of(refused).id:x}"
    assert f"Reference: {reference}\n" in refused.text
    assert lines(caplog)[-1].endswith(f"reference {reference}")


def test_each_refusal_is_one_line_in_the_log(serve, caplog):
    caplog.set_level(logging.INFO, "guardrails")
    site = serve(SpeedLimit("1/minute"))
    site.statuses(3)

    assert len(lines(caplog)) == 2
    assert lines(caplog)[0].startswith(
        "REJECTED by speed-limit client: 192.0.2.1 from 192.0.2.1, 'GET' '/'"
    )


@pytest.mark.parametrize(
    "hostile", ["/\nREJECTED by nobody", "/\r\n\x1b[2Jx", "/\u2028x", "/\x85x", "/\x00"]
)
def test_a_hostile_path_stays_on_one_line_of_the_log(serve, caplog, hostile):
    caplog.set_level(logging.INFO, "guardrails")
    site = serve(SpeedLimit("1/minute", name="front"))
    facts = {"environ_overrides": {"PATH_INFO": hostile.encode().decode("latin-1")}}
    site.get("/", **facts)
    site.get("/", **facts)

    (line,) = lines(caplog)
    assert line.isprintable()
    assert line.isascii()


def test_a_hostile_method_host_and_agent_stay_on_one_line_of_the_log(serve, caplog):
    caplog.set_level(logging.INFO, "guardrails")
    for by in ["host", "path", "client+agent"]:
        site = serve(SpeedLimit("1/minute", by=by))
        facts = {
            "REQUEST_METHOD": "GET\nx",
            "HTTP_HOST": "a\nb\x1b",
            "PATH_INFO": f"/\n{by}\x1b",
            "HTTP_USER_AGENT": "a\nb",
        }
        for _ in range(2):
            site.get("/", environ_overrides=facts)

    assert len(lines(caplog)) == 3
    assert all(line.isprintable() for line in lines(caplog))


def test_a_long_path_makes_no_long_line(serve, caplog):
    caplog.set_level(logging.INFO, "guardrails")
    site = serve(SpeedLimit("1/minute", by="path"))
    site.statuses(2, "/" + "x" * 100_000)

    assert len(lines(caplog)[0]) < 1_000


# Names


def test_guards_that_are_alike_get_numbers(serve):
    site = serve(SpeedLimit("9/second"), SpeedLimit("1/minute"), SpeedLimit("99/day"))
    site.get("/")

    testing.assert_refused(site.get("/"), guard="speed-limit client 2")


def test_a_given_name_is_not_taken_by_a_made_one(serve):
    site = serve(SpeedLimit("9/second", name="speed-limit client"), SpeedLimit("1/minute"))
    site.get("/")

    testing.assert_refused(site.get("/"), guard="speed-limit client 2")


def test_a_name_is_made_of_kind_path_and_by(serve):
    site = serve(SpeedLimit("1/minute", path=["/login", "/reset"], by="client+agent"))
    site.get("/login")

    testing.assert_refused(site.get("/reset"), guard="speed-limit /login /reset client+agent")


def test_a_name_does_not_depend_on_the_figures_so_tuning_keeps_the_state(serve):
    serve(SpeedLimit("1/minute")).get("/")

    assert serve(SpeedLimit("2/hour", burst=1)).get("/").status_code == 429


def test_adding_a_guard_of_another_kind_keeps_the_state(serve):
    serve(SpeedLimit("1/minute")).get("/")
    site = serve(BlockAgents("EvilBot"), SpeedLimit("5/second", path="/login"), SpeedLimit("1/minute"))

    testing.assert_refused(site.get("/"), guard="speed-limit client")


# What goes wrong on the users' side


@pytest.mark.parametrize("who", ["by", "rate", "cost", "limit", "percent"])
@pytest.mark.parametrize(("on_error", "statuses"), [("allow", [200, 200]), ("refuse", None)])
def test_a_callable_that_raises_lets_pass_or_refuses_as_told(serve, caplog, who, on_error, statuses):
    def raising(_environ):
        raise LookupError("the user's own")

    guard, refusal = {
        "by": (SpeedLimit("1/minute", by=raising, on_error=on_error), 429),
        "rate": (SpeedLimit(raising, on_error=on_error), 429),
        "cost": (SpeedLimit("1/minute", cost=raising, on_error=on_error), 429),
        "limit": (MaxConcurrentReqs(raising, on_error=on_error), 503),
        "percent": (CPUThrottle(raising, on_error=on_error), 503),
    }[who]
    site = serve(guard)

    assert site.statuses(2) == (statuses or [refusal, refusal])
    assert len(lines(caplog, level="ERROR")) == 1


def test_a_callable_that_raises_does_not_stop_the_other_guards(serve):
    def raising(_environ):
        raise LookupError("the user's own")

    site = serve(SpeedLimit(raising, name="broken"), SpeedLimit("1/minute"))

    assert site.statuses(2) == [200, 429]


def test_a_callable_of_ours_that_fails_bans_nobody(serve):
    """With on_error="refuse" the client is refused, but it has done nothing to be banned for."""
    broken = [True]

    def sometimes(environ):
        if broken[0]:
            raise LookupError("the user's own")
        return "client"

    site = serve(SpeedLimit("9/minute", by=sometimes, on_error="refuse", ban="1h"))
    assert site.get("/").status_code == 429
    broken[0] = False

    assert site.get("/").status_code == 200


@pytest.mark.parametrize("stop", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callable_may_stop_the_worker(store, stop):
    def stopping(_environ):
        raise stop

    with pytest.raises(stop):
        Exchange(throttle(testing.hello, SpeedLimit(stopping), store=store)).call()


def test_an_environ_with_hardly_anything_in_it_is_served(store):
    """A front end may leave out nearly all; whatever is missing must not become a 500."""
    app = throttle(
        testing.hello,
        SpeedLimit("1/minute", path="/x", host="h", methods=["GET"]),
        BlockAgents("x"),
        store=store,
    )
    status = []

    assert list(app({}, lambda *answer: status.append(answer[0]))) == [b"hello\n"]
    assert status == ["200 OK"]


def test_a_method_in_small_letters_is_the_same_method(store):
    app = throttle(testing.hello, SpeedLimit("1/hour", methods=["POST"]), store=store)

    assert [Exchange(app, REQUEST_METHOD=method).call().status[:3] for method in ("post", "Post")] == [
        "200",
        "429",
    ]


def test_an_environ_that_comes_again_after_a_refusal_is_guarded_again(store):
    app = throttle(testing.hello, SpeedLimit("1/hour"), store=store)
    unnamed = throttle(app, SpeedLimit("99/hour"), store=store)
    environ = environ_of("/") | {"REMOTE_ADDR": "192.0.2.1"}

    statuses = []
    for _ in range(4):
        for chunk in unnamed(environ, lambda status, _headers: statuses.append(status[:3])):
            assert chunk
    assert statuses == ["200", "429", "429", "429"]


def test_a_guards_exempt_paths_hold_behind_a_script_name_that_a_header_set(store):
    """The exemption reaches beyond what the header says, so the header's sender gains nothing."""
    app = throttle(testing.hello, SpeedLimit("1/hour", exempt_paths=["/shop/static"]), store=store)
    mounted = {"SCRIPT_NAME": "/shop", "HTTP_SCRIPT_NAME": "/shop"}

    def statuses(path):
        return [Exchange(app, PATH_INFO=path, **mounted).call().status[:3] for _ in range(2)]

    assert statuses("/static/logo.png") == ["200", "200"]
    assert statuses("/search") == ["200", "429"]

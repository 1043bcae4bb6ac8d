"""Proxies that are declared wrongly: nobody pays for what others do, and the log says what is wrong."""

import pytest
from werkzeug.middleware.proxy_fix import ProxyFix

from guardrails import BlockAgents, ConfigurationError, SpeedLimit, testing, throttle
from support import Browser, Exchange, lines

PROXY = "10.0.0.1"
CONTAINER = "172.18.0.3"
VISITOR = {"X-Forwarded-For": "198.51.100.7"}


def said(caplog, code):
    """The warnings with this code."""
    return [line for line in lines(caplog, level="WARNING") if line.endswith(f"[{code}]")]


NOBODY = [
    ({"trusted_proxies": "loopback"}, "127.0.0.1", {}, "its request has no x-forwarded-for"),
    ({"trusted_proxies": PROXY}, PROXY, {}, "its request has no x-forwarded-for"),
    (
        {"trusted_proxies": PROXY, "forwarded": "cf-connecting-ip"},
        PROXY,
        VISITOR,
        "its request has x-forwarded-for '198.51.100.7' and no cf-connecting-ip",
    ),
    (
        {"trusted_proxies": "private"},
        PROXY,
        {"X-Forwarded-For": "10.7.7.7, 192.168.1.1"},
        "its x-forwarded-for '10.7.7.7, 192.168.1.1' names no address but those of trusted proxies",
    ),
    (
        {"proxy_hops": 2},
        PROXY,
        VISITOR,
        "its x-forwarded-for '198.51.100.7' has fewer entries than proxy_hops=2",
    ),
    ({"proxy_hops": 1}, PROXY, {}, "its request has no x-forwarded-for"),
    *(
        (
            {"trusted_proxies": PROXY},
            PROXY,
            {"X-Forwarded-For": junk},
            f"its x-forwarded-for {junk!a} has no address where the client's should be",
        )
        for junk in ["unknown", "unix:", "0.0.0.0", "::", "[::]:443", "", "caf\xe9\x1b[31m"]
    ),
    (
        {"trusted_proxies": PROXY, "forwarded": "forwarded"},
        PROXY,
        {"Forwarded": "for=_hidden;proto=https"},
        "its forwarded 'for=_hidden;proto=https' has no address where the client's should be",
    ),
]


@pytest.mark.parametrize(("declared", "peer", "headers", "seen"), NOBODY)
def test_where_nobody_can_know_the_client_guards_by_client_only_watch(
    serve, caplog, declared, peer, headers, seen
):
    """All visitors would be one client: not refused, not banned, and not exempt as one."""
    site = serve(
        BlockAgents("EvilBot", ban="1h"),
        SpeedLimit("1/minute"),
        SpeedLimit("8/minute", by="all", name="all"),
        address=peer,
        exempt=["loopback", "private", "::/1"],
        **declared,
    )

    evil = site.at(peer, agent="EvilBot")
    assert evil.get("/", headers=headers).status_code == 403
    assert site.statuses(9, headers=headers) == [200] * 8 + [429]
    (line,) = lines(caplog, level="WARNING")
    assert line.startswith(f"{peer} is a trusted proxy, and {seen}: guards that count by client refuse")
    assert line.endswith("[client-is-proxy]")


def test_the_warning_shows_no_more_than_the_end_of_a_header(serve, caplog):
    site = serve(address=PROXY, trusted_proxies=PROXY)
    site.get("/", headers={"X-Forwarded-For": "x" * 5000 + "y"})

    (line,) = said(caplog, "client-is-proxy")
    assert f"'{'x' * 63}y'" in line
    assert "x" * 64 not in line


def test_the_decision_says_that_a_watched_request_would_have_been_refused(serve):
    site = serve(SpeedLimit("1/minute"), address=PROXY, trusted_proxies=PROXY)
    answers = [site.get("/") for _ in range(2)]

    decision = answers[1].request.environ["guardrails.decision"]
    assert (decision.outcome, decision.key) == ("REJECTED_DRY_RUN", PROXY)


def test_each_proxy_is_named_once(serve, caplog):
    site = serve(trusted_proxies=["private"])
    for peer in [PROXY, CONTAINER, PROXY]:
        site.at(peer).get("/")

    assert [line.split()[0] for line in said(caplog, "client-is-proxy")] == [PROXY, CONTAINER]


def test_unspecified_addresses_in_a_header_ban_nobody(serve):
    """The network of :: is that of ::1, which is this host."""
    site = serve(BlockAgents("EvilBot", ban="1h"), trusted_proxies=PROXY)
    for forged in ["::", "0.0.0.0", "::ffff:0:0"]:
        site.at(PROXY, agent="EvilBot").get("/", headers={"X-Forwarded-For": forged})

    assert site.at("::1").get("/").status_code == 200


def test_a_program_on_the_host_of_the_proxy_is_told_from_visitors(serve, caplog):
    """A health check has no forwarding header, and visitors have one."""
    site = serve(SpeedLimit("2/minute"), address="127.0.0.1", trusted_proxies="loopback")
    assert site.statuses(1, headers=VISITOR) == [200]

    assert site.statuses(3) == [200, 200, 429]
    assert site.statuses(2, headers=VISITOR) == [200, 429]
    assert lines(caplog, level="WARNING") == []


def test_a_program_on_the_host_of_the_proxy_has_no_exemption_and_no_ban(serve):
    """The proxy may have dropped the header."""
    site = serve(
        BlockAgents("EvilBot", ban="1h"),
        SpeedLimit("2/minute"),
        address="127.0.0.1",
        trusted_proxies="loopback",
        exempt="loopback",
    )
    site.get("/", headers=VISITOR)

    assert site.at(agent="EvilBot").get("/").status_code == 403
    assert site.statuses(3) == [200, 200, 429]


def test_a_visitor_who_sends_the_header_does_not_make_programs_of_all_others(serve, caplog):
    """The proxy passes the header on as it came, and most visitors send none."""
    site = serve(SpeedLimit("2/hour"), address="127.0.0.1", trusted_proxies="loopback")
    site.get("/", headers=VISITOR)
    for number in range(20):
        site.at(agent=f"Browser/{number}").get("/")

    assert [site.at(agent=f"Browser/{number}").get("/").status_code for number in range(20)] == [
        200
    ] * 20
    assert len(said(caplog, "client-is-proxy")) == 1


def test_a_request_with_another_forwarding_header_is_no_programs_own(serve, caplog):
    site = serve(SpeedLimit("1/minute"), address="127.0.0.1", trusted_proxies="loopback")
    site.get("/", headers=VISITOR)

    assert site.statuses(3, headers={"X-Real-IP": "198.51.100.8"}) == [200, 200, 200]
    assert len(said(caplog, "client-is-proxy")) == 1


def test_a_trusted_proxy_elsewhere_without_a_header_is_watched_though_visitors_have_one(serve):
    """As HAProxy's own health checks are."""
    site = serve(SpeedLimit("1/minute"), address=PROXY, trusted_proxies=PROXY)
    site.get("/", headers=VISITOR)

    assert site.statuses(3) == [200, 200, 200]


def test_visitors_whom_guards_watch_use_up_nothing_of_the_hosts_own_count(serve):
    site = serve(SpeedLimit("1/minute"), address="127.0.0.1")
    assert site.statuses(3, headers=VISITOR) == [200, 200, 200]

    assert site.statuses(2) == [200, 429]


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_a_proxy_besides_the_declared_ones_counts_as_itself_and_is_named(serve, caplog, header):
    """As with nginx in a container, when only this host was declared."""
    site = serve(SpeedLimit("1/minute"), address=CONTAINER, trusted_proxies="loopback")

    assert site.statuses(2, headers={header: "198.51.100.7"}) == [200, 429]
    (line,) = lines(caplog, level="WARNING")
    assert line == (
        f"{CONTAINER} sends a forwarding header and is not in trusted_proxies=['loopback']: all its "
        "clients count as one, and are refused as one, until the proxy is named too, as in "
        f'trusted_proxies=[..., "{CONTAINER}"]; if that is a client, nothing is wrong '
        "[undeclared-proxy]"
    )


def test_a_cdn_besides_the_declared_proxies_is_named(serve, caplog):
    site = serve(SpeedLimit("1/minute"), address="203.0.113.9", trusted_proxies="loopback")

    assert site.statuses(2, headers=VISITOR) == [200, 429]
    (line,) = said(caplog, "ignored-forwarding-header")
    assert "which is not read since trusted_proxies does not have it" in line


def test_where_peers_are_clients_no_header_of_theirs_is_remarked_on(serve, caplog):
    site = serve(SpeedLimit("1/minute"), address=CONTAINER, trusted_proxies=())

    assert site.statuses(2, headers={**VISITOR, "Forwarded": "for=198.51.100.7"}) == [200, 429]
    assert lines(caplog, level="WARNING") == []


def test_a_proxy_that_proxy_fix_takes_for_the_client_is_nobody_one_can_know(serve, caplog):
    """Two proxies, and ProxyFix counts one."""
    site = serve(SpeedLimit("1/minute"), trusted_proxies="private", exempt="private")
    fixed = Browser(ProxyFix(site.application_under_test), address=PROXY)

    assert fixed.statuses(3, headers={"X-Forwarded-For": "198.51.100.7, 10.0.0.2"}) == [200] * 3
    assert "ProxyFix took its address" in said(caplog, "client-is-proxy")[0]


@pytest.mark.parametrize("declared", [{"trusted_proxies": "unix"}, {}])
def test_the_log_tells_an_absent_address_from_an_empty_one(serve, caplog, declared):
    site = serve(SpeedLimit("1/minute"), **declared)
    exchange = Exchange(site.application_under_test)
    del exchange.environ["REMOTE_ADDR"]
    exchange.finish()

    (line,) = lines(caplog, level="WARNING")
    assert line.startswith("REMOTE_ADDR is absent: guards that count by client do not apply")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("HTTP_X_FORWARDED_FOR", "x-forwarded-for"),
        ("http_x_real_ip", "x-real-ip"),
        ("X_Forwarded_For", "x-forwarded-for"),
        ("HTTP_FORWARDED", "forwarded"),
    ],
)
def test_a_header_is_named_as_in_a_request_not_as_in_an_environ(written, meant):
    with pytest.raises(ConfigurationError) as raised:
        throttle(testing.hello, forwarded=written)

    assert str(raised.value) == (
        f"forwarded: {written!r} is written with underscores, as in a WSGI environ: write the name of "
        f'the header, "{meant}"'
    )


@pytest.mark.parametrize(
    ("written", "network", "address"),
    [
        ("10.0.0.1/8", "10.0.0.0/8", "10.0.0.1"),
        ("2001:db8::1/32", "2001:db8::/32", "2001:db8::1"),
        ("192.0.2.7/255.255.255.0", "192.0.2.0/24", "192.0.2.7"),
    ],
)
@pytest.mark.parametrize("option", ["trusted_proxies", "exempt"])
def test_a_network_has_no_bits_beyond_its_prefix(option, written, network, address):
    with pytest.raises(ConfigurationError) as raised:
        throttle(testing.hello, **{option: [written]})

    assert str(raised.value) == (
        f'{option}: {written!r} has bits beyond its prefix: write "{network}" for the network, or '
        f'"{address}" for the address alone'
    )


@pytest.mark.parametrize("written", ["0.0.0.0", "::", "::/128", "::ffff:0:0"])
def test_the_unspecified_address_is_nobodys(written):
    with pytest.raises(ConfigurationError, match="unspecified address, which no client has"):
        throttle(testing.hello, SpeedLimit("1/s", exempt=written))


@pytest.mark.parametrize("peer", ["11.22.33.44", "::11.22.33.44", "::ffff:11.22.33.44", "::b16:212c"])
@pytest.mark.parametrize(
    "exempt",
    [
        "11.22.33.44",
        "::11.22.33.44",
        "::ffff:b16:212c",
        "::11.22.33.0/120",
        "::ffff:11.0.0.0/104",
        "::/96",
        "::ffff:0:0/96",
    ],
)
def test_however_an_address_is_written_it_is_the_same_for_peers_and_exemptions(serve, peer, exempt):
    site = serve(SpeedLimit("1/hour"), exempt=exempt)

    assert site.at(peer).statuses(2) == [200, 200]
    assert site.at("192.0.2.1").statuses(2)[1] == (200 if exempt.endswith("/96") else 429)


@pytest.mark.parametrize("exempt", ["::1", "::/127", "::1%lo", "::/96"])
def test_the_loopback_address_of_ipv6_stays_one(serve, exempt):
    site = serve(SpeedLimit("1/hour"), exempt=exempt)

    assert site.at("::1").statuses(2) == [200, 200]
    assert site.at("2001:db8::1").statuses(2) == [200, 429]


def test_a_proxy_that_ends_each_element_with_a_semicolon_has_many_clients(serve):
    site = serve(SpeedLimit("1/hour"), address=PROXY, trusted_proxies=PROXY, forwarded="forwarded")

    for client in ["198.51.100.1", "198.51.100.2"]:
        headers = {"Forwarded": f"for={client};proto=https;, , for=10.0.0.1;"}
        assert site.statuses(2, headers=headers) == [200, 429]


def ask(site, addresses, agents):
    """A request from each address in turn, each with the next of so many agents."""
    app = site.application_under_test
    for number, address in enumerate(addresses):
        facts = {"REMOTE_ADDR": address, "HTTP_USER_AGENT": f"Browser/{number % agents}"}
        Exchange(app, **facts).finish()


CDN = "203.0.113.9"
OTHERS = [f"198.51.100.{number}" for number in range(10)]


def test_one_client_with_many_agents_is_said(serve, caplog):
    """A CDN before a trusted nginx, for example: all that nginx sees is the CDN."""
    site = serve(SpeedLimit("1000000/hour"))
    ask(site, [*OTHERS, *[CDN] * 990], agents=20)

    (line,) = lines(caplog, level="WARNING")
    assert line == (
        f"{CDN} is the client of 990 of 1000 requests in a row, with 20 or more different user agents: "
        "if that is a proxy or a CDN, all its visitors count as one, and are refused as one, until it "
        "is named in trusted_proxies=[...]; if that is one visitor, nothing is wrong [one-client]"
    )


def test_one_client_is_said_of_whoever_asks_in_between(serve, caplog):
    site = serve()
    ask(site, [*[CDN] * 990, *OTHERS], agents=20)

    assert len(said(caplog, "one-client")) == 1


@pytest.mark.parametrize(
    ("addresses", "agents"),
    [
        ([CDN] * 999, 20),
        ([CDN] * 1000, 19),
        ([*OTHERS, "198.51.100.77", *[CDN] * 989], 20),
        ([*OTHERS[:2] * 6, *[CDN] * 989], 20),
    ],
    ids=["too few requests", "too few agents", "too many clients", "too few of one"],
)
def test_anything_less_is_not_remarked_on(serve, caplog, addresses, agents):
    ask(serve(), addresses, agents)

    assert said(caplog, "one-client") == []


def test_one_client_is_noticed_later_too(serve, caplog):
    """Of each 1,024 requests, 1,000 are looked at."""
    site = serve()
    ask(site, [*OTHERS * 3, *[CDN] * 994], agents=20)
    assert said(caplog, "one-client") == []

    ask(site, [CDN] * 1000, agents=20)
    assert len(said(caplog, "one-client")) == 1


def test_clients_that_guards_only_watch_are_another_checks_matter(serve, caplog):
    site = serve(trusted_proxies=PROXY)
    ask(site, [PROXY] * 1000, agents=20)

    assert said(caplog, "one-client") == []
    assert len(said(caplog, "client-is-proxy")) == 1


def test_where_clients_differ_requests_are_read_without_another_call(serve):
    """The look costs nothing once a dozen clients have come."""
    app = serve().application_under_test
    ask(Browser(app), [*OTHERS, CDN], agents=20)
    looking = app._one_client.read
    ask(Browser(app), ["198.51.100.99"], agents=20)

    assert (looking == app._clients.read, app._one_client.read == app._clients.read) == (False, True)

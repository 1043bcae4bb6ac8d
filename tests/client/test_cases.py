"""Who the client is, by the cases of those who had to get it right before.

client_ip: werkzeug's ProxyFix (a number of hops) and nginx's realip (trusted networks).
forwarded_strict: a strict parser of RFC 7239. ip_key_express: the key of an address in
express-rate-limit.
"""

import pytest
from werkzeug.middleware.proxy_fix import ProxyFix

from guardrails import testing, throttle
from guardrails.client.forwarded import forwarded_elements
from support import Exchange, cases

CLIENT_IP = cases("client_ip")
PROXY_FIX = [case for case in CLIENT_IP if case.startswith("proxyfix")]
REAL_IP = [case for case in CLIENT_IP if case.startswith("realip")]
FORWARDED = cases("forwarded_strict")
IP_KEY = cases("ip_key_express")


def told_of(app, environ):
    """The client that the app behind is told of."""
    exchange = Exchange(app)
    exchange.environ.update(environ)
    exchange.finish()
    return exchange.environ["guardrails.client"]


def throttled(**options):
    return throttle(testing.hello, store=testing.memory_store(), **options)


@pytest.mark.parametrize("case", PROXY_FIX)
def test_as_many_hops_as_proxy_fix(case):
    """We read the client alone; host, scheme and prefix stay ProxyFix's."""
    given = CLIENT_IP[case]["given"]
    hops = given["trusted_hops"]["for"]
    declared = {"proxy_hops": hops} if hops else {"trusted_proxies": ()}

    assert told_of(throttled(**declared), given["environ"]) == client_expected(case)


REPLACED = [
    case
    for case in PROXY_FIX
    if CLIENT_IP[case]["given"]["trusted_hops"]["for"] and "ignore" not in case
]


@pytest.mark.parametrize("case", REPLACED)
@pytest.mark.parametrize("declared", [{}, {"trusted_proxies": ["192.0.2.0/24"]}, {"proxy_hops": 2}])
def test_behind_proxy_fix_its_address_is_the_client_and_headers_are_not_read_again(case, declared):
    """Where it ignores the header, tests/test_client.py says what is done."""
    given = CLIENT_IP[case]["given"]
    hops = given["trusted_hops"]
    fixed = ProxyFix(
        throttled(**declared),
        x_for=hops["for"],
        x_proto=hops["proto"],
        x_host=hops["host"],
        x_port=hops["port"],
        x_prefix=hops["prefix"],
    )

    assert told_of(fixed, given["environ"]) == client_expected(case)


def client_expected(case):
    # Where a case has no peer, Exchange's stands.
    peer = CLIENT_IP[case]["given"]["environ"].get("REMOTE_ADDR", "192.0.2.1")
    return CLIENT_IP[case]["expect"].get("client") or peer


@pytest.mark.parametrize("case", REAL_IP)
def test_as_nginx_reads_it(case):
    """Nginx's recursive search is ours; not recursive means one hop."""
    given = CLIENT_IP[case]["given"]
    declared = {"trusted_proxies": given["trusted"]} if given["recursive"] else {"proxy_hops": 1}
    variable = "HTTP_" + given["header"].upper().replace("-", "_")
    environ = {"REMOTE_ADDR": given["peer"], variable: ", ".join(given["values"])}

    app = throttled(forwarded=given["header"], **declared)

    assert told_of(app, environ) == CLIENT_IP[case]["expect"]["client"]


@pytest.mark.parametrize("case", FORWARDED)
def test_forwarded_elements_are_those_of_a_strict_parser(case):
    """Read from the right; whatever a strict parser refuses has a broken element."""
    given, expect = FORWARDED[case]["given"], FORWARDED[case]["expect"]
    elements = list(forwarded_elements(given["header"]))[::-1]

    if "error" in expect:
        assert None in elements
    else:
        assert elements == expect["elements"]


@pytest.mark.parametrize("case", IP_KEY)
def test_the_key_of_an_address(case):
    """`false` there is all 128 bits here; it leaves out the length, which we show.

    "::" is what some servers say of a unix socket: here it is nobody, not a client of its own.
    """
    given = IP_KEY[case]["given"]
    whole = given["ipv6_prefix"] is False
    app = throttled(ipv6_prefix=128 if whole else given["ipv6_prefix"], trusted_proxies=())
    expected = IP_KEY[case]["expect"]["key"]
    if given["address"] == "::":
        expected = None
    elif whole and ":" in expected:
        expected = expected.replace("0123:", "123:") + "/128"

    assert told_of(app, {"REMOTE_ADDR": given["address"]}) == expected

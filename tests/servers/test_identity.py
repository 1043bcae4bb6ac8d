"""Behind a proxy that writes the recommended header, no client can choose its address."""

import pytest
from wire import Wire

CLIENT = "198.51.100.7"
FORGED = "203.0.113.66"
PROXY = "127.0.0.1"


def told(site, target, pairs):
    """The client that the app is told of."""
    with Wire(site.port) as wire:
        wire.send("GET", target, [*pairs, ("Connection", "close")])
        return wire.answer().text.strip()


FORGERIES = [
    pytest.param([("X_Forwarded_For", FORGED)], id="underscores"),
    pytest.param([("x_forwarded_for", FORGED), ("X_FORWARDED_FOR", FORGED)], id="underscores, twice"),
    pytest.param([("X-Forwarded_For", FORGED)], id="a hyphen and an underscore"),
    pytest.param([("X-Real-IP", FORGED)], id="another header"),
    pytest.param([("Remote-Addr", FORGED), ("REMOTE_ADDR", FORGED)], id="the peer itself"),
    pytest.param([("Client-Address", FORGED), ("Client_Address", FORGED)], id="a header like it"),
]


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_forged_header_beside_the_proxys_changes_nothing(site, forgery, where):
    """What the client sent may stand before or after what the proxy wrote."""
    if site.setup.proxy_writes == "Forwarded":
        target, true = "/rfc/client", ("Forwarded", f"for={FORGED}, for={CLIENT};proto=https")
    else:
        target, true = "/xff/client", ("X-Forwarded-For", f"{FORGED}, {CLIENT}")

    pairs = [*forgery, true] if where == "before" else [true, *forgery]

    assert told(site, target, pairs) == CLIENT


UNREADABLE = [
    pytest.param(b"\xff\xfe", id="bytes that are no text"),
    pytest.param(b'"', id="an open quote"),
    pytest.param(b", ,", id="nothing"),
    pytest.param(FORGED.encode(), id="an address"),
    pytest.param(b"x" * 2000, id="much"),
]


@pytest.mark.parametrize("forged", UNREADABLE)
@pytest.mark.parametrize("way", ["a header before", "in front"])
def test_a_header_of_the_proxys_own_name_makes_nobody_of_a_client(site, forged, way):
    """The proxy adds its entry at the end. A client that sends junk counts as itself or the proxy."""
    rfc = site.setup.proxy_writes == "Forwarded"
    true = f"for={CLIENT}" if rfc else CLIENT
    sent = forged.decode("latin-1")
    values = [sent, true] if way == "a header before" else [f"{sent}, {true}"]
    with Wire(site.port) as wire:
        pairs = [(site.setup.proxy_writes, value) for value in values]
        wire.send("GET", "/rfc/client" if rfc else "/xff/client", [*pairs, ("Connection", "close")])
        answer = wire.answer()

    if answer.status == 400:
        return  # the server itself refuses such a header
    assert answer.text.strip() in (CLIENT, PROXY)
    if site.setup.server not in ("bjoern", "granian"):
        # bjoern glues two headers together, granian empties one with bytes that are no text.
        assert answer.text.strip() == CLIENT


@pytest.mark.parametrize("forgery", FORGERIES)
def test_without_a_proxy_no_header_changes_who_a_client_is(site, forgery):
    """trusted_proxies=(): peers are clients. waitress itself is told here to believe this host."""
    if site.setup.server == "waitress":
        forgery = [pair for pair in forgery if pair[0] != "X-Forwarded-For"]

    assert told(site, "/own/client", [*forgery, ("Forwarded", f"for={FORGED}")]) == PROXY


def test_what_becomes_of_underscores_is_known(site, observe):
    """Why some servers need a header without a hyphen."""
    alone = told(site, "/xff/client", [("X_Forwarded_For", FORGED)])
    beside = told(site, "/xff/client", [("X-Forwarded-For", CLIENT), ("X_Forwarded_For", FORGED)])

    becomes = "the real header" if alone == FORGED else "nothing"
    observe("underscores", becomes + (", and beats the proxy's" if beside == FORGED else ""))
    # The server may do either. With our advice, no client may be able to choose its address.
    assert becomes == "nothing" or site.setup.proxy_writes != "X-Forwarded-For"

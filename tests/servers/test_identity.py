"""Behind a proxy that writes the recommended header, no client can choose who it is."""

import pytest
from wire import Wire

CLIENT = "198.51.100.7"
FORGED = "203.0.113.66"


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


def test_what_becomes_of_underscores_is_known(site, observe):
    """Why some servers need a header without a hyphen."""
    alone = told(site, "/xff/client", [("X_Forwarded_For", FORGED)])
    beside = told(site, "/xff/client", [("X-Forwarded-For", CLIENT), ("X_Forwarded_For", FORGED)])

    becomes = "the real header" if alone == FORGED else "nothing"
    observe("underscores", becomes + (", and beats the proxy's" if beside == FORGED else ""))
    assert (becomes == "nothing") == (site.setup.proxy_writes == "X-Forwarded-For")

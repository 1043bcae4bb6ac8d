"""A client that asks for a stream and does not read it cannot hold a cap for ever."""

import pytest
from wire import Wire

TRIES = 4


@pytest.fixture
def not_reading(site):
    """Ask for an endless stream, and read no more than its beginning."""
    if site.setup.name == "wsgiref":
        pytest.skip("while it serves one client, wsgiref accepts no other")
    wires = []

    def ask(target):
        wire = Wire(site.port, receive_buffer=4096)
        wires.append(wire)
        wire.send("GET", target, {"ClientAddress": site.new_client()})
        wire.until(b"\r\n\r\n")

    yield ask
    for wire in wires:
        wire.reset()
    site.until(site.is_free, "the slot is free")


def test_with_hold_call_it_holds_nothing_once_the_app_has_returned(site, not_reading):
    not_reading("/call/endless")

    assert site.ask("/call/plain").status == 200


def test_after_max_hold_its_slot_is_free_again(site, not_reading):
    """While it is still under way. A server's own time-out may be first, but not each time."""
    for _ in range(TRIES):
        not_reading("/held/endless")
        site.until(lambda: site.ask("/held/plain").status == 200, "the slot is free")
        if any(request.path == "/held/endless" for request in site.in_flight()):
            return
    pytest.fail("the slot came free only when the server had ended the request")

"""A refused client that sends its body byte by byte holds no thread: others are served meanwhile.

Nor is a body that nobody reads taken for the next request of its connection.
"""

import threading
import time
from contextlib import closing, suppress

import pytest
from wire import NOTHING, Wire, ask

LENGTH = 16_384
BLOCKED = {"User-Agent": "EvilBot"}
TRICKLES = {
    "with a length": ({"Content-Length": str(LENGTH)}, b""),
    "chunked": ({"Transfer-Encoding": "chunked"}, b"%x\r\n" % LENGTH),
    "of a blocked agent": ({"Content-Length": str(LENGTH), **BLOCKED}, b""),
}
BETWEEN_BYTES = 0.9
MOST_ATTACKERS = 101
ANSWER_SECONDS = 8
"""A refusal takes two seconds at most, after another one perhaps. The rest is for a busy machine."""
WAIT_FOR_THE_BODY = {"waitress", "bjoern", "mod_wsgi"}
"""Servers that send no answer before they have the whole body, or their own time-out has passed."""


class Attackers(threading.Thread):
    """Clients that send one byte of a body each 0.9 s, also after they have their answer."""

    def __init__(self, site, count, headers, start):
        super().__init__(daemon=True)
        self.wires = []
        self.answered = set()
        self._stopped = threading.Event()
        for _ in range(count):
            wire = Wire(site.port)
            self.wires.append(wire)
            wire.send("POST", "/once/plain", headers)
            wire.send_raw(start)
            wire.wait_at_most(0.01)
        self.start()

    def run(self):
        while not self._stopped.wait(BETWEEN_BYTES):
            for number, wire in enumerate(self.wires):
                with suppress(OSError):
                    wire.send_raw(b"x")
                with suppress(OSError, IndexError):
                    if wire.receive().split()[1] in (b"429", b"403"):
                        self.answered.add(number)

    def all_answered(self):
        return len(self.answered) == len(self.wires)

    def close(self):
        self._stopped.set()
        self.join()
        for wire in self.wires:
            wire.close()


@pytest.fixture(params=TRICKLES)
def attackers(request, site):
    """As many attackers as the server serves at once, and one more."""
    if any(option in site.setup.name for option in (" --preload", " --user", " --lazy-apps")):
        pytest.skip("its workers read as those of the same server without this option")
    client = site.new_client()
    assert site.ask("/once/plain", client=client).status == 200
    headers, start = TRICKLES[request.param]
    count = min(site.setup.at_once + 1, MOST_ATTACKERS)
    with closing(Attackers(site, count, {"ClientAddress": client, **headers}, start)) as attackers:
        yield attackers


def answered_within(site, seconds):
    """Return whether an honest client is answered in time."""
    try:
        return ask(site.port, "/open/ready", seconds=seconds) != NOTHING
    except OSError:
        return False


def test_others_are_served_while_refused_clients_trickle_their_bodies(site, attackers):
    assert answered_within(site, ANSWER_SECONDS)
    if site.setup.name not in WAIT_FOR_THE_BODY:
        site.until(attackers.all_answered, "each attacker is answered", ANSWER_SECONDS)

    # They go on after the answer, which some servers' own reading waits for.
    time.sleep(2 * BETWEEN_BYTES)
    assert all(answered_within(site, ANSWER_SECONDS) for _ in range(3))


REQUEST = b"GET /open/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
MUCH = REQUEST * 20_000
BODIES = {
    "with a length": ({"Content-Length": str(len(REQUEST))}, REQUEST),
    "chunked": (
        {"Transfer-Encoding": "chunked"},
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(REQUEST), REQUEST),
    ),
    "too long to be read": ({"Content-Length": str(len(MUCH))}, MUCH),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("agent", [{}, BLOCKED], ids=["refused", "blocked"])
def test_a_refused_body_is_not_taken_for_the_next_request(site, agent, body):
    client = site.new_client()
    assert site.ask("/once/plain", client=client).status == 200
    headers, sent = BODIES[body]
    seen = b""
    with Wire(site.port) as wire, suppress(OSError):
        wire.send("POST", "/once/plain", {"ClientAddress": client, **agent, **headers})
        with suppress(OSError):
            wire.send_raw(sent)
            wire.send("GET", "/open/next", {"Connection": "close"})
        while more := wire.receive():
            seen += more

    assert b"/open/smuggled" not in seen
    assert b" 400 " not in seen
    assert seen.count(b"HTTP/1.") == 1 or seen.endswith(b"page /open/next\n")
    assert not any(noted["path"] == "/open/smuggled" for noted in site.journal("page"))

"""A refused client that sends its body byte by byte holds no thread: others are served meanwhile."""

import threading
import time
from contextlib import closing, suppress

import pytest
from wire import NOTHING, Wire, ask

LENGTH = 16_384
FRAMINGS = {
    "with a length": ({"Content-Length": str(LENGTH)}, b""),
    "chunked": ({"Transfer-Encoding": "chunked"}, b"%x\r\n" % LENGTH),
}
BETWEEN_BYTES = 0.9
MOST_ATTACKERS = 101
ANSWER_SECONDS = 8
"""A refusal takes two seconds at most, after another one perhaps. The rest is for a busy machine."""
READ_FIRST = {"waitress", "bjoern"}
"""Servers that call the app when they have the whole body: until then no thread takes part."""
NOT_CHUNKED = {"mod_wsgi"}
"""Servers that refuse a chunked body themselves."""


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
                with suppress(OSError):
                    if b" 429 " in wire.receive():
                        self.answered.add(number)

    def all_answered(self):
        return len(self.answered) == len(self.wires)

    def close(self):
        self._stopped.set()
        self.join()
        for wire in self.wires:
            wire.close()


@pytest.fixture(params=FRAMINGS)
def attackers(request, site):
    """As many attackers as the server serves at once, and one more."""
    client = site.new_client()
    assert site.ask("/once/plain", client=client).status == 200
    headers, start = FRAMINGS[request.param]
    count = min(site.setup.at_once + 1, MOST_ATTACKERS)
    with closing(Attackers(site, count, {"ClientAddress": client, **headers}, start)) as attackers:
        attackers.expected = site.setup.name not in READ_FIRST and not (
            request.param == "chunked" and site.setup.name in NOT_CHUNKED
        )
        yield attackers


def answered_within(site, seconds):
    """Return whether an honest client is answered in time."""
    try:
        return ask(site.port, "/open/ready", seconds=seconds) != NOTHING
    except OSError:
        return False


def test_others_are_served_while_refused_clients_trickle_their_bodies(site, attackers):
    assert answered_within(site, ANSWER_SECONDS)
    if attackers.expected:
        site.until(attackers.all_answered, "each attacker is answered", ANSWER_SECONDS)

    # They go on after the answer, which some servers' own reading waits for.
    time.sleep(2 * BETWEEN_BYTES)
    assert all(answered_within(site, ANSWER_SECONDS) for _ in range(3))

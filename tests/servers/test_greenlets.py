"""CPU by greenlet, whatever else traces them and whenever gevent came."""

import subprocess
import sys

import pytest

BURNERS = """
from gevent import monkey; monkey.patch_all()
import gevent, greenlet, sys, time
from guardrails import CPUThrottle, testing, throttle
from guardrails.store.memory import MemoryStore

charged, burnt = {{}}, {{}}

class Ledger(MemoryStore):
    def leave(self, visit, debits=()):
        for debit in debits:
            charged[visit.client] = charged.get(visit.client, 0) + debit.amount / 1000
        super().leave(visit, debits)

def burning(environ, start_response):
    client = environ["guardrails.client"]
    for _ in range(10):
        began = time.thread_time()
        while time.thread_time() < began + float(environ["HTTP_X_MS"]) / 10_000:
            pass
        # A machine that others use may count their time too.
        burnt[client] = burnt.get(client, 0) + (time.thread_time() - began) * 1000
        gevent.sleep(0)
    return testing.hello(environ, start_response)

app = throttle(burning, CPUThrottle("100%", window="1h"), store=Ledger())

def ask(address, milliseconds):
    testing.Client(app, address=address).get("/", headers={{"X-Ms": str(milliseconds)}}).close()

def both():
    charged.clear(), burnt.clear()
    gevent.joinall([gevent.spawn(ask, "192.0.2.1", 300), gevent.spawn(ask, "192.0.2.2", 150)])
    return [charged[client] - burnt[client] for client in ("192.0.2.1", "192.0.2.2")]

def theirs(event, switch):
    heard.append(event)

heard = []
{story}
heavy, light = both()
print(f"charged {{heavy:.0f}} and {{light:.0f}} ms more than they burnt, heard {{bool(heard)}}")
# Half of what the other one burnt, which a slow machine does not reach by itself.
assert -75 < heavy < 75 and -75 < light < 75, (heavy, light)
"""

STORIES = {
    "as it is": "",
    "after a request in the main greenlet": 'ask("192.0.2.9", 1)',
    "beside a tracer that was there before": "greenlet.settrace(theirs); both(); assert heard",
    "after a tracer that forgot ours": "both(); greenlet.settrace(theirs); both(); assert heard",
    "after a tracer that put back what was there": (
        "before = greenlet.settrace(theirs); both(); greenlet.settrace(before); both()"
    ),
    "beside a tracer that calls ours": (
        "both(); ours = greenlet.gettrace(); "
        "greenlet.settrace(lambda event, switch: (theirs(event, switch), ours(event, switch)))"
    ),
    "beside a greenlet that keeps no attributes": """
class Strict(greenlet.greenlet):
    def __setattr__(self, name, value):
        raise AttributeError(name)
both()
Strict(lambda: None).switch()
""",
}


@pytest.mark.parametrize("story", STORIES)
def test_each_greenlet_is_charged_its_own(story):
    pytest.importorskip("gevent", reason="gevent is not installed")
    done = subprocess.run(
        [sys.executable, "-c", BURNERS.format(story=STORIES[story])],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:] + done.stdout


def test_a_tracer_that_comes_within_a_request_gives_nobody_a_credit():
    """The hidden time is charged to some client. No client is charged less than zero."""
    pytest.importorskip("gevent", reason="gevent is not installed")
    story = """
def changing(environ, start_response):
    if environ["HTTP_X_MS"] == "5":
        greenlet.settrace(theirs)
        gevent.sleep(0.05)
    return burning(environ, start_response)

def busy_before(address, milliseconds):
    until = time.thread_time() + 0.2
    while time.thread_time() < until:
        pass
    ask(address, milliseconds)

both()
charged.clear()
app.app = changing
gevent.joinall([gevent.spawn(busy_before, "192.0.2.1", 5), gevent.spawn(ask, "192.0.2.2", 20)])
assert min(charged.values()) > 0, charged
"""
    program = BURNERS.format(story=story)
    done = subprocess.run(
        [sys.executable, "-c", program[: program.index("heavy, light = both()")]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:] + done.stdout

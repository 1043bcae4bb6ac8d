import os
import socket

import pytest
from hypothesis import HealthCheck, settings
from short_forms import private_store

import guardrails
import leftovers
from guardrails import testing
from guardrails.worker import cpu_clock, process
from support import Browser, HandCPU

# A deadline by the wall clock would be a timing assertion, and so is the check for slow examples.
settings.register_profile(
    "dev", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "ci",
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("brief", settings.get_profile("ci"), max_examples=50)
settings.register_profile("quick", settings.get_profile("dev"), max_examples=10)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_sessionstart(session):
    session.config.shared_memory_before = leftovers.files()


def pytest_sessionfinish(session, exitstatus):
    """The whole run leaves shared memory as it was. Its workers only do their part."""
    if hasattr(session.config, "workerinput"):
        return
    left = leftovers.left_since(session.config.shared_memory_before)
    if left:
        session.config.get_terminal_writer().line(f"\nleft in shared memory: {left}", red=True)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    monkeypatch.delenv("GUARDRAILS", raising=False)
    monkeypatch.delenv("GUARDRAILS_STORE", raising=False)


@pytest.fixture
def clock():
    """The store's time; it stands still until a test lets it go on."""
    return testing.Clock()


@pytest.fixture
def store(clock):
    """A memory store on that clock."""
    return testing.memory_store(clock)


@pytest.fixture
def shared(clock):
    """A small shared store on that clock; its file goes with it."""
    store = private_store(clock, clients=64, rows=32)
    yield store
    store.close()


@pytest.fixture
def serve(store):
    """Put guards before an app, and return a browser before them."""

    def build(*guards, app=testing.hello, address="192.0.2.1", agent="guardrails-testing", **options):
        options.setdefault("store", store)
        return Browser(guardrails.throttle(app, *guards, **options), address=address, agent=agent)

    return build


@pytest.fixture
def cpu(monkeypatch):
    """The thread's CPU clock, by hand."""
    hand = HandCPU()
    monkeypatch.setattr(cpu_clock, "now", hand)
    return hand


@pytest.fixture
def worker_process(monkeypatch):
    """What this process has, made anew for a test, as after a fork."""
    fresh = process.WorkerProcess()
    monkeypatch.setattr(process, "_process", fresh)
    return fresh


@pytest.fixture
def absent():
    """The URL of a server that is not there."""
    with socket.socket() as kept:  # nobody else can listen at this port meanwhile
        kept.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{kept.getsockname()[1]}/"

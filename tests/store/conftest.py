"""One clock, and every kind of store on it."""

import pytest
from short_forms import private_store

from guardrails.store.memory import MemoryStore
from guardrails.testing import Clock

KINDS = ("memory", "shared", "flock")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=KINDS)
def store(request, clock):
    if request.param == "memory":
        store = MemoryStore(clock)
    else:
        lock = "flock" if request.param == "flock" else "mutex"
        store = private_store(clock, clients=256, rows=64, lock=lock)
    yield store
    store.close()


@pytest.fixture
def shared(clock):
    store = private_store(clock, clients=256, rows=64)
    yield store
    store.close()

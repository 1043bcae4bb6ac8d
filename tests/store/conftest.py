"""One clock, and every kind of store on it."""

import itertools
import os

import pytest

from guardrails.store.memory import MemoryStore
from guardrails.store.shared import SharedStore
from guardrails.testing import Clock

KINDS = ("memory", "shared", "flock")
_numbers = itertools.count()


def private_store(clock=None, **options):
    """A shared store of this test's own, gone when it is closed."""
    name = f"test-{os.getpid()}-{next(_numbers)}"
    if clock is not None:
        options["clock"] = clock
    return SharedStore(name, private=True, **options)


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

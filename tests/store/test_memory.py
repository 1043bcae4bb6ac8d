"""The memory store alone: what it forgets."""

import os
import signal

import pytest

from guardrails import SpeedLimit, testing, throttle
from guardrails.store.records import WorkerFacts
from support import Exchange


@pytest.mark.thorough
def test_the_memory_store_forgets_clients_whose_time_has_passed(clock):
    store = testing.memory_store(clock)
    app = throttle(testing.hello, SpeedLimit("1/second"), store=store)
    for number in range(40_000):
        Exchange(app, REMOTE_ADDR=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}").finish()
        clock.advance(0.001)

    assert len(store._model.words) < 20_000


def test_a_child_registers_though_a_thread_of_its_parent_held_the_lock(clock):
    """The lock of another thread is never released in a child."""
    store = testing.memory_store(clock)
    store.register(WorkerFacts("parent"))
    with store._lock:
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            before = store.workers()
            store.register(WorkerFacts("child"))
            os._exit(0 if not before and store.workers()[0].server == "child" else 1)
        assert os.waitpid(pid, 0)[1] == 0

"""The memory store alone: what it forgets."""

import pytest

from guardrails import SpeedLimit, testing, throttle
from support import Exchange


@pytest.mark.thorough
def test_the_memory_store_forgets_clients_whose_time_has_passed(clock):
    store = testing.memory_store(clock)
    app = throttle(testing.hello, SpeedLimit("1/second"), store=store)
    for number in range(40_000):
        Exchange(app, REMOTE_ADDR=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}").finish()
        clock.advance(0.001)

    assert len(store._model.words) < 20_000

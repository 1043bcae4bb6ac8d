"""Figures that are callables of the environ: tiers, and the bounds of what is remembered of them."""

import pytest

from guardrails import CPUThrottle, MaxConcurrentReqs, SpeedLimit, testing, throttle
from support import Exchange


@pytest.mark.thorough
@pytest.mark.parametrize(
    "guard",
    [
        MaxConcurrentReqs(lambda environ: int(environ["HTTP_X"]) % 5000 + 1),
        CPUThrottle(lambda environ: int(environ["HTTP_X"]) % 5000 + 1),
        SpeedLimit("9/second", cost=lambda environ: int(environ["HTTP_X"]) % 9),
        SpeedLimit(lambda environ: f"{int(environ['HTTP_X']) + 1}/second"),
    ],
)
def test_what_callables_say_is_remembered_within_bounds(shared, guard):
    app = throttle(testing.hello, guard, store=shared)
    for number in range(5000):
        Exchange(app, HTTP_X=str(number)).finish()

    assert len(shared._file.compiled) <= 4096
    assert len(app._bound_guards[0].tiers) <= 256
    assert not app.errors

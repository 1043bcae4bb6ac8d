import pytest

from guardrails import MaxConcurrentReqs, SpeedLimit, throttle


@pytest.fixture
def guarded(store):
    """Guard an app so that a request holds a slot in `store`."""

    def build(app, **options):
        return throttle(app, MaxConcurrentReqs(1), SpeedLimit("99/second"), store=store, **options)

    return build

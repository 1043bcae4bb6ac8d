"""What the guards of the worker hear of: each response once, whatever becomes of the store."""

import pytest

from guardrails import SpeedLimit, StoreError, testing, throttle
from support import Browser


@pytest.fixture
def heard(worker_process):
    heard = []
    worker_process.hooks.after_response = (lambda open_request: heard.append(open_request.path),)
    return heard


def fail(*_arguments, **_options):
    raise StoreError("busy")


def test_each_response_is_heard_of_once(serve, heard):
    serve(SpeedLimit("9/s")).statuses(3)
    assert heard == ["/"] * 3


def test_a_refusal_is_no_response_of_the_app(serve, heard):
    assert serve(SpeedLimit("1/minute")).statuses(3) == [200, 429, 429]
    assert heard == ["/"]


def test_responses_are_heard_of_while_the_switch_is_off(serve, store, heard):
    store.switch("off")
    serve(SpeedLimit("9/s")).statuses(3)
    assert heard == ["/"] * 3


def test_responses_are_heard_of_while_the_store_fails(serve, store, heard, monkeypatch):
    monkeypatch.setattr(store, "enter", fail)
    serve(SpeedLimit("9/s"), on_store_error="allow").statuses(3)
    assert heard == ["/"] * 3


def test_leaving_that_is_tried_again_is_no_further_response(store, heard, monkeypatch):
    browser = Browser(throttle(testing.hello, SpeedLimit("9/s"), store=store))
    leave = store.leave
    monkeypatch.setattr(store, "leave", fail)
    assert browser.statuses(3) == [200] * 3
    monkeypatch.setattr(store, "leave", leave)
    assert browser.get("/").status_code == 200
    assert heard == ["/"] * 4
    assert store.requests() == []

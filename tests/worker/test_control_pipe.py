"""The control pipe of a process: when it is there, and when it is not."""

import os
import sys
import threading
from types import SimpleNamespace

import pytest

from guardrails import SpeedLimit
from guardrails.worker import control_pipe


def test_no_thread_waits_for_commands_where_threads_are_greenlets(monkeypatch):
    """The thread would block the hub, and with it every request."""
    patched = SimpleNamespace(is_module_patched=lambda name: name == "threading")
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="threads are greenlets here"):
        control_pipe.ControlPipe().handle(control_pipe.SHOW_STACKS, lambda *_: None)
    assert set(threading.enumerate()) == before


def test_a_pipe_that_the_app_closes_ends_the_commands_and_nothing_more(caplog):
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    control_pipe._serve(reading, {})
    assert "control pipe: it was closed" in caplog.text


def test_without_being_asked_for_no_thread_is_started(serve):
    before = set(threading.enumerate())
    assert serve(SpeedLimit("9/s")).get("/").status_code == 200
    assert set(threading.enumerate()) <= before

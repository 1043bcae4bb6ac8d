"""The watchdog that a server's hook starts: it runs, or the server says why it does not."""

import logging
import os
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import guardrails
from guardrails.store.processes import pid_namespace
from guardrails.watchdog import beside
from guardrails.watchdog.lock import Lock, server_name
from support import is_there

pytestmark = pytest.mark.one_python

SECONDS = 60


@pytest.fixture
def server(monkeypatch):
    """What gunicorn hands to its hooks. The watchdogs that they start are ended."""
    monkeypatch.setattr(beside, "_running", [])
    monkeypatch.setattr(beside, "_has_run", False)
    monkeypatch.setattr(beside, "START_SECONDS", SECONDS)
    yield SimpleNamespace(log=logging.getLogger("server"), cfg=SimpleNamespace(uid=os.geteuid()))
    beside.run_beside([])


def pids():
    return [each.pid for _words, each in beside._running if each.poll() is None]


def owner():
    return Lock(server_name(pid_namespace(), os.getpid())).owner()


def until(condition, what):
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)
    return found


def test_it_watches_when_the_hook_returns(server):
    guardrails.watchdog()(server)
    (pid,) = pids()
    assert owner().pid == pid
    beside.run_beside([])
    assert not is_there(pid)


def test_a_log_file_that_cannot_be_opened_stops_the_server_with_the_reason(server):
    with pytest.raises(guardrails.ConfigurationError) as refused:
        guardrails.watchdog(log_file="/nowhere/w.log")(server)
    assert str(refused.value).startswith("log_file: '/nowhere/w.log' cannot be opened: No such file")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"on_event": "/nowhere/tell"}, "on_event: there is no program '/nowhere/tell'"),
        ({"log": "/nowhere/error.log"}, "log: there is no folder /nowhere"),
        ({"probe": "http://127.0.0.1:1/", "master": "/nowhere/pid"}, "master: there is no pid file"),
        ({"user": "no-such-user"}, "user: there is no 'no-such-user'"),
    ],
)
def test_so_does_what_is_wrong_on_this_host(server, options, said):
    with pytest.raises(guardrails.ConfigurationError) as refused:
        guardrails.watchdog(**options)(server)
    assert str(refused.value).startswith(said)


def test_at_a_reload_one_that_was_killed_is_started_again_and_one_that_runs_is_left(server):
    guardrails.watchdog()(server)
    (first,) = pids()
    guardrails.watchdog()(server)
    assert pids() == [first]

    os.kill(first, signal.SIGKILL)
    until(lambda: not is_there(first), "it is gone")
    guardrails.watchdog()(server)
    (second,) = pids()
    assert second != first
    assert owner().pid == second


def test_at_a_reload_other_options_count(server):
    guardrails.watchdog("5m")(server)
    (first,) = pids()
    guardrails.watchdog("7m")(server)
    (second,) = pids()
    assert not is_there(first)
    assert b"--timeout=7m" in Path(f"/proc/{second}/cmdline").read_bytes()
    assert owner().pid == second


def test_at_a_reload_what_is_wrong_is_logged_and_the_server_goes_on(server, caplog):
    guardrails.watchdog("5m")(server)
    guardrails.watchdog("5m", log_file="/nowhere/w.log")(server)
    assert [(record.name, record.levelname) for record in caplog.records] == [("server", "ERROR")]
    assert "this server has no watchdog: log_file: '/nowhere/w.log' cannot be" in caplog.text


def test_one_that_says_nothing_in_time_does_not_hold_up_the_server(server, caplog, monkeypatch):
    monkeypatch.setattr(beside, "START_SECONDS", 0.0)
    guardrails.watchdog()(server)
    (pid,) = pids()
    assert f"watchdog {pid} says nothing for 0 s yet" in caplog.text
    until(lambda: owner() is not None and owner().pid == pid, "it runs all the same")


def test_the_servers_systemd_hears_nothing_of_its_watchdog(server, tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        guardrails.watchdog()(server)
        beside.run_beside([])
        with pytest.raises(BlockingIOError):
            receiver.recv(4096)

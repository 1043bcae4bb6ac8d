"""A watchdog as it is described: its defaults, whom it signals, and what a server's hook starts."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import guardrails
from guardrails.ops.cli import _parser
from guardrails.watchdog import options
from guardrails.watchdog.policy import Policy
from support import Told

SECONDS = 60


@pytest.fixture
def started(monkeypatch):
    """The options of each process that is started."""
    started = []
    monkeypatch.setattr(options, "_start", started.append)
    return started


def server(uid):
    """What gunicorn hands to `when_ready`."""
    return SimpleNamespace(cfg=SimpleNamespace(uid=uid))


def test_the_defaults_are_the_same_wherever_they_are_written():
    parsed = vars(_parser().parse_args(["watch", "run"]))
    given = {option.name: parsed[option.name] for option in options.OPTIONS}
    on_the_command_line = guardrails.watchdog(given.pop("timeout"), **given)

    assert on_the_command_line == guardrails.watchdog()
    assert guardrails.watchdog().policy == Policy()
    assert guardrails.watchdog().arguments() == []
    assert guardrails.watchdog().monitor(Told()) is None


def test_roots_server_of_another_user_has_a_watchdog_as_that_user_and_a_monitor_as_root(
    started, absent
):
    monitor = {"probe": absent, "log": ("/var/log/a",), "disk": ("/=10%",), "load": "4"}
    guards = {
        "path_timeout": {"/r": "9m"},
        "exempt_path": "/up",
        "ban": "5m",
        "log_file": "/var/log/w.log",
    }
    described = guardrails.watchdog("1m", **monitor, **guards)

    described(server(os.geteuid() + 1))

    theirs, ours = started
    assert theirs["user"] == str(os.geteuid() + 1)
    assert (theirs["timeout"], theirs["exempt_path"]) == ("1m", ("/up",))
    assert (theirs["path_timeout"], theirs["ban"]) == (("/r=9m",), "5m")
    assert theirs["log_file"] == "/var/log/w.log"
    assert [theirs[name] for name in monitor] == [None, (), (), None]

    assert (ours["user"], ours["log_file"]) == (None, None)
    assert (ours["timeout"], ours["path_timeout"], ours["exempt_path"]) == (0, (), ())
    assert {name: ours[name] for name in monitor} == monitor

    for given in (theirs, ours):  # such as they are, the command takes them
        again = vars(_parser().parse_args(["watch", *options._words(given), "run"]))
        assert again["timeout"] == str(given["timeout"])


def test_without_a_monitor_one_process_is_enough(started):
    guardrails.watchdog("1m")(server(os.geteuid() + 1))
    assert [(given["user"], given["timeout"]) for given in started] == [(str(os.geteuid() + 1), "1m")]


@pytest.mark.parametrize(
    ("uid", "user"), [(None, None), (os.geteuid(), None), (os.geteuid() + 1, "somebody")]
)
def test_where_nobody_else_serves_or_a_user_was_named_one_process_does_it_all(
    uid, user, started, absent
):
    guardrails.watchdog("1m", probe=absent, user=user)(server(uid))
    assert [(given["user"], given["probe"], given["timeout"]) for given in started] == [
        (user, absent, "1m")
    ]


def test_where_no_command_is_named_a_probe_that_fails_signals_the_master(absent):
    told = Told()
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as master:
        try:
            assert master.stdout.readline() == b"ready\n"
            described = guardrails.watchdog(
                probe=absent, probe_failures=1, probe_signal="USR1", master=master.pid
            )
            described.monitor(told).look(1.0)
            assert master.wait(SECONDS) == 7
        finally:
            master.kill()
    assert "probe-failed" in told.events
    assert "probe-not-signalled" not in told.events

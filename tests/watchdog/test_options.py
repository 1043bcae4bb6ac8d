"""The options of a watchdog: in Python, on the command line, and in what a server's hook starts."""

import inspect
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import pytest

import guardrails
from guardrails.ops import cli
from guardrails.watchdog import options
from guardrails.watchdog.command_line import arguments_for
from guardrails.watchdog.options import REMOVED, RENAMED, command_options
from guardrails.watchdog.policy import Policy
from support import Told

SECONDS = 60

OLD_AND_NEW = [
    ("between", "kill_interval", "7s"),
    ("step", "signal_interval", "7s"),
    ("probe_rest", "probe_cooldown", "7s"),
    ("probe_command", "on_failure", "true"),
    ("probe_signal", "on_failure", "USR2"),
    ("exempt_path", "exempt_paths", ["/upload", "/download"]),
]
PROBED = {
    "probe_rest": {"probe": "http://127.0.0.1/"},
    "probe_command": {"probe": "http://127.0.0.1/"},
    "probe_signal": {"probe": "http://127.0.0.1/"},
}
"""What the options need that have no effect by themselves."""

REMOVED_AND_REMEDY = {
    "keep": "give logrotate, its configuration",
    "backups": "give logrotate, its configuration",
    "compress_after": "delaycompress",
    "swap_in": "give memory",
}


@pytest.fixture
def started(monkeypatch):
    """The options of each process that is started."""
    started = []
    monkeypatch.setattr(options, "_start", lambda wanted, _server: started.extend(wanted))
    return started


def on_the_command_line(*words):
    """The watchdog that these words describe."""
    parsed = vars(cli.parser().parse_args(["watch", *words, "run"]))
    names = [option.name for option in command_options() if option.name in parsed]
    return guardrails.watchdog(**{name: parsed[name] for name in names})


def server(uid):
    """What gunicorn hands to `when_ready`."""
    return SimpleNamespace(cfg=SimpleNamespace(uid=uid))


class Worker:
    """The base of gunicorn's worker classes, by its name."""


class SyncWorker(Worker):
    """Serves one request at a time."""


class ThreadWorker(Worker):
    """Serves several requests at once."""


def gunicorn(worker_class, timeout=30, graceful_timeout=30):
    cfg = SimpleNamespace(uid=os.geteuid(), timeout=timeout, graceful_timeout=graceful_timeout)
    return SimpleNamespace(cfg=cfg, worker_class=worker_class)


@pytest.mark.parametrize(
    ("arbiter", "said"),
    [
        (gunicorn(SyncWorker), "gunicorn's timeout of 30 s ends a sync worker before the watchdog's"),
        (gunicorn(SyncWorker, timeout=190), None),
        (gunicorn(SyncWorker, timeout=0), None),
        (gunicorn(ThreadWorker), "gunicorn's graceful_timeout of 30 s cuts off the requests of a"),
        (gunicorn(ThreadWorker, graceful_timeout=34), None),
        (server(os.geteuid()), None),
        (None, None),
    ],
)
def test_settings_of_the_server_that_defeat_it_are_said_once(started, caplog, arbiter, said):
    guardrails.watchdog()(arbiter)
    assert len(started) == 1
    assert [message for message in caplog.messages if said and said in message] == caplog.messages
    assert len(caplog.messages) == (said is not None)


def test_the_warning_names_a_setting_that_is_enough(started, caplog):
    guardrails.watchdog(timeout="60s")(gunicorn(SyncWorker))
    guardrails.watchdog(timeout="60s")(gunicorn(SyncWorker, timeout=70))
    (said,) = caplog.messages
    assert said.endswith("set gunicorn's timeout to 70 or more, or the watchdog's to less")


def test_the_defaults_are_the_same_wherever_they_are_written():
    assert on_the_command_line() == guardrails.watchdog()
    assert guardrails.watchdog().policy == Policy()
    assert guardrails.watchdog().arguments() == []
    assert guardrails.watchdog().monitor(Told()) is None


def test_settings_and_the_command_line_say_the_same():
    described = guardrails.watchdog(
        "2m",
        path_timeout={"/reports": "10m"},
        exempt_paths=["/upload", "/download"],
        interrupt=True,
        ban="5m",
        disk=["/=10%"],
        least_workers=2,
    )
    again = on_the_command_line(*described.arguments())

    assert again.policy == described.policy
    assert again.arguments() == described.arguments()


def test_the_signature_has_every_option_with_its_type_and_default():
    parameters = inspect.signature(guardrails.watchdog).parameters.values()

    assert all(parameter.default is not parameter.empty for parameter in parameters)
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters)
    assert get_type_hints(guardrails.watchdog).keys() >= {parameter.name for parameter in parameters}


def test_the_help_of_the_command_has_the_words_of_the_docstring(capsys):
    with pytest.raises(SystemExit):
        cli.main(["watch", "--help"])
    shown = " ".join(capsys.readouterr().out.split())

    assert "--poll TIME time between two looks at the scoreboard (default: 5s)" in shown
    assert "--exempt-paths PREFIX paths under this prefix are never overdue; may be given" in shown
    assert "--disk PATH=LEAST least free space of a file system, as 10% or 2G" in shown
    assert all(option.flag in shown and option.help for option in command_options())
    assert not any(f"--{old.replace('_', '-')} " in shown for old in (*RENAMED, *REMOVED))


@pytest.mark.parametrize(("old", "new", "value"), OLD_AND_NEW, ids=RENAMED)
def test_an_option_by_its_earlier_name_is_taken_with_a_warning_at_the_users_line(old, new, value):
    with pytest.warns(DeprecationWarning, match=f"^{old} is now {new}; the next minor") as warned:
        described = guardrails.watchdog(**{old: value}, **PROBED.get(old, {}))

    assert described == guardrails.watchdog(**{new: value}, **PROBED.get(old, {}))
    assert [Path(warning.filename) for warning in warned] == [Path(__file__)]


@pytest.mark.parametrize(("old", "new", "value"), OLD_AND_NEW, ids=RENAMED)
def test_an_earlier_flag_is_taken_and_says_so_on_standard_error(old, new, value, capsys):
    def words(name):
        values = value if isinstance(value, list) else [value]
        given = [f"--{name.replace('_', '-')}={each}" for each in values]
        return [*given, *(f"--{other}={each}" for other, each in PROBED.get(old, {}).items())]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        described = on_the_command_line(*words(old))

    (said,) = set(capsys.readouterr().err.splitlines())
    assert said == (
        f"guardrails: --{old.replace('_', '-')} is now --{new.replace('_', '-')}; the next minor "
        "version no longer takes it"
    )
    assert described == on_the_command_line(*words(new))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", REMOVED)
def test_an_option_that_is_gone_is_refused_with_its_successor(name, capsys):
    with pytest.raises(guardrails.ConfigurationError) as refused:
        guardrails.watchdog(**{name: "5"})
    assert str(refused.value).startswith(f"watchdog: {name} is no longer an option: ")
    assert REMOVED_AND_REMEDY[name] in str(refused.value)

    with pytest.raises(SystemExit) as ended:
        on_the_command_line(f"--{name.replace('_', '-')}=5")
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(f"guardrails: --{name.replace('_', '-')} is no longer an option: ")
    assert (REMOVED_AND_REMEDY[name] in said, len(said.splitlines())) == (True, 1)


@pytest.mark.parametrize("said", [{"timeout": 0}, {"timeout": "0s", "ban": "5m"}])
def test_a_watchdog_that_would_do_nothing_is_refused(said, absent):
    with pytest.raises(guardrails.ConfigurationError, match="the watchdog would do nothing"):
        guardrails.watchdog(**said)
    guardrails.watchdog(**said, probe=absent)
    guardrails.watchdog(**said, path_timeout={"/reports": "10m"})


def test_what_is_given_means_the_same_in_another_folder(tmp_path, monkeypatch, absent):
    monkeypatch.chdir(tmp_path)
    described = guardrails.watchdog(
        log=["a.log"], log_file="w.log", logrotate="site.conf", master="site.pid", probe=absent
    )
    words = described.arguments()
    for option, name in (("log", "a.log"), ("log-file", "w.log"), ("logrotate", "site.conf")):
        assert f"--{option}={tmp_path / name}" in words
    assert f"--master={tmp_path / 'site.pid'}" in words


def test_an_option_by_both_of_its_names_is_refused():
    with pytest.raises(guardrails.ConfigurationError) as refused:
        guardrails.watchdog(between="1s", kill_interval="2s")
    assert str(refused.value) == (
        "watchdog: between and kill_interval are the same option: leave between out"
    )


def test_roots_server_of_another_user_has_a_watchdog_as_that_user_and_a_monitor_as_root(
    started, absent
):
    monitor = {"probe": absent, "log": ("/var/log/a",), "disk": ("/=10%",), "load": "4"}
    guards = {
        "path_timeout": {"/r": "9m"},
        "exempt_paths": "/up",
        "ban": "5m",
        "log_file": "/var/log/w.log",
    }
    described = guardrails.watchdog("1m", **monitor, **guards)

    described(server(os.geteuid() + 1))

    theirs, ours = started
    assert theirs["user"] == str(os.geteuid() + 1)
    assert (theirs["timeout"], theirs["exempt_paths"]) == ("1m", ("/up",))
    assert (theirs["path_timeout"], theirs["ban"]) == (("/r=9m",), "5m")
    assert theirs["log_file"] == "/var/log/w.log"
    assert [theirs[name] for name in monitor] == [None, (), (), None]

    assert (ours["user"], ours["log_file"]) == (None, None)
    assert (ours["timeout"], ours["path_timeout"], ours["exempt_paths"]) == (0, (), ())
    assert {name: ours[name] for name in monitor} == monitor

    for given in (theirs, ours):  # such as they are, the command takes them
        again = on_the_command_line(*arguments_for(command_options(), given))
        assert dict(again.options)["timeout"] == str(given["timeout"])


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


@pytest.mark.parametrize(("on_failure", "status"), [((), 1), ("SIGUSR1", 7), (["USR1", "true"], 7)])
def test_where_no_command_is_named_a_probe_that_fails_signals_the_master(absent, on_failure, status):
    told = Told()
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))\n"
        "signal.signal(signal.SIGHUP, lambda *_: os._exit(1))\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as master:
        try:
            assert master.stdout.readline() == b"ready\n"
            described = guardrails.watchdog(
                probe=absent, probe_failures=1, on_failure=on_failure, master=master.pid
            )
            described.monitor(told).look(1.0)
            assert master.wait(SECONDS) == status
        finally:
            master.kill()
    assert "probe-failed" in told.events
    assert "probe-not-signalled" not in told.events


@pytest.mark.parametrize(
    ("option", "value", "other"),
    [
        ("probe_every", "5s", "probe"),
        ("probe_timeout", "5s", "probe"),
        ("probe_failures", 2, "probe"),
        ("probe_cooldown", "5m", "probe"),
        ("log_max", "1G", "log"),
        ("growth", "1G", "log"),
    ],
)
def test_an_option_of_what_is_not_watched_is_refused(option, value, other):
    with pytest.raises(
        guardrails.ConfigurationError, match=f"^{option}: .* has no effect without {other}:"
    ):
        guardrails.watchdog(disk=["/=1%"], **{option: value})

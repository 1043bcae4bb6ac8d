"""The monitor: its parts, its loop, and how it is built from the values of a command line."""

import logging
import subprocess
import sys
import threading
import time

import pytest

import guardrails
from guardrails.errors import ConfigurationError
from guardrails.watchdog.events import Notifier, command_words
from guardrails.watchdog.monitor import Monitor
from support import Told

JOIN_SECONDS = 60


class Part:
    """Remembers when it looked, and fails as it was told to."""

    def __init__(self, *errors):
        self.looked = []
        self.errors = list(errors)

    def look(self, now):
        self.looked.append(now)
        if self.errors:
            error = self.errors.pop(0)
            if error is not None:
                raise error


@pytest.fixture
def told():
    return Told()


def test_each_part_looks_at_the_same_time(told):
    parts = [Part(), Part()]
    Monitor(parts, told).look(5.0)

    assert [part.looked for part in parts] == [[5.0], [5.0]]


def test_trouble_of_one_part_does_not_reach_the_others_and_is_told(told):
    parts = [Part(OSError(28, "No space left on device")), Part()]
    Monitor(parts, told).look(5.0)

    assert parts[1].looked == [5.0]
    event, message, level, facts = told[0]
    assert (event, level) == ("monitor-error", logging.ERROR)
    assert facts == {"part": "Part", "error": "OSError: [Errno 28] No space left on device"}
    assert message.startswith("Part: OSError: [Errno 28] No space left on device")


def test_trouble_is_told_once_a_minute_for_each_part_and_kind(told):
    one = Part(*[ValueError("x")] * 5, KeyError("y"), ValueError("z"))
    monitor = Monitor([one, Part(*[ValueError("x")] * 7)], told)
    happened = []
    for now in (0, 1, 2, 30, 59, 60, 61):
        before = len(told)
        monitor.look(now)
        happened.append(len(told) - before)

    assert happened == [2, 0, 0, 0, 0, 2, 1]


def test_trouble_of_others_can_forge_no_line(told):
    Monitor([Part(ValueError("\x1b[31m\nall is well" + "x" * 10_000))], told).look(0)

    assert told[0][1].isprintable()
    assert len(told[0][1]) < 300


def test_one_who_cannot_even_be_told_stops_nothing():
    def broken(*_arguments, **_facts):
        raise OSError(28, "No space left on device")

    parts = [Part(ValueError()), Part()]
    Monitor(parts, broken).look(0)

    assert parts[1].looked == [0]


def test_its_loop_looks_until_it_is_told_to_stop(told):
    stop = threading.Event()

    class Last(Part):
        def look(self, now):
            super().look(now)
            if len(self.looked) == 3:
                stop.set()

    part = Last(ValueError("in the first look"))
    before = time.monotonic()
    Monitor([part], told).run(stop, poll=0)

    assert len(part.looked) == 3
    assert before <= part.looked[0] <= part.looked[1] <= part.looked[2] <= time.monotonic()


@pytest.mark.parametrize("hanging_first", [True, False])
def test_a_part_that_hangs_holds_up_no_other(told, hanging_first):
    """A file system whose server does not answer, for instance."""
    stop, hangs, answers = threading.Event(), threading.Event(), threading.Event()

    class Hanging(Part):
        def look(self, now):
            super().look(now)
            hangs.set()
            answers.wait(JOIN_SECONDS)

    class Last(Part):
        def look(self, now):
            assert hangs.wait(JOIN_SECONDS)
            super().look(now)
            if len(self.looked) == 3:
                stop.set()
                answers.set()

    hanging, other = Hanging(), Last()
    parts = [hanging, other] if hanging_first else [other, hanging]
    Monitor(parts, told).run(stop, poll=0)

    assert (len(hanging.looked), len(other.looked)) == (1, 3)


def test_its_loop_ends_at_once_in_the_middle_of_a_long_wait(told):
    """Not after `poll`: the test would not come to its end."""
    stop, part = threading.Event(), Part()
    thread = threading.Thread(target=Monitor([part], told).run, args=(stop, 3600.0))
    thread.start()
    stop.set()
    thread.join(JOIN_SECONDS)

    assert not thread.is_alive()


def test_it_does_not_look_once_it_was_stopped(told):
    stop, part = threading.Event(), Part()
    stop.set()
    Monitor([part], told).run(stop)

    assert part.looked == []


def test_commands_of_events_are_tidied_up(tmp_path):
    saved = tmp_path / "told"
    announcer = Notifier(on_event=command_words(f"touch {saved}", "on_event"))
    monitor = Monitor([Part(ValueError("x"))], announcer)
    monitor.look(0)
    (process, _deadline) = announcer.commands._running[0]
    process.wait(JOIN_SECONDS)
    monitor.look(1)

    assert announcer.commands._running == []
    assert saved.exists()


# From the options of the watchdog.


def monitor_of(told, **options):
    return guardrails.watchdog(**options).monitor(told)


def test_nothing_asked_for_is_no_monitor(told):
    assert monitor_of(told) is None
    assert monitor_of(told, log=(), disk=(), pressure=[], probe=None) is None


def test_everything_may_come_as_the_texts_of_a_command_line(told, tmp_path):
    log = tmp_path / "app.log"
    log.write_text("x" * 3000)
    monitor = monitor_of(
        told,
        probe="http://127.0.0.1:1/",
        probe_every="5",
        probe_timeout="500ms",
        probe_failures="2",
        probe_cooldown="10m",
        on_failure="true",
        log=str(log),
        log_max="2k",
        growth="50M",
        disk=f"{tmp_path}=1000000T",
        memory="1",
        load="1000000",
        pressure=["cpu=100", "memory=100%", "io=100"],
    )
    for now in range(20):
        monitor.look(now)
    commands = monitor._parts[0]._commands
    while commands._running:
        commands._running[0][0].wait(JOIN_SECONDS)
        commands.tidy()

    happened = [event for event in told.events if event != "threshold-absent"]
    assert sorted(happened) == ["disk-low", "log-too-large", "probe-failed"]


def test_several_logs_and_disks_may_be_named(told, tmp_path):
    logs = [tmp_path / "error.log", tmp_path / "access=1.log"]
    for log in logs:
        log.write_text("x" * 3000)
    monitor = monitor_of(told, log=[str(log) for log in logs], log_max=2000, disk=["/a=b=10%", "/c=1G"])
    monitor.look(0)

    assert told.events == ["log-too-large", "log-too-large", "threshold-absent", "threshold-absent"]
    assert [facts.get("about") for *_, facts in told[2:]] == ["/a=b", "/c"]


def test_mappings_are_as_good(told, tmp_path):
    monitor_of(told, disk={str(tmp_path): "1000000T"}).look(0)

    assert told.events == ["disk-low"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe": "x"}, "probe: 'x' cannot be requested"),
        ({"probe_every": "0"}, "probe_every: '0' is not above 0"),
        ({"probe_timeout": 0}, "probe_timeout: 0 is not above 0"),
        ({"probe_failures": "many"}, "probe_failures: 'many' is not a whole number from 1 to 1000"),
        ({"probe_cooldown": "x"}, "probe_cooldown: 'x' is not a duration"),
        ({"on_failure": "SIGX"}, "on_failure: 'SIGX' is not the name of a signal"),
        ({"on_failure": '"'}, "on_failure: '\"' cannot be split"),
        ({"on_failure": "true"}, "on_failure: 'true' has no effect without probe: give probe"),
        ({"master": 5}, "master: 5 has no effect without probe: give probe"),
        ({"probe": "http://a/", "master": "0"}, "master: 0 is not the pid of a server"),
        ({"log_max": "0"}, "log_max: '0' is always exceeded"),
        ({"growth": "x"}, "growth: 'x' is not a size"),
        ({"log": ""}, "log: '' is not the path of a file"),
        ({"logrotate": "/x"}, "logrotate: '/x' has no effect without log: give log"),
        ({"log": "/x", "logrotate": ""}, "logrotate: '' is not the path of a file"),
        (
            {"disk": "/var"},
            "disk: '/var' is not a name with its threshold: write both, such as /var=10%",
        ),
        ({"disk": "=5%"}, "disk: '=5%' is not a name with its threshold"),
        ({"disk": [5]}, "disk: '5' is not a name with its threshold"),
        ({"disk": ["/=5%", "/=6%"]}, "disk: '/' has two thresholds"),
        ({"disk": "/=x"}, "disk /: 'x' is not a size"),
        ({"pressure": "memory"}, "pressure: 'memory' is not a name with its threshold"),
        ({"pressure": "memory=x"}, "pressure memory: 'x' is not a percent"),
        ({"pressure": "net=5"}, "pressure: 'net' is not measured"),
        ({"memory": "x"}, "memory: 'x' is not a size"),
        ({"load": "0"}, "load: '0' is not a number above 0"),
    ],
)
def test_every_value_is_checked_when_it_is_built(told, options, message):
    with pytest.raises(ConfigurationError) as refused:
        monitor_of(told, **options)

    assert str(refused.value).startswith(message)


def test_importing_it_starts_nothing():
    code = (
        "import threading, sys, signal, guardrails.watchdog.monitor\n"
        "print(threading.active_count(), signal.getsignal(signal.SIGURG) == signal.SIG_DFL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout == "1 True\n"

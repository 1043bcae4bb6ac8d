"""The host's thresholds: told when passed, again each ten minutes, and when it is over."""

import errno
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from guardrails.errors import ConfigurationError
from guardrails.watchdog.pressure import HostPressure
from support import Told

GB = 10**9


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def proc(tmp_path):
    """A /proc whose figures a test writes."""
    (tmp_path / "pressure").mkdir()
    return tmp_path


def disk_of(free, size=100 * GB):
    """A file system with so much left for ordinary users, and twice as much for root."""
    return SimpleNamespace(
        f_bavail=free // 4096, f_bfree=2 * free // 4096, f_blocks=size // 4096, f_frsize=4096
    )


def course(told, thresholds, figures, put, step=60):
    """The events at each of these figures, one look each."""
    happened = []
    for number, figure in enumerate(figures):
        put(figure)
        before = len(told)
        thresholds.look(number * step)
        happened.append([event for event, *_ in told[before:]])
    return happened


def test_a_disk_is_told_of_when_it_first_passes_and_when_that_is_over(told):
    disks = {}
    thresholds = HostPressure(told, disk={"/var": 10 * GB}, statvfs=lambda path: disk_of(disks[path]))
    course_of = {20: [], 10.1: [], 9: ["disk-low"], 8: [], 10.5: [], 10.9: [], 9.5: []}
    course_of |= {12: ["disk-low-over"], 9.9: ["disk-low"]}

    happened = course(told, thresholds, course_of, lambda free: disks.update({"/var": int(free * GB)}))

    assert happened == list(course_of.values())
    _event, message, level, facts = told[0]
    assert level == logging.WARNING
    assert message == "/var: 9.0 GB free, and the threshold is 10.0 GB"
    assert facts == {"path": "/var", "free": 9 * GB // 4096 * 4096, "least": 10 * GB}
    assert told[1][2] == logging.INFO


def test_a_disk_may_have_a_percent_of_itself_and_each_disk_is_judged_by_itself(told):
    disks = {"/": disk_of(11 * GB), "/var": disk_of(9 * GB), "/srv": disk_of(9 * GB, 80 * GB)}
    thresholds = HostPressure(told, disk=dict.fromkeys(disks, "10%"), statvfs=disks.__getitem__)

    thresholds.look(0)

    assert [facts["path"] for *_, facts in told] == ["/var"]
    assert told[0][3]["least"] == pytest.approx(10 * GB, rel=1e-4)


def test_a_disk_may_have_a_size_as_its_threshold(told):
    HostPressure(told, disk={"/": "2G"}, statvfs=lambda _path: disk_of(2**31 - 4096)).look(0)

    assert told[0][3]["least"] == 2**31


def test_what_stays_is_told_of_again_each_ten_minutes(told):
    thresholds = HostPressure(told, load=1, loadavg=lambda: (9000, 0, 0))
    happened = []
    for now in range(0, 1900, 10):
        before = len(told)
        thresholds.look(now)
        if len(told) > before:
            happened.append(now)

    assert happened == [0, 600, 1200, 1800]
    assert set(told.events) == {"load-high"}


def test_it_looks_as_often_as_it_was_told_to(told):
    looked = []

    def loadavg():
        looked.append(1)
        return (0, 0, 0)

    thresholds = HostPressure(told, load=1, loadavg=loadavg)
    for now in range(100):
        thresholds.look(now)

    assert len(looked) == 10


def test_load_is_that_of_the_last_minute_per_cpu(told, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    figures = {"now": 0.0}
    thresholds = HostPressure(told, load="1.5", loadavg=lambda: (figures["now"], 99, 99))
    course_of = {5.9: [], 6.1: ["load-high"], 5.5: [], 5.3: ["load-high-over"]}

    happened = course(told, thresholds, course_of, lambda load: figures.update(now=load))

    assert happened == list(course_of.values())
    assert told[0][3] == {"load": 6.1, "cpus": 4, "most": 1.5}


@pytest.mark.parametrize("least", ["10%", "800k"])
def test_memory_is_what_is_available_of_all_of_it(told, proc, least):
    thresholds = HostPressure(told, memory=least, proc=proc)
    course_of = {900: [], 790: ["memory-low"], 805: [], 700: [], 890: ["memory-low-over"]}

    happened = course(
        told,
        thresholds,
        course_of,
        lambda available: (proc / "meminfo").write_text(
            f"MemTotal:    8000 kB\nMemFree:     1 kB\nMemAvailable:   {available} kB\n"
        ),
    )

    assert happened == list(course_of.values())
    assert told[0][1] == "memory: 0.8 MB available, and the threshold is 0.8 MB"
    assert told[0][3] == {"available": 790 << 10, "least": 800 << 10}


@pytest.mark.parametrize("name", ["cpu", "memory", "io"])
def test_pressure_is_the_share_of_time_in_which_something_waited(told, proc, name):
    thresholds = HostPressure(told, pressure={name: "20%"}, proc=proc)
    course_of = {"0.00": [], "19.99": [], "20.10": ["pressure-high"], "18.10": []}
    course_of |= {"17.90": ["pressure-high-over"]}

    happened = course(
        told,
        thresholds,
        course_of,
        lambda percent: (proc / "pressure" / name).write_text(
            f"some avg10={percent} avg60=99.00 avg300=99.00 total=1\nfull avg10=99.00 avg60=0.00\n"
        ),
    )

    assert happened == list(course_of.values())
    assert told[0][3] == {"resource": name, "percent": 20.1, "most": 20.0}


def test_what_this_host_does_not_have_is_said_and_the_rest_is_looked_at(told, tmp_path):
    thresholds = HostPressure(
        told,
        disk={str(tmp_path / "none"): "10%"},
        memory="10%",
        load=1,
        pressure={"memory": 20},
        proc=tmp_path,
        loadavg=lambda: (9999, 9999, 9999),
    )
    for now in range(0, 900, 10):
        thresholds.look(now)

    assert sorted(told.events) == [*["load-high"] * 2, *["threshold-absent"] * 6]
    absent = [facts["about"] for event, *_, facts in told if event == "threshold-absent"]
    assert absent == [str(tmp_path / "none"), "memory", "memory pressure"] * 2
    assert {level for *_, level, _facts in told} == {logging.WARNING}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("meminfo", "MemTotal: 5 kB\n"),
        ("meminfo", "MemTotal: 5 kB\nMemAvailable: many\n"),
        ("pressure/memory", "full avg10=1.00\n"),
        ("pressure/memory", "some avg10=lots\n"),
        ("pressure/memory", ""),
    ],
)
def test_what_cannot_be_read_is_said_too(told, proc, file, text):
    (proc / "meminfo").write_text("MemTotal: 5 kB\nMemAvailable: 5 kB\n")
    (proc / "pressure" / "memory").write_text("some avg10=0.00\n")
    (proc / file).write_text(text)
    thresholds = HostPressure(told, memory="1%", pressure={"memory": 20}, proc=proc)
    for now in range(0, 100, 10):
        thresholds.look(now)

    assert told.events == ["threshold-absent"]


def test_a_file_system_without_blocks_is_left_out(told):
    HostPressure(told, disk={"/proc": "10%"}, statvfs=lambda _path: disk_of(0, 0)).look(0)

    assert told.events == ["threshold-absent"]


def test_every_figure_of_this_very_host_can_be_read(told, tmp_path):
    """What it does not have is left out and said; nothing else is told at thresholds out of reach."""
    thresholds = HostPressure(
        told,
        disk={str(tmp_path): 1},
        memory=1,
        load=10**6,
        pressure=dict.fromkeys(("cpu", "memory", "io"), 100),
    )
    for now in range(0, 50, 10):
        thresholds.look(now)

    absent = {facts["about"] for event, *_, facts in told if event == "threshold-absent"}
    assert set(told.events) <= {"threshold-absent"}
    there = [name for name in ("cpu", "memory", "io") if Path("/proc/pressure", name).exists()]
    assert absent.isdisjoint({f"{name} pressure" for name in there} | {"load", str(tmp_path)})
    assert "memory" not in absent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"disk": {"/": "0%"}}, "disk /: '0%' is not a percent above 0 and up to 90"),
        ({"disk": {"/": "95%"}}, "disk /: '95%' is not a percent above 0 and up to 90"),
        ({"disk": {"/": "much"}}, "disk /: 'much' is not a size"),
        ({"disk": {"/": 0}}, "disk /: 0 would never be passed"),
        ({"memory": "0"}, "memory: '0' would never be passed"),
        ({"memory": "95%"}, "memory: '95%' is not a percent above 0 and up to 90"),
        ({"load": "inf"}, "load: 'inf' is not a number above 0"),
        ({"load": -1}, "load: -1 is not a number above 0"),
        ({"load": True}, "load: True is not a number above 0"),
        ({"pressure": {"memory": "200%"}}, "pressure memory: '200%' is not a percent above 0"),
        ({"pressure": {"memory": None}}, "pressure memory: None is not a percent"),
        ({"pressure": {"disk": 5}}, "pressure: 'disk' is not measured: use one of cpu, memory, io"),
    ],
)
def test_wrong_values_are_refused_when_it_is_built(told, options, message):
    with pytest.raises(ConfigurationError) as refused:
        HostPressure(told, **options)

    assert str(refused.value).startswith(message)


def test_a_disk_that_is_away_for_a_while_is_looked_at_again(told):
    """A link that a deployment replaces, or a file system that is mounted later."""
    there = {}

    def statvfs(path):
        if path not in there:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return disk_of(there[path])

    thresholds = HostPressure(told, disk={"/srv/current": 10 * GB}, statvfs=statvfs)
    for now in (0, 60, 120):
        thresholds.look(now)
    there["/srv/current"] = 9 * GB
    thresholds.look(180)

    assert told.events == ["threshold-absent", "disk-low"]

"""The size and the growth of a log are watched, and logrotate rotates it; nothing else changes it."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from guardrails.errors import ConfigurationError
from guardrails.watchdog import logrotate
from guardrails.watchdog.log_size import Growth, LogFile
from guardrails.watchdog.logrotate import LONGEST_ROTATION, Logrotate
from support import Told, is_there

pytestmark = pytest.mark.one_python

SECONDS = 60
needs_logrotate = pytest.mark.skipif(
    shutil.which("logrotate", path="/usr/sbin:/usr/bin") is None, reason="logrotate is not installed"
)


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "error.log"
    path.write_text("")
    return path


@pytest.fixture
def public_folder():
    """A folder that another user can reach, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="guardrails-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def configuration(tmp_path, *logs, lines="rotate 5\nnocompress\ncreate\n"):
    path = tmp_path / "site.conf"
    path.write_text(f"{' '.join(map(str, logs))} {{\n{lines}}}\n")
    path.chmod(0o644)
    return path


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a logrotate of the test's own first in the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(script):
        (folder / "logrotate").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "logrotate").chmod(0o755)

    return write


def ended(log_file, told, count=1, now=0.0):
    """Look until so many events were told."""
    deadline = time.monotonic() + SECONDS
    while len(told) < count:
        assert time.monotonic() < deadline, told
        log_file.look(now)
        time.sleep(0.02)


def test_growth_is_that_of_the_last_minute():
    growth = Growth()
    seen = [growth.add(now, 10) for now in range(0, 130, 10)]

    assert seen[:7] == [0, 10, 20, 30, 40, 50, 60]
    assert seen[7:] == [60] * 6


def test_a_log_that_is_too_large_is_told_of_once_an_hour_and_left_as_it_is(log, told):
    log.write_text("x" * 3000)
    log_file = LogFile(log, told, most="2k")
    for now in range(0, 7300, 60):
        log_file.look(now)

    assert told.events == ["log-too-large"] * 3
    assert told[0][1] == (
        f"{log}: it is 3000 bytes, and 2048 bytes is the most: have logrotate rotate it, with "
        "--logrotate and the file of its configuration"
    )
    assert told[0][3] == {"path": str(log), "size": 3000}
    assert log.stat().st_size == 3000


def test_a_log_that_grows_too_fast_is_told_of_also_over_a_rotation_by_another(log, told):
    log_file = LogFile(log, told, growth=2500)
    log_file.look(0)
    log.write_text("x" * 1500)
    log_file.look(1)
    log.rename(f"{log}.1")
    log.write_text("x" * 1400)
    log_file.look(2)

    assert told.events == ["log-explodes"]
    assert told[0][3] == {"path": str(log), "size": 1400, "per_minute": 2900}


def test_a_large_log_that_does_not_grow_does_not_explode(log, told):
    log.write_text("x" * 10_000)
    log_file = LogFile(log, told, growth=2500)
    for now in range(5):
        log_file.look(now)

    assert told == []


def test_a_log_that_is_missing_is_told_of_once(log, told):
    log.unlink()
    log_file = LogFile(log, told)
    log_file.look(0)
    log_file.look(1)

    assert told.events == ["log-missing"]


@needs_logrotate
def test_logrotate_is_run_with_its_configuration(log, told, tmp_path):
    conf = configuration(tmp_path, log)
    log_file = LogFile(log, told, most="2k", logrotate=Logrotate(conf))
    assert log_file.check() == []
    for number, size in enumerate((3000, 4000)):
        log.write_text("x" * size)
        log_file.look(number)
        ended(log_file, told, number + 1, number)

    assert told.events == ["log-rotated"] * 2
    assert told[0][3] == {"path": str(log), "size": 3000}
    assert [(tmp_path / f"error.log.{number}").stat().st_size for number in (1, 2)] == [4000, 3000]
    assert log.stat().st_size == 0


@needs_logrotate
def test_a_configuration_that_does_not_name_the_log_is_told_of(log, told, tmp_path):
    other = tmp_path / "other.log"
    other.write_text("x")
    log.write_text("x" * 3000)
    conf = configuration(tmp_path, other)
    log_file = LogFile(log, told, most="2k", logrotate=Logrotate(conf))
    ended(log_file, told)

    assert told.events == ["log-not-rotated"]
    assert f"logrotate ran; see that {conf} names this log; tried again" in told[0][1]


@needs_logrotate
def test_what_logrotate_says_is_told(log, told, tmp_path):
    log.write_text("x" * 3000)
    conf = configuration(tmp_path, log, lines="postrotate\nexit 7\nendscript\n")
    ended(LogFile(log, told, most="2k", logrotate=Logrotate(conf)), told)

    assert told.events == ["log-not-rotated"]
    assert told[0][3]["error"].startswith("logrotate ended with status 1: error: ")
    assert "postrotate" in told[0][3]["error"]


def test_it_is_tried_again_after_ten_minutes(log, told, tmp_path, program):
    program(f"echo ran >>{tmp_path}/runs; echo no >&2; exit 3")
    log.write_text("x" * 3000)
    log_file = LogFile(log, told, most="2k", logrotate=Logrotate(configuration(tmp_path, log)))
    ended(log_file, told)
    for now in range(0, 600, 60):
        log_file.look(now)
    ended(log_file, told, 2, 600)

    assert told[0][3] == {"path": str(log), "size": 3000, "error": "logrotate ended with status 3: no"}
    assert (tmp_path / "runs").read_text() == "ran\n" * 2


def test_one_run_is_for_all_logs_of_the_configuration(told, tmp_path, program):
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    for log in logs:
        log.write_text("x" * 3000)
    conf = configuration(tmp_path, *logs)
    go = tmp_path / "go"
    script = f'while [ ! -e {go} ]; do sleep 0.05; done; echo "$@" >>{tmp_path}/runs'
    program(script + f"; for log in a b; do mv {tmp_path}/$log.log {tmp_path}/$log.log.1; done")
    runs = Logrotate(conf)
    files = [LogFile(log, told, most="2k", logrotate=runs) for log in logs]
    for log_file in files * 3:
        log_file.look(0)
    go.touch()
    ended(files[0], told)
    files[1].look(0)

    assert told.events == ["log-rotated", "log-missing"]
    (words,) = (tmp_path / "runs").read_text().splitlines()
    assert words.endswith(f"--force {conf}")


def test_one_that_does_not_end_is_killed_with_what_it_has_started(log, told, tmp_path, program):
    program(f"sleep 600 & echo $! >{tmp_path}/child; yes >&2")
    log.write_text("x" * 3000)
    log_file = LogFile(log, told, most="2k", logrotate=Logrotate(configuration(tmp_path, log)))
    log_file.look(0)
    deadline = time.monotonic() + SECONDS
    while not ((tmp_path / "child").exists() and (tmp_path / "child").read_text()):
        assert time.monotonic() < deadline
        log_file.look(1)
        time.sleep(0.02)
    log_file.look(LONGEST_ROTATION)

    assert told.events == ["log-not-rotated"]
    assert "was killed, since it ran for more than 600 s" in told[0][3]["error"]
    child = int((tmp_path / "child").read_text())
    while is_there(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_where_there_is_no_logrotate_that_is_said_at_the_start(log, told, tmp_path, monkeypatch):
    monkeypatch.setattr(logrotate, "_program", lambda: None)
    log_file = LogFile(log, told, logrotate=Logrotate(configuration(tmp_path, log)))
    with pytest.raises(ConfigurationError, match="there is no program logrotate: install it"):
        log_file.check()


@needs_logrotate
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_who_is_not_root_needs_no_state_file(public_folder):
    """Logrotate's usual one belongs to root."""
    folder = public_folder
    conf = configuration(folder, folder / "a.log", lines="rotate 2\nnocompress\n")
    (folder / "a.log").write_text("x" * 3000)
    for path in (folder, folder / "a.log"):
        os.chown(path, 54321, 54321)
    code = (
        "import os, sys, time\n"
        "from guardrails.watchdog.logrotate import Logrotate\n"
        "os.setresgid(54321, 54321, 54321)\n"
        "os.setresuid(54321, 54321, 54321)\n"
        "run = Logrotate(sys.argv[1]).begin(0)\n"
        "while run.error(0) is None: time.sleep(0.02)\n"
        "print(run.error(0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(conf)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert done.stdout == "\n"
    assert (folder / "a.log.1").stat().st_size == 3000

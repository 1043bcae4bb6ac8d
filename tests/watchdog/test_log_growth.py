"""The log file: kept small with every line of it, beside a real process that writes one."""

import fcntl
import gzip
import itertools
import json
import logging
import os
import random
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path

import pytest

from guardrails.errors import ConfigurationError
from guardrails.watchdog import rotated_logs, safe_files
from guardrails.watchdog.log_growth import Growth, LogFile
from guardrails.watchdog.process_signal import ProcessSignal
from guardrails.watchdog.safe_files import rename
from guardrails.watchdog.thresholds import megabytes
from support import Told

pytestmark = pytest.mark.one_python

DEADLINE = 60

SERVER = """
import os, signal, sys

path = sys.argv[1]

def opened():
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

log = opened()

def reopen(*_):
    again = opened()
    os.dup2(again, log)
    os.close(again)

def writes_to_it():
    return os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(log))

signal.signal(signal.SIGUSR1, reopen)
written = 0
print(flush=True)
for line in sys.stdin:
    word, count = line.split()
    if word == "write":
        for _ in range(int(count)):
            os.write(log, b"line %d\\n" % written)
            written += 1
    else:
        how = signal.SIG_BLOCK if word == "deaf" else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, {signal.SIGUSR1})
    print(written, int(writes_to_it()), flush=True)
"""


class Server:
    """A real process that writes numbered lines, and reopens its log at USR1 unless it is deaf."""

    def __init__(self, process, path):
        self.process = process
        self.pid = process.pid
        self.path = path
        self.written = 0
        self.writes_to_the_log = True
        process.stdout.readline()

    def tell(self, word, count=0):
        self.process.stdin.write(f"{word} {count}\n")
        self.process.stdin.flush()
        self.written, self.writes_to_the_log = map(int, self.process.stdout.readline().split())

    def write(self, count):
        self.tell("write", count)

    def has_reopened(self):
        """Wait until the server writes to the log, and has let go of the old one."""

        def writes_to_it():
            self.tell("hear")  # Python sees a signal that came just before a read only after it
            return self.writes_to_the_log

        until(writes_to_it)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "app.log"


@pytest.fixture
def server(path):
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Server(process, path)
        process.kill()


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def leases(tmp_path):
    """Only where the file system tells whether a file is open for writing."""
    file = tmp_path / "lease"
    with file.open("w"):
        reader = os.open(file, os.O_RDONLY)
        try:
            fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            return
        except OSError:
            pass
        finally:
            os.close(reader)
            file.unlink()
    pytest.skip("this file system has no leases")


def until(condition):
    """Wait for another process."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def names(path):
    """What is in the log's folder, hidden files too."""
    return sorted(file.name for file in path.parent.iterdir())


def content(path):
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def lines(path):
    """The numbers of all lines in all files of a log, the oldest file first."""
    files = [name for name in names(path) if name.startswith(path.name)]
    files.sort(key=lambda name: -int((name.removesuffix(".gz") + ".0").split(".")[2]))
    whole = b"".join(content(path.parent / name) for name in files)
    return [int(line.removeprefix(b"line ")) for line in whole.splitlines()]


def looks(log, now, count, step=5):
    """So many looks in a row; gives the time of the next."""
    for _ in range(count):
        log.look(now)
        now += step
    return now


def rotated(log, server, now):
    """Let a too large log be renamed and made again; gives the time of the next look."""
    log.look(now)
    server.has_reopened()
    return now + 1


# Rotation, with a server that reopens its log.


def test_after_many_rotations_every_line_is_found_exactly_once(path, server, told):
    log = LogFile(path, told, most=2000, backups=50, reopen_pid=server.pid, compress_after="10s")
    now = 0
    for _ in range(12):
        server.write(300)
        log.look(now)
        server.write(50)  # before or after it came to the signal
        server.has_reopened()
        now = looks(log, now + 1, 3)

    assert lines(path) == list(range(server.written))
    assert told.events == ["log-rotated"] * 12
    assert "app.log.12.gz" in names(path)


def test_no_line_is_lost_of_a_server_that_writes_as_fast_as_it_can(path, told, leases):
    code = """
    import os, signal, sys, time
    path, again = sys.argv[1], []
    signal.signal(signal.SIGUSR1, lambda *_: again.append(True))
    log, opened, number, most = None, 0, 0, 0
    while opened < 6:
        if again or log is None:
            again.clear()
            if log is not None:
                os.close(log)
            log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            opened += 1
            most = number + 100_000
            print(flush=True)
        if number == most:  # the monitor has not had its turn for long: the disk is not for us alone
            time.sleep(0.001)
            continue
        os.write(log, b"line %d\\n" % number)
        number += 1
    print(number)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        log = LogFile(path, told, most=20_000, backups=1000, reopen_pid=process.pid, compress_after=0)
        while process.poll() is None:
            log.look(time.monotonic())
        written = int(process.stdout.read().split()[-1])
    looks(log, time.monotonic() + 1, 100)

    assert lines(path) == list(range(written))
    assert told.events.count("log-rotated") >= 5
    assert "app.log.2.gz" in names(path)


def test_at_most_so_many_old_logs_are_kept_and_the_oldest_goes(path, server, told):
    log = LogFile(path, told, most=100, backups=3, reopen_pid=server.pid, compress_after=5)
    now = 0
    for _ in range(6):
        server.write(100)
        now = looks(log, rotated(log, server, now), 4)

    assert names(path) == ["app.log", "app.log.1.gz", "app.log.2.gz", "app.log.3.gz"]
    assert lines(path) == list(range(300, 600))


def test_an_old_log_that_somebody_still_writes_to_is_kept_beyond_that(path, server, told, leases):
    """A program that the app started, say, which has the log as its output: its lines are kept too."""
    log = LogFile(path, told, most=100, backups=2, reopen_pid=server.pid, compress_after=5)
    now = 0
    with path.open("a") as theirs:
        for _ in range(4):
            server.write(100)
            now = looks(log, rotated(log, server, now), 4)
        theirs.write("its last words\n")
    assert "its last words" in (path.parent / "app.log.4").read_text()
    for _ in range(2):
        server.write(100)
        now = looks(log, rotated(log, server, now), 4)

    assert names(path) == ["app.log", "app.log.1.gz", "app.log.2.gz"]


def test_fewer_are_kept_when_it_is_told_to_keep_fewer(path, server, told):
    for number in range(1, 9):
        (path.parent / f"app.log.{number}").write_text(str(number))
    server.write(100)

    LogFile(path, told, most=100, backups=2, reopen_pid=server.pid).look(0)
    server.has_reopened()

    assert names(path) == ["app.log", "app.log.1", "app.log.2"]
    assert (path.parent / "app.log.2").read_text() == "1"


def test_a_log_that_is_not_too_large_is_left_alone(path, server, told):
    log = LogFile(path, told, most=790, backups=3, reopen_pid=server.pid)
    server.write(100)
    assert path.stat().st_size == 790
    looks(log, 0, 10)

    assert (names(path), told) == (["app.log"], [])


def test_an_old_log_is_compressed_after_the_grace_and_not_before(path, server, told):
    log = LogFile(path, told, most=100, reopen_pid=server.pid, compress_after="10s")
    server.write(50)
    rotated(log, server, 0)

    for now in (1, 5, 9.9):
        log.look(now)
        assert names(path) == ["app.log", "app.log.1"]
    log.look(11.1)

    assert names(path) == ["app.log", "app.log.1.gz"]


def test_an_old_log_that_still_grows_is_not_compressed(path, server, told):
    log = LogFile(path, told, most=100, reopen_pid=server.pid, compress_after="10s")
    server.write(50)
    now = rotated(log, server, 0)
    for _ in range(10):
        # By one who opens it for each line, so that nobody has it open when it is looked at.
        with (path.parent / "app.log.1").open("a") as late:
            late.write("a late line\n")
        log.look(now)
        now += 9
    assert names(path) == ["app.log", "app.log.1"]

    looks(log, now, 3)

    assert content(path.parent / "app.log.1.gz").count(b"a late line") == 10


def test_an_old_log_that_somebody_has_open_for_writing_is_not_compressed(path, server, told, leases):
    """A worker that was busy when the others reopened, and is silent since."""
    server.write(50)
    log = LogFile(path, told, most=100, reopen_pid=server.pid, compress_after="10s")
    with path.open("a") as worker:
        now = looks(log, rotated(log, server, 0), 50)
        assert names(path) == ["app.log", "app.log.1"]
        worker.write("the last words\n")
    looks(log, now, 5)

    assert names(path) == ["app.log", "app.log.1.gz"]
    assert content(path.parent / "app.log.1.gz").endswith(b"\nthe last words\n")


def test_an_older_log_is_compressed_while_a_newer_one_must_wait(path, server, told, leases):
    log = LogFile(path, told, most=100, reopen_pid=server.pid, compress_after=5)
    server.write(50)
    with path.open("a"):
        now = rotated(log, server, 0)
        server.write(50)
        now = looks(log, rotated(log, server, now), 5)

        assert names(path) == ["app.log", "app.log.1.gz", "app.log.2"]


def test_one_who_begins_to_write_while_it_is_compressed_loses_nothing(
    path, server, told, leases, monkeypatch
):
    monkeypatch.setattr(rotated_logs, "SLICE", 1)
    log = LogFile(path, told, most="1M", reopen_pid=server.pid, compress_after=5)
    server.write(200_000)
    now = looks(log, rotated(log, server, 0), 3)
    assert any(name.endswith("partial") for name in names(path))

    with (path.parent / "app.log.1").open("a") as late:
        now = looks(log, now, 50, step=0.1)
        assert names(path) == ["app.log", "app.log.1"]
        late.write("line 200000\n")
    looks(log, now, 50)

    assert lines(path) == list(range(200_001))
    assert names(path) == ["app.log", "app.log.1.gz"]


def test_a_line_that_comes_at_the_last_moment_is_not_lost(path, server, told, monkeypatch):
    plain = path.parent / "app.log.1"
    late = [b"line 1\n"]

    def fsync(_file):
        if late:
            plain.write_bytes(plain.read_bytes() + late.pop())

    monkeypatch.setattr(os, "fsync", fsync)
    path.touch()
    plain.write_text("line 0\n")
    log = LogFile(path, told, reopen_pid=server.pid, compress_after=5)
    now = looks(log, 0, 2)
    assert names(path) == ["app.log", "app.log.1"]
    looks(log, now, 5)

    assert names(path) == ["app.log", "app.log.1.gz"]
    assert lines(path) == [0, 1]


def test_lines_that_came_while_it_was_compressed_are_not_lost(path, server, told, monkeypatch):
    monkeypatch.setattr(rotated_logs, "SLICE", 1)
    log = LogFile(path, told, most="1M", reopen_pid=server.pid, compress_after=5)
    server.write(200_000)
    now = looks(log, rotated(log, server, 0), 3)
    with (path.parent / "app.log.1").open("a") as late:
        late.write("line 200000\n")
    looks(log, now, 50)

    assert lines(path) == list(range(200_001))
    assert names(path) == ["app.log", "app.log.1.gz"]


def test_a_large_log_is_compressed_bit_by_bit_and_may_be_renamed_meanwhile(
    path, server, told, monkeypatch
):
    monkeypatch.setattr(rotated_logs, "SLICE", 1)
    log = LogFile(path, told, most="1M", reopen_pid=server.pid, compress_after=5)
    server.write(200_000)
    now = looks(log, rotated(log, server, 0), 3)
    (partial,) = (name for name in names(path) if name.endswith("partial"))
    assert (path.parent / partial).stat().st_mode & 0o777 == 0o600

    server.write(100_000)
    looks(log, rotated(log, server, now), 50)

    assert names(path) == ["app.log", "app.log.1.gz", "app.log.2.gz"]
    assert lines(path) == list(range(300_000))


def test_a_log_that_is_removed_while_it_is_compressed_does_not_come_back(
    path, server, told, monkeypatch
):
    monkeypatch.setattr(rotated_logs, "SLICE", 1)
    log = LogFile(path, told, most="1M", reopen_pid=server.pid, compress_after=5)
    server.write(200_000)
    now = looks(log, rotated(log, server, 0), 3)
    (path.parent / "app.log.1").unlink()
    looks(log, now, 50)

    assert names(path) == ["app.log"]


def test_the_compressed_log_has_the_owner_mode_and_time_of_the_log(path, server, told):
    log = LogFile(path, told, most=100, reopen_pid=server.pid, compress_after=5)
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    server.write(50)
    before = path.stat()
    looks(log, rotated(log, server, 0), 5)

    after = (path.parent / "app.log.1.gz").stat()
    for fact in ("st_mode", "st_uid", "st_gid", "st_mtime_ns"):
        assert getattr(after, fact) == getattr(before, fact), fact


def test_the_new_log_is_there_for_whoever_could_write_to_the_old_one(path, server, told):
    """Before the signal: a server may make its log as root, whose workers are somebody else."""
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    server.write(50)
    server.tell("deaf")
    before = path.stat()
    LogFile(path, told, most=100, reopen_pid=server.pid).look(0)

    after = path.stat()
    for fact in ("st_mode", "st_uid", "st_gid", "st_nlink"):
        assert getattr(after, fact) == getattr(before, fact), fact
    assert (after.st_size, names(path)) == (0, ["app.log", "app.log.1"])


def test_a_log_that_the_server_makes_just_then_stays(path, server, told, monkeypatch):
    def renamed(old, new, folder):
        rename(old, new, folder)
        if new == "app.log.1":
            path.write_text("a line of the server's\n")

    monkeypatch.setattr(safe_files, "rename", renamed)
    server.write(50)
    LogFile(path, told, most=100, reopen_pid=server.pid).look(0)

    assert path.read_text() == "a line of the server's\n"
    assert names(path) == ["app.log", "app.log.1"]


def test_where_a_file_cannot_be_given_away_the_server_makes_its_log(path, server, told, monkeypatch):
    def fchown(*_arguments):
        raise PermissionError

    monkeypatch.setattr(os, "fchown", fchown)
    log = LogFile(path, told, most=100, reopen_pid=server.pid)
    server.tell("deaf")
    server.write(50)
    log.look(0)
    assert names(path) == ["app.log.1"]
    server.has_reopened()

    assert names(path) == ["app.log", "app.log.1"]


def test_a_log_without_a_new_one_to_follow_it_keeps_its_name(path, server, told, monkeypatch):
    def broken(old, new, folder):
        if old.endswith("partial"):
            raise OSError(5, "Input/output error")
        rename(old, new, folder)

    monkeypatch.setattr(safe_files, "rename", broken)
    server.write(50)
    LogFile(path, told, most=100, reopen_pid=server.pid).look(0)
    server.write(50)

    assert told.events == ["log-not-rotated"]
    assert names(path) == ["app.log"]
    assert lines(path) == list(range(100))


def test_the_pid_file_is_read_when_the_log_is_renamed(path, server, told, tmp_path):
    file = tmp_path / "server.pid"
    log = LogFile(path, told, most=100, reopen_pid=str(file))
    server.write(50)
    file.write_text(f"{server.pid}\n")

    rotated(log, server, 0)

    assert names(path) == ["app.log", "app.log.1", "server.pid"]


# A server that is not there, or does not do as it is told.


def test_a_log_of_a_server_that_cannot_be_told_is_not_renamed(path, told, tmp_path):
    log = LogFile(path, told, most=100, reopen_pid=tmp_path / "none.pid")
    path.write_text("x" * 200)
    looks(log, 0, 100, step=1)

    assert names(path) == ["app.log"]
    assert told.events == ["log-not-rotated"]
    assert "none.pid: No such file" in told[0][3]["error"]


def test_it_is_tried_again_after_a_minute_when_the_server_is_there(path, server, told, tmp_path):
    file = tmp_path / "server.pid"
    log = LogFile(path, told, most=100, reopen_pid=file)
    server.write(100)
    log.look(0)
    file.write_text(str(server.pid))
    log.look(59)
    assert names(path) == ["app.log", "server.pid"]

    rotated(log, server, 60)

    assert "app.log.1" in names(path)


@pytest.mark.parametrize("leases", [True, False])
def test_that_nobody_reopened_the_log_is_said_once_and_the_old_one_stays(
    path, server, told, monkeypatch, leases
):
    if not leases:
        monkeypatch.delattr(fcntl, "F_SETLEASE", raising=False)
    log = LogFile(path, told, most=100, reopen_pid=server.pid, compress_after=5)
    server.tell("deaf")
    server.write(50)
    log.look(0)
    server.write(50)
    log.look(59)
    assert told.events == ["log-rotated"]

    looks(log, 60, 50)

    assert told.events == ["log-rotated", "log-not-reopened"]
    assert "app.log.1" in told[1][1]
    assert "see that --master is the server's pid or its pid file" in told[1][1]
    assert names(path) == ["app.log", "app.log.1"], "not compressed"
    assert lines(path) == list(range(100))


def test_who_missed_the_signal_is_asked_again_each_ten_minutes(path, server, told, leases, monkeypatch):
    log = LogFile(path, told, most=100, reopen_pid=server.pid, compress_after=5)
    server.write(50)
    with monkeypatch.context() as lost:
        lost.setattr(ProcessSignal, "_send", lambda _self, _send, number: number)
        now = looks(log, 0, 20)
    assert told.events == ["log-rotated", "log-not-reopened"]
    server.tell("hear")
    assert not server.writes_to_the_log
    log.look(now + 600)

    server.has_reopened()
    assert told.events == ["log-rotated", "log-not-reopened"]


def test_a_server_that_has_nothing_to_write_has_reopened_its_log_all_the_same(
    path, server, told, leases
):
    log = LogFile(path, told, most=100, reopen_pid=server.pid, compress_after=5)
    server.write(50)
    looks(log, rotated(log, server, 0), 50)

    assert told.events == ["log-rotated"]
    assert names(path) == ["app.log", "app.log.1.gz"]


def test_where_writers_cannot_be_seen_a_line_in_the_log_shows_that_it_was_reopened(
    path, server, told, monkeypatch
):
    monkeypatch.delattr(fcntl, "F_SETLEASE", raising=False)
    log = LogFile(path, told, most=100, reopen_pid=server.pid, compress_after=5)
    server.write(50)
    now = looks(log, rotated(log, server, 0), 5)
    assert names(path) == ["app.log", "app.log.1"]
    server.write(1)
    looks(log, now, 50)

    assert told.events == ["log-rotated"]
    assert names(path) == ["app.log", "app.log.1.gz"]


def test_a_server_that_comes_to_it_late_loses_nothing(path, server, told):
    log = LogFile(path, told, most=100, reopen_pid=server.pid, compress_after=5)
    server.tell("deaf")
    server.write(50)
    now = looks(log, 0, 50)
    server.write(50)
    server.tell("hear")
    server.has_reopened()
    server.write(5)
    looks(log, now, 5)

    assert lines(path) == list(range(105))
    assert names(path) == ["app.log", "app.log.1.gz"]


@pytest.mark.parametrize("made", [True, False])
def test_a_log_that_was_renamed_by_one_who_was_killed_before_the_signal(
    path, server, told, leases, made
):
    server.write(50)
    path.rename(path.parent / "app.log.1")
    if made:
        path.touch()

    log = LogFile(path, told, most=100, reopen_pid=server.pid, compress_after=5)
    log.look(0)
    server.has_reopened()
    looks(log, 1, 5)

    assert names(path) == ["app.log", "app.log.1.gz"]
    assert told == []


def test_without_a_server_to_tell_nothing_is_renamed_and_the_remedy_is_told_each_hour(path, told):
    log = LogFile(path, told, most="1k")
    path.write_text("x" * 5000)
    (path.parent / "app.log.1").write_text("somebody else's")
    looks(log, 0, 7200, step=1)

    assert told.events == ["log-too-large"] * 2
    assert "give --master, the server's pid or its pid file" in told[0][1]
    assert told[0][3] == {"path": str(path), "size": 5000}
    assert path.stat().st_size == 5000
    assert names(path) == ["app.log", "app.log.1"]


def test_a_log_that_is_missing_is_said_once_and_is_no_trouble(path, told):
    log = LogFile(path, told, most=100)
    now = looks(log, 0, 5)
    path.write_text("here")
    now = looks(log, now, 5)
    path.unlink()
    looks(log, now + 600, 5)

    assert [(event, level) for event, _, level, _ in told] == [("log-missing", logging.INFO)] * 2


def test_a_log_that_comes_and_goes_is_not_told_of_each_time(path, told):
    log = LogFile(path, told)
    for now in range(100):
        log.look(now)
        path.touch()
        log.look(now + 0.5)
        path.unlink()

    assert told.events == ["log-missing"]


def test_a_folder_that_is_missing_is_no_trouble_either(tmp_path, told):
    looks(LogFile(tmp_path / "none" / "app.log", told), 0, 5)

    assert told.events == ["log-missing"]


def test_a_log_that_somebody_else_replaces_is_no_trouble(path, server, told):
    log = LogFile(path, told, most="1M", growth=1000, reopen_pid=server.pid)
    for now in range(10):
        (path.parent / "new").write_bytes(bytes(5000 + now))
        (path.parent / "new").rename(path)
        log.look(now)

    assert told == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another")
def test_a_log_of_a_server_that_may_not_be_signalled_is_not_renamed(server):
    code = """
    import os, sys, tempfile
    from pathlib import Path
    from guardrails.watchdog.log_growth import LogFile
    os.setuid(54321)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "app.log")
        path.write_text("x" * 200)
        LogFile(path, lambda event, message, *_, **__: print(event, message), most=100,
            reopen_pid=int(sys.argv[1])).look(0)
        print(os.listdir(folder))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(server.pid)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.startswith("log-not-rotated ")
    assert "cannot be signalled" in done.stdout
    assert done.stdout.endswith("['app.log']\n")


# A crash half-way.


def killed_after(steps, code, path, server):
    """Kill a process that waits at each of its steps; whether it has come to its end before."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path), str(server.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        for _ in range(steps):
            process.stdout.readline()
            process.stdin.write(b"\n")
            process.stdin.flush()
        ended = process.stdout.readline() != b"\n"
        process.kill()
    return ended


@pytest.mark.thorough
def test_who_is_killed_while_it_compresses_leaves_the_plain_log_or_the_whole_gz(path, server, told):
    """Killed at each of its steps, one after the other, until it comes to its end."""
    code = """
    import os, sys
    from guardrails.watchdog import safe_files, log_growth
    for name in ("open", "write", "fsync", "unlink", "rename"):
        def step(*arguments, real=getattr(os, name), **options):
            print(flush=True)
            sys.stdin.readline()
            return real(*arguments, **options)
        setattr(os, name, step)
    safe_files.rename = lambda *arguments, real=safe_files.rename: (
        print(flush=True), sys.stdin.readline(), real(*arguments))
    log = log_growth.LogFile(sys.argv[1], print, reopen_pid=int(sys.argv[2]), compress_after=0)
    log.look(0)
    """
    text = b"".join(b"line %d\n" % number for number in range(50_000))
    seen = set()
    for steps in itertools.count():
        path.write_bytes(b"")
        (path.parent / "app.log.1").write_bytes(text)
        ended = killed_after(steps, code, path, server)
        found = [name for name in names(path) if name.startswith("app.log.1")]
        seen.update(found)
        for name in found:
            assert content(path.parent / name) == text
        looks(LogFile(path, told, reopen_pid=server.pid, compress_after=5), 0, 5)
        assert names(path) == ["app.log", "app.log.1.gz"]
        assert lines(path) == list(range(50_000))
        (path.parent / "app.log.1.gz").unlink()
        if ended:
            break

    assert steps > 8
    assert seen == {"app.log.1", "app.log.1.gz"}
    assert told == []


@pytest.mark.thorough
def test_who_is_killed_while_it_renames_leaves_a_log_that_is_rotated_by_the_next(
    path, server, told, leases
):
    """Killed at each of its steps, one after the other, until it comes to its end."""
    code = """
    import os, sys
    from guardrails.watchdog import pidfd, safe_files, log_growth
    def stop_at(module, name):
        def step(*arguments, real=getattr(module, name), **options):
            print(flush=True)
            sys.stdin.readline()
            return real(*arguments, **options)
        setattr(module, name, step)
    for name in ("open", "fchown", "fchmod", "unlink"):
        stop_at(os, name)
    stop_at(safe_files, "rename")
    stop_at(pidfd, "_send")
    pid = int(sys.argv[2])
    log = log_growth.LogFile(sys.argv[1], lambda *_, **__: None, most=100, backups=100, reopen_pid=pid)
    log.look(0)
    """
    seen = set()
    for steps in itertools.count():
        before = server.written
        server.write(50)
        ended = killed_after(steps, code, path, server)
        seen.add(tuple(name for name in names(path) if name in ("app.log", "app.log.1")))
        server.write(10)
        log = LogFile(path, told, most=100, backups=100, reopen_pid=server.pid, compress_after=5)
        log.look(0)
        server.has_reopened()
        looks(log, 1, 5)
        assert names(path) in (["app.log", "app.log.1.gz"], ["app.log", "app.log.1.gz", "app.log.2.gz"])
        assert lines(path) == list(range(before, server.written))
        for old in path.parent.glob("*.gz"):
            old.unlink()
        os.truncate(path, 0)
        if ended:
            break

    assert steps > 8
    assert seen == {("app.log",), ("app.log.1",), ("app.log", "app.log.1")}
    assert set(told.events) == {"log-rotated"}


def test_a_log_that_was_compressed_but_not_yet_removed_is_removed(path, server, told):
    plain, packed = path.parent / "app.log.1", path.parent / "app.log.1.gz"
    path.touch()
    plain.write_text("line 0\nline 1\n")
    time_of_it = plain.stat().st_mtime_ns
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    os.utime(packed, ns=(time_of_it, time_of_it))

    looks(LogFile(path, told, reopen_pid=server.pid, compress_after=5), 0, 5)

    assert names(path) == ["app.log", "app.log.1.gz"]
    assert lines(path) == [0, 1]


@pytest.mark.parametrize("other", ["line 0\nline 1\n", "something else"])
def test_a_gz_of_another_log_is_never_overwritten(path, server, told, other):
    plain, packed = path.parent / "app.log.1", path.parent / "app.log.1.gz"
    path.touch()
    packed.write_bytes(gzip.compress(other.encode()))
    os.utime(packed, (1, 1))
    plain.write_text("line 0\nline 1\n")
    before = packed.read_bytes()

    looks(LogFile(path, told, reopen_pid=server.pid, compress_after=5), 0, 100)

    assert (plain.read_text(), packed.read_bytes()) == ("line 0\nline 1\n", before)
    assert told.events == ["log-not-compressed"]
    assert "app.log.1.gz exists already" in told[0][1]


def test_a_gap_in_the_numbers_is_closed_and_nothing_behind_it_moved(path, server, told):
    for number in (1, 2, 4):
        (path.parent / f"app.log.{number}").write_text(str(number))
    server.write(50)
    rotated(LogFile(path, told, most=100, reopen_pid=server.pid), server, 0)

    assert [(path.parent / f"app.log.{number}").read_text() for number in (2, 3, 4)] == ["1", "2", "4"]


def test_what_killed_monitors_left_is_removed(path, server, told):
    (path.parent / ".app.log.0123abcd.guardrails-partial").write_text("half")
    (path.parent / ".other.log.0123abcd.guardrails-partial").write_text("of another log")
    (path.parent / ".app.log.old.0123abcd.guardrails-partial").write_text("of another log")
    path.touch()
    (path.parent / "app.log.1").write_text("line 0\n")

    looks(LogFile(path, told, reopen_pid=server.pid, compress_after=5), 0, 5)

    others = [".app.log.old.0123abcd.guardrails-partial", ".other.log.0123abcd.guardrails-partial"]
    assert names(path) == [*others, "app.log", "app.log.1.gz"]


@pytest.mark.parametrize("by_kernel", [True, False])
def test_nothing_is_renamed_over_anything(tmp_path, monkeypatch, by_kernel):
    if not by_kernel:
        monkeypatch.setattr(safe_files, "_renameat2", None)
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(FileExistsError):
            rename("a", "b", folder)
        rename("a", "c", folder)
        with pytest.raises(FileNotFoundError):
            rename("a", "d", folder)
    finally:
        os.close(folder)

    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"b": "b", "c": "a"}


def test_two_monitors_of_one_log_lose_nothing(path, server, told):
    both = [
        LogFile(path, told, most=1000, backups=500, reopen_pid=server.pid, compress_after=0)
        for _ in range(2)
    ]
    chance = random.Random(5)
    for turn in range(40):
        server.write(100)
        for log in chance.sample(both, 2):
            log.look(turn)
        server.has_reopened()
    looks(both[0], 100, 100)

    assert sorted(lines(path)) == list(range(4000))


# A full disk.


def test_on_a_full_disk_the_plain_log_stays_and_it_is_tried_again_each_minute(path, server, told):
    """A limit of a process's own on the size of files fails as a full disk does, in the same place."""
    code = """
    import json, resource, sys
    from guardrails.watchdog import log_growth, rotated_logs
    told, tries = [], []
    def tell(event, message, level=0, **facts):
        told.append([event, facts])
    log = log_growth.LogFile(sys.argv[1], tell, reopen_pid=int(sys.argv[2]), compress_after=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    real = rotated_logs.zlib.compressobj
    def counted(*arguments, **options):
        tries.append(now)
        return real(*arguments, **options)
    rotated_logs.zlib.compressobj = counted
    for now in range(150):
        log.look(now)
    print(json.dumps([told, tries]))
    """
    noise = random.Random(7).randbytes(400_000)
    path.touch()
    (path.parent / "app.log.1").write_bytes(noise)

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path), str(server.pid)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    facts = {"path": str(path), "error": "[Errno 27] File too large"}
    assert json.loads(done.stdout) == [[["log-not-compressed", facts]], [0, 60, 120]]
    assert names(path) == ["app.log", "app.log.1"]
    assert (path.parent / "app.log.1").read_bytes() == noise

    looks(LogFile(path, told, reopen_pid=server.pid, compress_after=5), 0, 5)
    assert content(path.parent / "app.log.1.gz") == noise


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
def test_on_a_disk_that_is_really_full(tmp_path, told):
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=False, capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        path = folder / "app.log"
        path.touch()
        noise = random.Random(7).randbytes(150_000)
        (folder / "app.log.1").write_bytes(noise)
        with subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL) as process:
            log = LogFile(path, told, reopen_pid=process.pid, compress_after=5)
            looks(log, 0, 10)
            process.kill()

        assert told.events == ["log-not-compressed"]
        assert "No space left on device" in told[0][1]
        assert (folder / "app.log.1").read_bytes() == noise
        assert names(path) == ["app.log", "app.log.1"]
    finally:
        subprocess.run(["umount", folder], check=True)


# Hostile folders.


def test_a_link_instead_of_a_log_is_refused_once(path, server, told):
    secret = path.parent / "secret"
    secret.write_text("x" * 5000)
    path.unlink()
    path.symlink_to(secret)

    looks(LogFile(path, told, most=100, reopen_pid=server.pid), 0, 500)

    assert told.events == ["log-refused"]
    assert "a symbolic link" in told[0][1]
    assert names(path) == ["app.log", "secret"]
    assert path.is_symlink()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_once(tmp_path, told, make):
    make(tmp_path / "app.log")

    looks(LogFile(tmp_path / "app.log", told), 0, 50)

    assert told.events == ["log-refused"]
    assert "not a regular file" in told[0][1]


def test_one_who_puts_a_link_there_again_and_again_is_not_listened_to(path, told):
    log = LogFile(path, told)
    for now in range(100):
        path.symlink_to("x")
        log.look(now)
        path.unlink()
        log.look(now + 0.5)

    assert sorted(told.events) == ["log-missing", "log-refused"]


def test_an_old_log_that_is_a_link_is_never_read(path, server, told):
    secret = path.parent / "secret"
    secret.write_text("the secret")
    (path.parent / "app.log.1").symlink_to(secret)
    log = LogFile(path, told, most=100, reopen_pid=server.pid, compress_after=5)
    server.write(50)
    looks(log, rotated(log, server, 0), 5)

    assert names(path) == ["app.log", "app.log.1.gz", "app.log.2", "secret"]
    assert (path.parent / "app.log.2").is_symlink()
    assert secret.read_text() == "the secret"


def test_an_old_log_that_is_a_folder_is_told_of(path, server, told):
    (path.parent / "app.log.1").mkdir()
    server.write(50)
    looks(LogFile(path, told, most=100, backups=1, reopen_pid=server.pid), 0, 20)

    assert told.events == ["log-not-rotated"]
    assert lines_of_one(path) == list(range(50))


def lines_of_one(path):
    return [int(line.removeprefix("line ")) for line in path.read_text().splitlines()]


def test_the_name_of_a_log_can_forge_no_line(tmp_path, told):
    path = tmp_path / "app\nguardrails: all is well.log"
    LogFile(path, told).look(0)

    assert told[0][1].isprintable()


def test_a_name_that_is_not_text_is_as_good_as_any(tmp_path, server, told):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/app\xff.log"))
    path.touch()
    (tmp_path / os.fsdecode(b"app\xff.log.1")).write_text("line 0\n")
    looks(LogFile(path, told, reopen_pid=server.pid, compress_after=5), 0, 5)

    assert os.fsdecode(b"app\xff.log.1.gz") in names(path)


# Growth.


def test_a_log_that_explodes_is_told_of_at_most_once_in_ten_minutes(path, told):
    log = LogFile(path, told, most="1G", growth="1M")
    happened = []
    with path.open("wb") as file:
        for now in range(1300):
            file.truncate(now * 50_000)
            before = len(told)
            log.look(now)
            if len(told) > before:
                happened.append(now)

    assert told.events == ["log-explodes"] * len(happened)
    assert happened == [21, 621, 1221]
    assert told[1][3] == {"path": str(path), "size": 621 * 50_000, "per_minute": 3_000_000}
    assert "3.0 MB were written within a minute, and it is 31.1 MB" in told[1][1]


def test_a_log_that_grows_slowly_is_not_told_of(path, told):
    log = LogFile(path, told, most="1G", growth=3_000_000)
    with path.open("wb") as file:
        for now in range(1300):
            file.truncate(now * 50_000)
            log.look(now)

    assert told == []


def test_a_log_that_is_large_when_it_is_first_seen_does_not_explode(path, told):
    path.write_bytes(bytes(100_000))

    looks(LogFile(path, told, growth=1000), 0, 100)

    assert told == []


def test_a_log_that_is_rotated_again_and_again_explodes_nevertheless(path, server, told):
    log = LogFile(path, told, most=1000, growth=5000, reopen_pid=server.pid)
    now = 0
    log.look(now)
    for _ in range(10):
        server.write(200)
        log.look(now := now + 1)
        server.has_reopened()

    assert told.events.count("log-explodes") == 1


def test_a_renamed_log_that_the_server_still_writes_to_explodes_too(path, server, told):
    log = LogFile(path, told, most=1000, growth=5000, reopen_pid=server.pid)
    server.tell("deaf")
    server.write(200)
    log.look(0)
    server.write(2000)
    log.look(1)

    assert told.events == ["log-rotated", "log-explodes"]


def test_a_log_that_is_cut_by_somebody_else_counts_from_its_new_beginning(path, told):
    log = LogFile(path, told, growth=10_000)
    path.write_bytes(bytes(8000))
    log.look(0)
    path.write_bytes(bytes(7000))
    log.look(1)
    assert told == []
    path.write_bytes(bytes(4000))
    log.look(2)

    assert told[0][3]["per_minute"] == 11_000


@pytest.mark.parametrize(
    ("writes", "per_minute"),
    [
        ([(0, 0), (1, 100)], 100),
        ([(0, 0), (30, 100), (59, 100)], 200),
        ([(0, 0), (30, 100), (89, 100)], 200 * 60 / 89),  # nobody looked in between
        ([(0, 0), (30, 100), (90, 100), (91, 0)], 100 * 60 / 61),
        ([(0, 0), (600, 1000)], 100),
        ([(0, 0), *((now, 10) for now in range(1, 500))], 600),
    ],
)
def test_growth_is_that_of_the_last_minute(writes, per_minute):
    growth = Growth()
    for now, written in writes:
        found = growth.add(now, written)

    assert found == round(per_minute)


def test_growth_is_remembered_in_little_space():
    growth = Growth()
    for number in range(100_000):
        growth.add(number / 1000, 1)

    assert len(growth._looks) < 200


@pytest.mark.parametrize(
    ("size", "said"),
    [(99, "99 bytes"), (100_000, "0.1 MB"), (104_857_600, "104.9 MB"), (2_500_000_000, "2.5 GB")],
)
def test_bytes_are_said_as_bytes(size, said):
    assert megabytes(size) == said


# Building.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "log: '' is not the path of a file: write one, such as /var/log/app/error.log"),
        ({"path": "a\0b"}, "log: 'a\\x00b' is not the path of a file"),
        ({"path": None}, "log: None is not the path of a file"),
        ({"path": b"x"}, "log: b'x' is not the path of a file"),
        ({"path": "/"}, "log: '/' is not the path of a file"),
        ({"most": 0}, "most: 0 is always exceeded"),
        ({"most": "much"}, "most: 'much' is not a size"),
        ({"backups": 0}, "backups: 0 is not a whole number from 1 to 1000"),
        ({"backups": 1001}, "backups: 1001 is not a whole number from 1 to 1000"),
        ({"growth": "0M"}, "growth: '0M' is always exceeded"),
        ({"compress_after": "later"}, "compress_after: 'later' is not a duration"),
        ({"reopen_pid": 1}, "master: 1 is not the pid of a server"),
        ({"reopen_pid": 5.0}, "master: 5.0 is not the path of a file"),
    ],
)
def test_wrong_values_are_refused_when_it_is_built(told, options, message):
    with pytest.raises(ConfigurationError) as refused:
        LogFile(options.pop("path", "/var/log/app.log"), told, **options)

    assert str(refused.value).startswith(message)


def test_a_relative_path_means_the_same_file_wherever_the_process_goes(tmp_path, told, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.log").write_text("x" * 200)
    log = LogFile("app.log", told, most=100)
    monkeypatch.chdir("/")
    log.look(0)

    assert told.events == ["log-too-large"]


def test_the_compressed_log_is_what_zcat_reads(path, server, told):
    path.touch()
    (path.parent / "app.log.1").write_text("line 0\n" * 1000)
    looks(LogFile(path, told, reopen_pid=server.pid, compress_after=5), 0, 5)

    packed = (path.parent / "app.log.1.gz").read_bytes()
    assert zlib.decompress(packed, wbits=31) == b"line 0\n" * 1000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could be led to what it alone may write")
def test_root_follows_no_link_of_another_users_to_a_log(tmp_path, server, told):
    """Who owns the folder on the way would choose whose logs are renamed and removed."""
    tmp_path.chmod(0o755)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    ours.mkdir()
    (ours / "app.log").write_text("x" * 1000)
    theirs.symlink_to(ours)
    os.close(safe_files.open_folder(theirs))  # a link of root's own leads there
    os.chown(theirs, 65534, 65534, follow_symlinks=False)
    log = LogFile(theirs / "app.log", told, most=100, reopen_pid=server.pid)

    with pytest.raises(OSError, match="theirs in it is a symbolic link of another user"):
        log.look(0)

    assert [file.name for file in ours.iterdir()] == ["app.log"]


def test_an_old_log_that_cannot_be_compressed_holds_up_no_other(path, server, told):
    path.touch()
    for number in (1, 2, 3):
        (path.parent / f"app.log.{number}").write_text(f"line {number}\n")
    (path.parent / "app.log.3.gz").write_bytes(gzip.compress(b"of another log"))

    looks(LogFile(path, told, reopen_pid=server.pid, compress_after=5), 0, 40)

    assert {"app.log.1.gz", "app.log.2.gz", "app.log.3"} <= set(names(path))
    assert told.events == ["log-not-compressed"]

"""The lock of a watchdog: who has it is said, and nobody else."""

import fcntl
import json
import os
import secrets
import subprocess
import sys
import threading

import pytest

from guardrails.store.processes import this_process
from guardrails.watchdog import lock as lock_module
from guardrails.watchdog.lock import Lock

pytestmark = pytest.mark.one_python


@pytest.fixture
def lock():
    lock = Lock(f"test-{secrets.token_hex(6)}")
    yield lock
    lock.release()
    lock.path.unlink(missing_ok=True)


TAKING = """
import os, sys
from guardrails.watchdog.lock import Lock, remove_abandoned

name, inside, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
taken = 0
while taken < times:
    lock = Lock(name)
    lock.owner()
    remove_abandoned(0)
    if lock.take():
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails where another process is inside
        taken += 1
        os.unlink(inside)
        lock.release()
"""


def test_who_has_taken_it_is_its_owner(lock):
    assert lock.owner() is None
    assert lock.take()
    assert Lock(lock.name).owner() == this_process()
    assert not Lock(lock.name).take()
    lock.release()
    assert lock.owner() is None


def test_the_note_of_a_killed_one_is_not_taken_for_the_next_ones(lock, monkeypatch):
    """Between taking the lock and saying who it is lies an instant, in which the old note stands."""
    monkeypatch.setattr(lock_module, "_NOTE_SECONDS", 60)
    dead = subprocess.Popen(["true"])
    dead.wait()
    new = lock.path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(json.dumps(this_process()._replace(pid=dead.pid, start=1)))
    taken = os.open(new, os.O_RDWR)
    fcntl.flock(taken, fcntl.LOCK_EX)
    new.rename(lock.path)
    found = []
    looking = threading.Thread(target=lambda: found.append(lock.owner()))
    looking.start()
    os.pwrite(taken, json.dumps(this_process()).encode().ljust(100), 0)
    looking.join(60)
    os.close(taken)

    assert found == [this_process()]


def test_the_file_goes_when_the_lock_is_released(lock):
    lock.take()
    assert lock.path.exists()
    lock.release()
    assert not lock.path.exists()
    lock.release()
    assert lock.take()


def test_a_file_that_another_process_removed_and_made_again_is_that_processs_own(lock):
    lock.take()
    lock.path.unlink()
    other = Lock(lock.name)
    assert other.take()
    lock.release()
    assert other.path.exists()
    assert Lock(lock.name).owner() == this_process()
    other.release()


def test_who_locked_a_file_that_its_owner_has_just_removed_takes_the_next_one(lock, monkeypatch):
    """The owner ends between the opening and the locking, and a third process is faster."""
    third = Lock(lock.name)
    flock = lock_module._flock

    def owner_ends_first(descriptor, kind):
        monkeypatch.setattr(lock_module, "_flock", flock)
        lock.release()
        assert third.take()
        return flock(descriptor, kind)

    lock.take()
    monkeypatch.setattr(lock_module, "_flock", owner_ends_first)
    assert not Lock(lock.name).take()
    third.release()


def test_processes_that_come_and_go_never_have_it_at_once_and_leave_nothing(lock, tmp_path):
    taking = [sys.executable, "-c", TAKING, lock.name, str(tmp_path / "inside"), "100"]
    processes = [subprocess.Popen(taking, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert not lock.path.exists()


def test_a_file_that_is_never_the_one_of_its_name_is_not_tried_for_ever(lock, monkeypatch):
    """So it looks where other processes make and remove the file all the time."""
    monkeypatch.setattr(lock_module, "_NOTE_SECONDS", 0)
    monkeypatch.setattr(lock_module, "_TAKE_SECONDS", 0)
    monkeypatch.setattr(lock_module, "_is_at", lambda _path, _descriptor: False)
    lock.path.touch(mode=0o600)

    assert not lock.take()
    assert lock.owner() == lock_module.UNKNOWN

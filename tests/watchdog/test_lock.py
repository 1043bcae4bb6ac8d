"""The lock of a watchdog: who has it is said, and nobody else."""

import fcntl
import json
import os
import secrets
import subprocess
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
    lock.path.write_text(json.dumps(this_process()._replace(pid=dead.pid, start=1)))
    lock.path.chmod(0o600)
    taken = os.open(lock.path, os.O_RDWR)
    fcntl.flock(taken, fcntl.LOCK_EX)
    found = []
    looking = threading.Thread(target=lambda: found.append(lock.owner()))
    looking.start()
    os.pwrite(taken, json.dumps(this_process()).encode().ljust(100), 0)
    looking.join(60)
    os.close(taken)

    assert found == [this_process()]

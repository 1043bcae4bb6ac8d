"""What a watchdog does to real processes: never to another than the one that was meant."""

import os
import signal
import subprocess
import sys

import pytest

from guardrails.store import directory
from guardrails.store.process_files import STACKS, file_name
from guardrails.store.processes import Owner, process_facts, this_process
from guardrails.watchdog import stack_dump
from guardrails.watchdog.actions import Processes

pytestmark = pytest.mark.one_python

SECONDS = 60


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def owner_of(process):
    return Owner(process.pid, process_facts(process.pid).start, this_process().namespace)


def test_a_signal_is_for_that_very_process_and_for_no_other_of_its_number(process):
    owner = owner_of(process)
    another = owner._replace(start=owner.start - 1)

    assert not Processes().is_there(another)
    assert not Processes().send(another, signal.SIGKILL)
    assert Processes().is_there(owner)
    assert Processes().send(owner, signal.SIGTERM)

    assert process.wait(SECONDS) == -signal.SIGTERM, (
        "by the second signal, since the first was not sent"
    )
    assert not Processes().is_there(owner)
    assert not Processes().send(owner, signal.SIGKILL)


def test_its_parent_is_known_while_it_lives(process):
    assert Processes().parent(process.pid) == os.getpid()
    process.kill()
    process.wait(SECONDS)
    assert Processes().parent(process.pid) == 0


@pytest.mark.parametrize(("mode", "is_believed"), [(0o600, True), (0o644, False), (0o660, False)])
def test_a_file_of_stacks_that_others_may_open_is_not_used(mode, is_believed, tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "PREFERRED", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    file = directory.own_folder() / file_name(STACKS, this_process())
    file.touch()
    file.chmod(mode)

    descriptor = stack_dump.open_stack_file(this_process())

    assert (descriptor is not None) == is_believed
    if descriptor is not None:
        os.close(descriptor)

"""How a worker writes its stacks."""

import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

from guardrails.watchdog import stack_dump
from guardrails.worker import control_pipe, stacks


class Lazy:
    """A lazy object, as a framework has for its user: reading its class evaluates it."""

    evaluated = 0

    @property
    def __class__(self):
        Lazy.evaluated += 1
        raise ReferenceError("what it stood for is gone")


def test_lazy_objects_are_not_evaluated_for_a_dump(monkeypatch):
    lazy = Lazy()
    file = io.BytesIO()
    monkeypatch.setitem(sys.modules, "greenlet", SimpleNamespace(greenlet=type("greenlet", (), {})))
    writer = stacks.StackFile(control_pipe.ControlPipe())
    writer._shows_greenlets, writer._file = True, file
    Lazy.evaluated = 0
    writer.write(None)
    assert stack_dump.parse(file.getvalue().decode()).complete
    assert Lazy.evaluated == 0
    assert lazy is not None


def test_what_is_raised_while_stacks_are_written_reaches_the_app(monkeypatch):
    """The exception is a deadline of the app, or its shutdown: the writing has not failed."""

    class DeadlineError(Exception):
        pass

    def late(*_arguments):
        raise DeadlineError

    monkeypatch.setattr(stacks, "_block", late)
    writer = stacks.StackFile(control_pipe.ControlPipe())
    writer._file = io.BytesIO()
    with pytest.raises(DeadlineError):
        writer._write_at_a_signal(0, sys._getframe())


LISTENING = """
import os, signal, sys
from guardrails.worker import stacks
from guardrails.worker.process import current_process
from guardrails.worker.server import Server
{before}
print(current_process().stacks.install(Server("plain", threads=1)))
"""


@pytest.mark.parametrize(
    ("before", "listens"),
    [
        ("", True),
        ("signal.signal(stacks.DUMP_SIGNAL, lambda *_: None)", False),
        ("import faulthandler; faulthandler.register(stacks.DUMP_SIGNAL)", False),
    ],
)
def test_a_signal_that_somebody_else_uses_is_left_to_them(before, listens):
    ran = subprocess.run(
        [sys.executable, "-c", LISTENING.format(before=before)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (int(ran.stdout) != 0) == listens


def test_a_process_that_has_become_another_program_is_not_signalled():
    """It has the same pid and start, but no handler: the signal would end it."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        for number in (stacks.ASK_SIGNAL, stacks.DUMP_SIGNAL):
            assert not stacks.catches(process.pid, number)
    finally:
        process.kill()
        process.wait()

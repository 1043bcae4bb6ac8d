"""What is told of an event: a line of a log, and a command, of which nothing must hold anybody up.

Real programs are run, on a clock by hand.
"""

import os
import signal
import sys
import time
from contextlib import suppress

import pytest

from guardrails.watchdog import events
from guardrails.watchdog.events import Commands, Notifier
from support import is_there

pytestmark = pytest.mark.one_python

SECONDS = 60
SLEEPING = ("sleep", "600")


def until(condition, what):
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)
    return found


class ByHand(Commands):
    """Commands at a time that a test tells, all of which it can end."""

    def __init__(self):
        self.now = 1000.0
        super().__init__(lambda: self.now)

    def running(self):
        return [process for process, _deadline in self._running]

    def end_all(self):
        for process in self.running():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait(SECONDS)

    def have_ended(self):
        """Tidy up until none runs any more, and none waits."""
        for process in self.running():
            process.wait(SECONDS)
        self.tidy()
        return not self.running() and not self._waiting


@pytest.fixture
def commands():
    commands = ByHand()
    yield commands
    commands._waiting.clear()
    commands.end_all()


def test_a_path_with_a_newline_forges_no_line_of_the_log(caplog):
    Notifier()("overdue", "GET /a\n2026-01-01 ERROR \x1b[31mforged")
    assert caplog.messages == ["overdue: GET /a\\n2026-01-01 ERROR \\x1b[31mforged"]


def test_so_many_run_at_once_and_the_others_in_their_turn(commands, tmp_path):
    told = ("sh", "-c", f"touch {tmp_path}/$GUARDRAILS_NUMBER; exec sleep 600")
    for number in range(events.MOST_COMMANDS + 2):
        commands.run(told, {"number": str(number)})
    assert len(commands.running()) == events.MOST_COMMANDS
    first = {str(number) for number in range(events.MOST_COMMANDS)}
    until(lambda: {file.name for file in tmp_path.iterdir()} == first, "all that may run do")

    commands.end_all()
    commands.tidy()

    assert len(commands.running()) == 2
    until(lambda: len([*tmp_path.iterdir()]) == events.MOST_COMMANDS + 2, "the others run too")


def test_what_finds_no_room_to_wait_is_counted_and_told_of_once(commands, caplog, monkeypatch):
    monkeypatch.setattr(events, "MOST_WAITING", 2)
    for _ in range(events.MOST_COMMANDS):
        commands.run(SLEEPING, {})
    for _ in range(2 + 3):
        commands.run(("true",), {})
    assert caplog.messages == []

    commands.end_all()
    until(commands.have_ended, "those that waited have run")
    commands.tidy()

    told = [message for message in caplog.messages if "no command was run" in message]
    assert told == ["no command was run for 3 events, since too many were waiting"]


def test_one_that_runs_for_a_minute_is_ended_with_all_that_it_has_started(commands, caplog, tmp_path):
    child = tmp_path / "child"
    commands.run(("sh", "-c", f"sleep 600 & echo $! >{child}.new; mv {child}.new {child}; wait"), {})
    (process,) = commands.running()
    pid = int(until(lambda: child.exists() and child.read_text(), "it has a child"))

    try:
        commands.now += 59.9
        commands.tidy()
        assert (process.poll(), is_there(pid)) == (None, True)
        commands.now += 0.1
        commands.tidy()

        assert process.wait(SECONDS) == -signal.SIGKILL
        until(lambda: not is_there(pid), "its child has ended as well")
    finally:
        if is_there(pid):
            os.kill(pid, signal.SIGKILL)
    commands.now += 60
    until(commands.have_ended, "it is forgotten")
    (told,) = caplog.messages
    assert told.endswith("killed, since it ran for more than 60 s")


def test_a_program_that_is_absent_is_said_once_and_the_next_one_runs(commands, caplog, tmp_path):
    commands.run(("/no/such/program", "x"), {})
    commands.run(("touch", str(tmp_path / "next")), {})
    until(commands.have_ended, "the next has run")
    (told,) = caplog.messages
    assert told.startswith("/no/such/program: cannot be run: ")
    assert (tmp_path / "next").exists()


def test_a_bad_status_is_said_once(commands, caplog):
    commands.run((sys.executable, "-c", "raise SystemExit(7)"), {})
    until(commands.have_ended, "it has ended")
    commands.tidy()
    (told,) = caplog.messages
    assert told.endswith("ended with status 7")


def test_a_nul_in_a_fact_is_taken_out_and_the_command_runs_all_the_same(commands, caplog, tmp_path):
    file = tmp_path / "path"
    command = ("sh", "-c", f'printf %s "$GUARDRAILS_PATH" >{file}')
    Notifier(command, commands)("overdue", "GET /a\0b", path="/a\0b")
    until(commands.have_ended, "it has run")
    assert file.read_text() == "/ab"
    assert caplog.messages == ["overdue: GET /a\\x00b"]

"""A watchdog under systemd: what arrives at the socket that NOTIFY_SOCKET names."""

import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guardrails.ops import cli
from guardrails.watchdog.systemd import ServiceManager

pytestmark = pytest.mark.one_python

SECONDS = 60
PAGE = Path(__file__).parents[2] / "docs" / "watchdog.md"


@pytest.fixture(params=["a path", "an abstract name"])
def manager(request, tmp_path):
    """A socket as systemd has it, and how NOTIFY_SOCKET names it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        if request.param == "a path":
            address = name = str(tmp_path / "notify")
        else:
            name = f"@guardrails-test-{secrets.token_hex(6)}"
            address = "\0" + name[1:]
        receiver.bind(address)
        receiver.settimeout(SECONDS)
        yield receiver, name


def received(receiver, until):
    """All messages up to the first that matches."""
    messages = []
    while not messages or not re.match(until, messages[-1]):
        messages.append(receiver.recv(4096).decode())
    return messages


@pytest.fixture
def running(manager, tmp_path):
    """A watchdog that systemd has started, with a time after which it restarts one that hangs."""
    _receiver, name = manager
    code = f'import os; open("{tmp_path}/told", "w").write(str(dict(os.environ)))'
    on_event = f"--on-event={sys.executable} -c '{code}'"
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GUARDRAILS")}
    environ |= {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000"}
    store = f"--store=shm:test-systemd-{secrets.token_hex(6)}"
    words = [store, "--probe=http://127.0.0.1:1/", "--probe-failures=1", on_event, "--poll=10m", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "guardrails", "watch", *words],
        env=environ,
        stderr=subprocess.DEVNULL,
    )
    yield process
    process.kill()
    process.wait(SECONDS)


def test_it_is_ready_says_what_it_watches_stays_alive_and_says_that_it_ends(manager, running, tmp_path):
    receiver, _name = manager
    status, _ready = received(receiver, "READY=1$")
    assert status.startswith("STATUS=watches nothing: there is no store")
    # Also between two looks that are ten minutes apart.
    assert [received(receiver, "WATCHDOG=1$") for _ in range(3)] == [["WATCHDOG=1"]] * 3
    running.send_signal(signal.SIGTERM)
    assert received(receiver, "STOPPING=1$")
    assert running.wait(SECONDS) == 0


HANGING = """
import sys, time
from guardrails.ops import cli
from guardrails.watchdog import process

looks = []

class Hanging(process.WatchdogLoop):
    def look(self):
        looks.append(self)
        if len(looks) > 3:
            time.sleep(600)

process.WatchdogLoop = Hanging
sys.exit(cli.main(["watch", sys.argv[1], "--poll=50ms", "run"]))
"""


def test_one_that_hangs_is_no_longer_alive(manager):
    """So systemd restarts it."""
    receiver, name = manager
    store = f"--store=shm:test-systemd-{secrets.token_hex(6)}"
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, store],
        env=os.environ | {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000"},
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert received(receiver, "READY=1$")
            receiver.settimeout(2)
            with pytest.raises(TimeoutError):
                received(receiver, "never")
            assert process.poll() is None
        finally:
            process.kill()


def test_the_commands_that_it_runs_do_not_speak_to_systemd(manager, running, tmp_path):
    told, until = tmp_path / "told", time.monotonic() + SECONDS
    while not (told.exists() and told.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert "GUARDRAILS_EVENT" in told.read_text()
    assert "NOTIFY_SOCKET" not in told.read_text()
    assert "WATCHDOG_USEC" not in told.read_text()


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def messages_at(receiver):
    receiver.setblocking(False)
    messages = []
    try:
        while True:
            messages.append(receiver.recv(4096).decode())
    except BlockingIOError:
        return messages


def test_it_is_alive_at_half_of_the_time(manager):
    receiver, name = manager
    clock = Clock()
    service = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"}, clock)
    for second in range(61):
        clock.now = 100.0 + second
        service.alive()
    assert messages_at(receiver) == ["WATCHDOG=1"] * 5


@pytest.mark.parametrize(
    "environ", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}]
)
def test_nothing_is_said_of_life_where_systemd_does_not_ask_this_process(manager, environ):
    receiver, name = manager
    service = ServiceManager({"NOTIFY_SOCKET": name} | environ, Clock())
    service.ready()
    service.alive()
    assert messages_at(receiver) == ["READY=1"]


def test_the_same_status_is_said_once(manager):
    receiver, name = manager
    service = ServiceManager({"NOTIFY_SOCKET": name}, Clock())
    for text in ("a", "a", "b", "a"):
        service.status(text)
    assert messages_at(receiver) == ["STATUS=a", "STATUS=b", "STATUS=a"]


def test_a_socket_that_is_not_there_is_logged_once_and_stops_nothing(tmp_path, caplog):
    service = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "none"), "WATCHDOG_USEC": "2"}, Clock())
    service.ready()
    service.status("a")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "systemd cannot be notified" in caplog.text


def test_without_systemd_nothing_is_said():
    service = ServiceManager({}, Clock())
    service.ready()
    service.status("a")
    service.stopping()


def test_the_unit_in_the_docs_is_one_of_systemd_and_of_this_command():
    (unit,) = re.findall(r"^```ini\n(\[Unit\].*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)
    program, command, *words = shlex.split(settings["ExecStart"])
    assert (Path(program).name, command) == ("guardrails", "watch")
    assert cli.parser().parse_args([command, *words]).action == "run"
    assert (settings["Type"], settings["Restart"]) == ("notify", "always")
    assert int(settings["WatchdogSec"]) >= 30

"""The probe: a real server is asked for a real page, and something is done when it does not answer."""

import http.server
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from guardrails.errors import ConfigurationError
from guardrails.store.processes import process_facts
from guardrails.watchdog import process_signal
from guardrails.watchdog.events import LONGEST_COMMAND, Commands, Notifier
from guardrails.watchdog.monitor import monitor_from
from guardrails.watchdog.probe import Probe
from guardrails.watchdog.process_signal import ProcessSignal
from support import Told

pytestmark = pytest.mark.one_python

JOIN_SECONDS = 60


class Site(http.server.ThreadingHTTPServer):
    """A server whose answers a test decides on."""

    daemon_threads = False  # so that closing waits for every answer

    status = 200
    body = b"hello"
    headers = ()

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Page)
        self.seen = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        self.send_response(self.server.status)
        for name, value in self.server.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def site():
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join(JOIN_SECONDS)


@pytest.fixture
def rude():
    """A server that answers each connection as a function of the test's says; gives its URL."""
    threads, listening, over = [], [], threading.Event()

    def begin(answer):
        listener = socket.create_server(("127.0.0.1", 0))
        listening.append(listener)

        def serve():
            while not over.is_set():
                try:
                    connection, _address = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(2**16)
                        answer(connection, over)
                    except OSError:
                        pass

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield begin
    over.set()
    for listener in listening:
        with closing(listener):
            listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(JOIN_SECONDS)
        assert not thread.is_alive()


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def victim():
    """A process that says which signal it got, once."""
    code = (
        "import os, signal\n"
        "def tell(number, frame):\n"
        "    print(signal.Signals(number).name, flush=True)\n"
        "    os._exit(0)\n"
        "signal.signal(signal.SIGHUP, tell)\n"
        "signal.signal(signal.SIGUSR2, tell)\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def raw(text):
    """An answer of these bytes."""

    def answer(connection, _over):
        connection.sendall(text)

    return answer


def looks(probe, count, start=0, step=30):
    for number in range(count):
        probe.look(start + number * step)


def asking_has_ended():
    """Wait for the threads that asked."""
    for thread in threading.enumerate():
        if thread.name == "guardrails-probe":
            thread.join(JOIN_SECONDS)
            assert not thread.is_alive()


def test_a_server_that_answers_is_asked_by_a_real_request_and_nothing_is_told(site, told):
    probe = Probe(site.url + "health?deep=1#part", told, every="30s")

    looks(probe, 3)

    assert told == []
    assert [(method, path) for method, path, _headers in site.seen] == [("GET", "/health?deep=1")] * 3
    assert site.seen[0][2]["Host"] == site.url.split("/")[2]


def test_it_asks_as_often_as_it_was_told_to(site, told):
    probe = Probe(site.url, told, every="30s")

    for now in (0, 1, 29, 30, 31, 59, 60):
        probe.look(now)

    assert len(site.seen) == 3


@pytest.mark.parametrize("status", [200, 204, 301, 302, 304, 399])
def test_2xx_and_3xx_are_life(site, told, status):
    site.status = status
    site.body = b""

    looks(Probe(site.url, told, failures=1), 1)

    assert told == []


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_any_other_status_is_a_failure(site, told, status):
    site.status = status

    looks(Probe(site.url, told, failures=1), 1)

    assert told.events == ["probe-failed"]
    assert f"HTTP {status}" in told[0][3]["error"]


def test_a_redirect_is_not_followed(site, told):
    site.status, site.headers = 302, [("Location", site.url + "elsewhere")]

    looks(Probe(site.url, told, failures=1), 1)

    assert [path for _method, path, _headers in site.seen] == ["/"]


def test_failures_count_only_in_a_row(site, told):
    probe = Probe(site.url, told, failures=3)

    for number, status in enumerate([500, 500, 200, 500, 500, 200]):
        site.status = status
        probe.look(number * 30)

    assert told == []


def test_an_absent_server_is_told_of_with_its_facts(absent, told):
    looks(Probe(absent, told, failures=3), 3)

    event, message, level, facts = told[0]
    assert (event, level) == ("probe-failed", logging.WARNING)
    assert facts == {
        "url": absent,
        "failures": 3,
        "error": "ConnectionRefusedError: [Errno 111] Connection refused",
        "remedy": 0,
    }
    assert "3 failures in a row" in message


def test_it_counts_anew_and_rests_before_it_does_anything_again(absent, told):
    probe = Probe(absent, told, failures=2, cooldown="2m", every="10s")

    happened = []
    for now in range(0, 300, 10):
        before = len(told)
        probe.look(now)
        if len(told) > before:
            happened.append(now)

    assert happened == [10, 130, 250]


def test_after_the_rest_it_needs_as_many_failures_again(site, told):
    probe = Probe(site.url, told, failures=3, cooldown=0)
    site.status = 500

    looks(probe, 5)

    assert told.events == ["probe-failed"]
    probe.look(1000)
    assert told.events == ["probe-failed"] * 2


def test_an_answer_after_that_is_told_of_once(site, told):
    probe = Probe(site.url, told, failures=1)
    site.status = 500
    probe.look(0)
    site.status = 200

    looks(probe, 3, start=30)

    assert told.events == ["probe-failed", "probe-recovered"]
    assert told[1][2] == logging.INFO
    assert told[1][3] == {"url": site.url, "remedy": 0}


def dripping(head, piece):
    """Answers without end, or almost: after some seconds it would be a complete answer."""

    def answer(connection, over):
        connection.sendall(head)
        for _ in range(400):
            connection.sendall(piece)
            if over.wait(0.01):
                return
        connection.sendall(b"\r\n\r\n")

    return answer


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.0 200 OK\r\nX-Long: ", b"x"),
        (b"HTTP/1.0 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["head", "body", "chunks"],
)
def test_a_server_that_drips_its_answer_byte_by_byte_is_given_up(rude, told, head, piece):
    url = rude(dripping(head, piece))

    looks(Probe(url, told, failures=1, timeout="300ms"), 1)

    assert [facts["error"] for *_, facts in told] == ["no complete answer within 0.3 s"]
    asking_has_ended()


def test_a_server_that_says_nothing_is_given_up(rude, told):
    url = rude(lambda _connection, over: over.wait(JOIN_SECONDS))

    looks(Probe(url, told, failures=1, timeout=0.2), 1)

    assert [facts["error"] for *_, facts in told] == ["no complete answer within 0.2 s"]


def test_a_name_that_cannot_be_looked_up_in_time_holds_up_nobody(told, monkeypatch):
    found, asked = threading.Event(), []

    def slow(*arguments, **_options):
        asked.append(arguments)
        found.wait(JOIN_SECONDS)
        raise OSError("at last: no such name")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    probe = Probe("http://example.invalid/", told, failures=1, timeout=0.1, cooldown=0)
    looks(probe, 2)
    found.set()

    assert [facts["error"] for *_, facts in told] == [
        "no complete answer within 0.1 s",
        "the previous request has not ended yet",
    ]
    asking_has_ended()
    assert len(asked) == 1


def test_of_a_long_page_only_the_beginning_is_read(rude, told):
    sent = []

    def answer(connection, over):
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        for _ in range(4000):
            if over.is_set():
                return
            connection.sendall(b"x" * 2**14)
            sent.append(2**14)
        sent.append("all")

    looks(Probe(rude(answer), told, failures=1), 1)

    assert told == []
    assert "all" not in sent


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "RemoteDisconnected"),
        (b"no http at all\r\n", "BadStatusLine"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\nshort", "IncompleteRead"),
        (b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 101 + b"\r\n", "HTTPException"),
        (b"HTTP/1.0 200 OK\r\n" + b"X: " + b"y" * 70000 + b"\r\n\r\n", "LineTooLong"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 999999999999999\r\n\r\nx", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\nx", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx", "IncompleteRead"),
        (b"HTTP/1.0 999 \x1b[2Jboo\r\n\r\n", r"HTTP 999 \x1b[2Jboo"),
        (b"HTTP/1.0 200000 OK\r\n\r\n", "BadStatusLine"),
    ],
)
def test_what_is_no_complete_answer_is_a_failure(rude, told, answer, error):
    looks(Probe(rude(raw(answer)), told, failures=1), 1)

    assert told.events == ["probe-failed"]
    assert error in told[0][3]["error"]


def test_nothing_of_a_hostile_answer_can_forge_a_line_of_the_log(rude, told):
    url = rude(raw(b"\x1b[31mok\rguardrails: all is well" + b"x" * 5000 + b"\n"))

    looks(Probe(url, told, failures=1), 1)

    assert told[0][1].isprintable()
    assert told[0][3]["error"].isprintable()
    assert len(told[0][3]["error"]) <= 200


@pytest.mark.parametrize("status", [100, 103])
def test_answers_before_the_answer_without_end_are_given_up(rude, told, status):
    def answer(connection, over):
        while not over.is_set():
            connection.sendall(b"HTTP/1.1 %d Before\r\n\r\n" % status)

    looks(Probe(rude(answer), told, failures=1, timeout="300ms"), 1)

    assert [facts["error"] for *_, facts in told] == ["no complete answer within 0.3 s"]
    asking_has_ended()


def test_no_proxy_of_the_environment_is_asked(site, told, monkeypatch, absent):
    monkeypatch.setenv("http_proxy", absent)
    looks(Probe(site.url, told, failures=1), 1)

    assert told == []


def remedies(told):
    return [facts["remedy"] for event, *_, facts in told if event == "probe-failed"]


def test_each_remedy_follows_on_one_that_did_not_help_and_the_last_is_repeated(absent, tmp_path, told):
    commands, done = Commands(), tmp_path / "done"
    code = "import os, sys; open(sys.argv[1], 'a').write(sys.argv[2] + os.environ['GUARDRAILS_REMEDY'])"
    words = [f'{sys.executable} -c "{code}" {done} {name}' for name in ("a", "b", "c")]
    probe = Probe(absent, told, failures=2, cooldown=0, on_failure=words, commands=commands)
    for number in range(10):
        probe.look(number * 30)
        ended(commands)

    assert done.read_text() == "a1b2c3c4c5"
    assert remedies(told) == [1, 2, 3, 4, 5]


def test_a_remedy_that_helped_is_the_first_one_again_the_next_time(site, told):
    commands = Commands()
    words = ["true", "false"]
    probe = Probe(site.url, told, failures=1, cooldown=0, on_failure=words, commands=commands)
    for number, status in enumerate([500, 500, 200, 500]):
        site.status = status
        probe.look(number * 30)
        ended(commands)

    assert remedies(told) == [1, 2, 1]
    assert told[2][1] == f"{site.url}: it answers again, after remedy 2"
    assert "; remedy 1: true" in told[0][1]


def test_a_remedy_has_its_rest_before_the_next_one(absent, told):
    probe = Probe(
        absent, told, failures=1, every="10s", cooldown="1m", master=2**30, on_failure=["TERM", "HUP"]
    )
    for now in range(0, 70, 10):
        probe.look(now)

    assert remedies(told) == [1, 2]


def test_a_signal_may_be_the_first_remedy_and_a_command_the_next(absent, told, victim, tmp_path):
    commands, done = Commands(), tmp_path / "done"
    words = ["SIGHUP", f"touch {done}"]
    probe = Probe(
        absent,
        told,
        failures=1,
        cooldown=0,
        on_failure=words,
        master=victim.pid,
        commands=commands,
    )
    probe.look(0)
    assert victim.stdout.readline() == "SIGHUP\n"
    assert not done.exists()
    probe.look(30)
    ended(commands)

    assert done.exists()


def test_a_command_is_run_with_the_facts_and_without_a_shell(absent, told, tmp_path):
    commands = Commands()
    code = "import os, sys; open(sys.argv[1], 'w').write(os.environ[sys.argv[2]] + '|' + sys.argv[3])"
    saved = tmp_path / "facts"
    for name in ("EVENT", "URL", "FAILURES", "ERROR", "REMEDY"):
        command = f"{sys.executable} -c {code!r} {saved} GUARDRAILS_{name} '$(id); x'"
        command = command.replace(repr(code), '"' + code + '"')
        Probe(absent, told, failures=1, on_failure=[command], commands=commands).look(0)
        ended(commands)
        fact, word = saved.read_text().split("|")
        assert word == "$(id); x"
        assert fact == {
            "EVENT": "probe-failed",
            "URL": absent,
            "FAILURES": "1",
            "REMEDY": "1",
            "ERROR": "ConnectionRefusedError: [Errno 111] Connection refused",
        }.get(name)


def test_a_command_is_run_through_the_announcers_commands(absent, tmp_path, caplog):
    announcer = Notifier()
    saved = tmp_path / "touched"

    Probe(
        absent, announcer, failures=1, on_failure=[f"touch {saved}"], commands=announcer.commands
    ).look(0)
    ended(announcer.commands)

    assert saved.exists()
    assert "probe-failed: " in caplog.text


def ended(commands):
    """Wait until every command has."""
    for process, _deadline in list(commands._running):
        process.wait(JOIN_SECONDS)
    commands.tidy()


class Slow:
    """A command that starts another one, and both hold a pipe open for as long as they live."""

    def __init__(self, folder):
        self.now = 0.0
        self.commands = Commands(lambda: self.now)
        os.mkfifo(folder / "pipe")
        script = 'exec 3>"$0"; sleep 600 & echo began >&3; wait'
        self.commands.run(("sh", "-c", script, str(folder / "pipe")), {})
        self.pipe = (folder / "pipe").open()
        assert self.pipe.readline() == "began\n"

    def tidy(self, now):
        self.now = now
        self.commands.tidy()

    def is_over(self, seconds):
        return bool(select.select([self.pipe], [], [], seconds)[0])


@pytest.fixture
def slow(tmp_path):
    slow = Slow(tmp_path)
    yield slow
    slow.tidy(LONGEST_COMMAND)
    ended(slow.commands)
    slow.pipe.close()


def test_a_command_that_runs_for_too_long_is_ended_with_all_that_it_started(slow, caplog):
    slow.tidy(LONGEST_COMMAND - 1)
    assert not slow.is_over(0)
    slow.tidy(LONGEST_COMMAND)
    assert slow.is_over(JOIN_SECONDS)
    ended(slow.commands)

    assert slow.commands._running == []
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "killed, since it ran for more than 60 s"
    ]


def test_a_command_that_does_not_end_at_once_holds_up_nobody(slow, tmp_path, monkeypatch):
    """As one does that hangs in the kernel."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "killpg", lambda *_: None)
        slow.tidy(LONGEST_COMMAND)
    assert not slow.is_over(0)
    slow.commands.run(("touch", str(tmp_path / "touched")), {})
    (stuck, _never), (other, _deadline) = slow.commands._running
    other.wait(JOIN_SECONDS)
    assert (tmp_path / "touched").exists()

    os.killpg(stuck.pid, signal.SIGKILL)
    ended(slow.commands)
    assert slow.commands._running == []


def test_a_signal_is_sent_to_the_process_of_a_number(absent, told, victim):
    Probe(absent, told, failures=1, master=victim.pid).look(0)

    assert victim.stdout.readline() == "SIGHUP\n"
    assert told.events == ["probe-failed"]


def test_a_signal_is_sent_to_the_process_that_is_in_the_pid_file_at_that_moment(
    absent, told, victim, tmp_path
):
    file = tmp_path / "server.pid"
    probe = Probe(absent, told, failures=2, master=str(file), on_failure=["SIGUSR2"])
    probe.look(0)
    file.write_text(f"{victim.pid}\n")
    probe.look(30)

    assert victim.stdout.readline() == "SIGUSR2\n"
    assert told.events == ["probe-failed"]


def test_a_signal_that_cannot_be_sent_is_told_of(absent, told, tmp_path):
    Probe(absent, told, failures=1, master=tmp_path / "none.pid").look(0)

    assert told.events == ["probe-failed", "probe-not-signalled"]
    assert told[1][2] == logging.ERROR
    assert "there is no pid file" in told[1][3]["error"]


@pytest.mark.parametrize(
    "content", [b"", b"0", b"-1", b"12 13", b"abc", b"9" * 30, b"4294967297", b"\xd9\xa2\xd9\xa3"]
)
def test_a_pid_file_without_a_process_of_a_server_is_refused(tmp_path, content):
    file = tmp_path / "server.pid"
    file.write_bytes(content)

    with pytest.raises(OSError, match="has no pid in it"):
        ProcessSignal(file, signal.SIGHUP).send()


def test_a_pid_file_is_read_no_further_than_it_needs(tmp_path, victim):
    file = tmp_path / "server.pid"
    file.write_text(f"{victim.pid}\n" + " " * 10_000_000)

    assert ProcessSignal(file, signal.SIGHUP).send() == victim.pid


def test_a_pid_file_that_is_a_link_is_refused(tmp_path, victim):
    (tmp_path / "real.pid").write_text(str(victim.pid))
    (tmp_path / "link.pid").symlink_to("real.pid")

    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        ProcessSignal(tmp_path / "link.pid", signal.SIGHUP).send()


def test_a_pipe_for_a_pid_file_holds_up_nobody(tmp_path):
    os.mkfifo(tmp_path / "pipe.pid")

    with pytest.raises(OSError, match="not a regular file"):
        ProcessSignal(tmp_path / "pipe.pid", signal.SIGHUP).send()


def test_a_pid_file_that_everybody_may_write_to_is_refused(tmp_path, victim):
    file = tmp_path / "server.pid"
    file.write_text(str(victim.pid))
    file.chmod(0o666)

    with pytest.raises(OSError, match="every user may write"):
        ProcessSignal(file, signal.SIGHUP).send()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make the files of two users")
def test_a_pid_file_of_one_user_cannot_point_at_a_process_of_another(tmp_path, victim):
    file = tmp_path / "server.pid"
    file.write_text(str(victim.pid))
    os.chown(file, 54321, -1)

    with pytest.raises(OSError, match=r"belongs to uid 54321, and process \d+ does not"):
        ProcessSignal(file, signal.SIGHUP).send()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_a_user_can_point_at_a_process_of_its_own(tmp_path):
    file = tmp_path / "server.pid"
    with subprocess.Popen(["sleep", "60"], user=54321, stdout=subprocess.DEVNULL) as process:
        file.write_text(str(process.pid))
        os.chown(file, 54321, -1)

        ProcessSignal(file, signal.SIGTERM).send()

        assert process.wait(JOIN_SECONDS) == -signal.SIGTERM


@pytest.mark.skipif(not hasattr(os, "fork") or os.geteuid() != 0, reason="only root can become another")
def test_a_process_that_may_not_be_signalled_is_told_of(victim):
    code = (
        "import os, sys\n"
        "import signal\n"
        "from guardrails.watchdog.process_signal import ProcessSignal\n"
        "os.setuid(54321)\n"
        "try:\n"
        "    ProcessSignal(int(sys.argv[1]), signal.SIGHUP).send()\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(victim.pid)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout == f"process {victim.pid} belongs to another user and cannot be signalled\n"


def test_a_process_that_is_gone_is_told_of(victim):
    victim.kill()
    victim.wait()

    with pytest.raises(ProcessLookupError, match=f"there is no process {victim.pid}"):
        ProcessSignal(victim.pid, signal.SIGHUP).send()


def test_a_later_process_of_the_same_number_is_not_signalled(victim, monkeypatch):
    first = process_facts(victim.pid)
    reopen = ProcessSignal(victim.pid, signal.SIGUSR2)
    monkeypatch.setattr(
        process_signal, "process_facts", lambda _pid: first._replace(start=first.start + 1)
    )
    with pytest.raises(OSError, match=r"is not the one that had this pid when the monitor began"):
        reopen.send()
    monkeypatch.undo()
    reopen.send()

    assert victim.stdout.readline() == "SIGUSR2\n"


def test_a_number_that_nobody_had_when_the_monitor_began_means_nobody(victim, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(process_signal, "process_facts", lambda _pid: None)
        early = ProcessSignal(victim.pid, signal.SIGUSR2)

    with pytest.raises(OSError, match=r"is not the one that had this pid when the monitor began"):
        early.send()


def test_a_number_is_enough_where_the_system_tells_nothing_of_processes(victim, monkeypatch):
    monkeypatch.setattr(process_signal, "process_facts", lambda _pid: None)

    assert ProcessSignal(victim.pid, signal.SIGUSR2).send() == victim.pid


def test_a_pid_file_that_is_older_than_the_process_of_its_number_is_refused(victim, tmp_path):
    file = tmp_path / "server.pid"
    file.write_text(str(victim.pid))
    began = time.time() - process_facts(victim.pid).age_seconds
    os.utime(file, (began - 60, began - 60))
    with pytest.raises(
        OSError, match=r"server.pid is older than process \d+, so it means an earlier one"
    ):
        ProcessSignal(file, signal.SIGHUP).send()
    os.utime(file, (began - 1, began - 1))  # clocks differ by a little
    ProcessSignal(file, signal.SIGUSR2).send()

    assert victim.stdout.readline() == "SIGUSR2\n"


def test_it_never_signals_itself(tmp_path):
    (tmp_path / "own.pid").write_text(str(os.getpid()))

    with pytest.raises(OSError, match="is the monitor itself"):
        ProcessSignal(tmp_path / "own.pid", signal.SIGTERM).send()


def test_a_signal_reaches_the_process_where_there_are_no_descriptors_of_processes(victim, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)

    ProcessSignal(victim.pid, signal.SIGUSR2).send()

    assert victim.stdout.readline() == "SIGUSR2\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "ftp://x/"}, "probe: 'ftp://x/' cannot be requested: write an http or https URL"),
        ({"url": "/health"}, "probe: '/health' cannot be requested"),
        ({"url": "http://"}, "probe: 'http://' cannot be requested"),
        ({"url": "http://x:99999/"}, "probe: 'http://x:99999/' cannot be requested"),
        ({"url": "http://x/a b"}, "probe: 'http://x/a b' cannot be requested"),
        ({"url": "http://x/\r\nHost: y"}, "cannot be requested"),
        ({"url": "http://[::1"}, "cannot be requested"),
        ({"url": None}, "probe: None cannot be requested"),
        (
            {"url": "http://me:secret@x/"},
            "probe: a user name and password for 'x' would be in every event",
        ),
        ({"every": 0}, "probe_every: 0 is not above 0"),
        ({"every": "soon"}, "probe_every: 'soon' is not a duration"),
        ({"timeout": "0s"}, "probe_timeout: '0s' is not above 0"),
        ({"failures": 0}, "probe_failures: 0 is not a whole number from 1 to 1000"),
        ({"cooldown": -1}, "probe_cooldown: -1 is negative"),
        ({"on_failure": ["'"]}, 'on_failure: "\'" cannot be split into words'),
        ({"on_failure": [" "]}, "on_failure: ' ' names no program"),
        ({"on_failure": ["SIGHOP"]}, "on_failure: 'SIGHOP' is not the name of a signal"),
        ({"master": "0"}, "master: 0 is not the pid of a server"),
        ({"master": True}, "master: True is not the pid of a server"),
        ({"master": ""}, "master: '' is not the path of a file"),
    ],
)
def test_wrong_values_are_refused_when_it_is_built(told, options, message):
    with pytest.raises(ConfigurationError) as refused:
        Probe(options.pop("url", "http://127.0.0.1/"), told, **options)

    assert str(refused.value).startswith(message) or message in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_process_that_the_signal_would_end_is_not_signalled():
    """A server that is still starting, or one that knows nothing of reopening its logs."""
    program = (
        "import signal\n"
        "for name in ('HUP', 'USR1', 'USR2'):\n"
        "    signal.signal(signal.Signals['SIG' + name], signal.SIG_DFL)  # also under nohup\n"
        "print(flush=True); input()"
    )
    waiting = [sys.executable, "-c", program]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        for name in ("HUP", "USR1", "USR2"):
            with pytest.raises(OSError, match=f"SIG{name} would end process"):
                ProcessSignal(process.pid, signal.Signals["SIG" + name]).send()
        assert process.poll() is None
        assert ProcessSignal(process.pid, signal.SIGTERM).send() == process.pid
        assert process.wait(JOIN_SECONDS) == -signal.SIGTERM


def test_a_number_that_was_cut_off_is_nobodys(tmp_path, victim):
    file = tmp_path / "server.pid"
    file.write_text(" " * (64 - len(str(victim.pid))) + f"{victim.pid}9")

    with pytest.raises(OSError, match="has no pid in it"):
        ProcessSignal(file, signal.SIGHUP).send()
    assert victim.poll() is None


def test_no_other_number_is_a_pid():
    for pid in (0, "0", "-1", "9" * 5000, True):
        with pytest.raises(ConfigurationError, match="is not the pid of a server"):
            ProcessSignal(pid, signal.SIGUSR1)
    ProcessSignal(1, signal.SIGUSR1)  # the server itself may be the first process of a container


def test_early_hints_are_not_the_answer(rude, told):
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    url = rude(
        lambda connection, _over: connection.sendall(
            hints + hints + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        )
    )
    looks(Probe(url, told, failures=1), 1)
    assert told.events == []


def test_a_remedy_does_not_wait_behind_the_news(told):
    announce = Notifier(("true",))
    monitor = monitor_from(announce, probe="http://127.0.0.1:1/", on_failure=["true"])
    (probe,) = monitor._parts
    assert probe._commands is not announce.commands

"""`guardrails watch`: one of a kind, started and stopped by anybody, whatever was left lying about."""

import fcntl
import json
import os
import pwd
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from guardrails.store import directory
from support import is_there

pytestmark = pytest.mark.one_python

SECONDS = 60
PROBE = "--probe=http://127.0.0.1:1/"


def watch(*words, **environ):
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "guardrails", "watch", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={name: value for name, value in os.environ.items() if name[:10] != "GUARDRAILS"} | environ,
    )


def until(condition, what):
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)
    return found


@pytest.fixture
def store():
    """A store's name of this test's own; whoever watches it is ended."""
    name = f"test-watch-{secrets.token_hex(6)}"
    yield f"--store=shm:{name}"
    watch(f"--store=shm:{name}", "stop")
    for folder in directory.folders():
        for path in folder.glob(f"watch-{name}*"):
            path.unlink()


def lock_of(store):
    name = store.rpartition(":")[2]
    return next(iter(directory.folders())) / f"watch-{name}.lock"


@contextmanager
def locked_by(store, pid):
    """A lock that somebody holds, with that pid in its file."""
    file = directory.own_folder() / f"{lock_of(store).name}.new"
    file.touch(mode=0o600)
    file.write_text(json.dumps([pid, 1, 1]))
    with file.open() as held:
        # Locked before it has its name: a watchdog of another test would remove an abandoned one.
        fcntl.flock(held, fcntl.LOCK_EX)
        file.rename(lock_of(store))
        yield


def pid_of(said):
    return int(re.search(r"pid (\d+)", said)[1])


def test_start_is_idempotent_status_tells_and_stop_ends_it(store):
    assert watch(store, "status").returncode == 3
    first = watch(store, "start")
    assert first.returncode == 0
    pid = pid_of(first.stdout)

    again = watch(store, "start")
    assert again.returncode == 0
    assert again.stdout == f"guardrails watch: running already, pid {pid}\n"
    told = watch(store, "status")
    assert (told.returncode, pid_of(told.stdout)) == (4, pid)

    stopped = watch(store, "stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"guardrails watch: stopped, pid {pid}\n")
    assert not is_there(pid)
    assert watch(store, "status").stdout == "guardrails watch: not running\n"
    assert watch(store, "stop").returncode == 0


def test_it_runs_while_the_server_is_down_and_says_so(store, tmp_path):
    log = tmp_path / "watch.log"
    watch(store, f"--log-file={log}", "start")
    until(lambda: " yet; the watchdog waits for one" in log.read_text(), "it waits")
    assert log.stat().st_mode & 0o777 == 0o600


def test_restart_takes_the_new_options(store):
    first = pid_of(watch(store, "--timeout=5m", "start").stdout)
    restarted = watch(store, "--timeout=7m", "restart").stdout
    second = pid_of(restarted.splitlines()[-1])
    assert second != first
    assert b"--timeout=7m" in Path(f"/proc/{second}/cmdline").read_bytes()
    assert not is_there(first)


def test_restart_remembers_the_options_of_start(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        "--timeout=5m",
        "--exempt-paths=/a",
        "--exempt-paths=/b",
        "--dry-run",
        "--log-file=w.log",
    ]
    first = pid_of(watch(store, *options, "start").stdout)
    monkeypatch.chdir("/")

    said = watch(store, "--poll=7s", "--exempt-paths=/c", "--no-dry-run", "restart").stdout

    second = pid_of(said.splitlines()[-1])
    words = Path(f"/proc/{second}/cmdline").read_text().split("\0")
    assert second != first
    assert {"--timeout=5m", "--poll=7s", "--exempt-paths=/c", f"--log-file={tmp_path}/w.log"} <= set(
        words
    )
    assert {"--exempt-paths=/a", "--exempt-paths=/b", "--dry-run"}.isdisjoint(words)
    assert lock_of(store).stat().st_mode & 0o777 == 0o600


def test_restart_remembers_the_options_of_one_that_was_killed(store):
    first = pid_of(watch(store, "--timeout=5m", "start").stdout)
    os.kill(first, signal.SIGKILL)
    until(lambda: not is_there(first), "it is gone")
    # Another watchdog removes what killed ones have left, but not at once.
    assert watch(f"{store}-2", "start").returncode == 0
    assert watch(f"{store}-2", "stop").returncode == 0
    second = pid_of(watch(store, "restart").stdout.splitlines()[-1])
    assert b"--timeout=5m" in Path(f"/proc/{second}/cmdline").read_bytes()


def test_restart_with_a_wrong_option_leaves_the_one_that_runs(store):
    first = pid_of(watch(store, "start").stdout)
    assert watch(store, "--on-event=/nowhere/x", "restart").returncode == 2
    assert pid_of(watch(store, "status").stdout) == first


def test_start_says_where_the_one_that_runs_has_other_options(store):
    first = pid_of(watch(store, "--timeout=5m", "start").stdout)
    again = watch(store, "--timeout=9m", "start")
    assert again.returncode == 0
    assert again.stdout == (
        f"guardrails watch: running already, pid {first}, with other options (--timeout=5m): restart "
        "changes them\n"
    )


@pytest.mark.parametrize("option", ["--master", "--log"])
def test_a_file_that_may_come_is_warned_of(store, tmp_path, option):
    said = watch(store, PROBE, f"{option}={tmp_path}/none", "start")
    assert said.returncode == 0
    assert f"{tmp_path}/none yet" in said.stderr
    assert "started, pid" in said.stdout


def test_a_lock_file_that_was_left_blocks_nothing_and_nobody_else_is_stopped(store):
    """What a killed one left names a process that is somebody else's now."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with locked_by(store, bystander.pid):
            pass

        assert watch(store, "status").returncode == 3
        assert watch(store, "stop").stdout == "guardrails watch: not running\n"
        assert watch(store, "start").stdout.startswith("guardrails watch: started")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_who_holds_the_lock_but_is_not_what_it_wrote_is_not_stopped(store):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with locked_by(store, bystander.pid):
            watch(store, "stop")
            assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_after_a_kill_another_one_starts_at_once(store):
    first = pid_of(watch(store, "start").stdout)
    os.kill(first, signal.SIGKILL)
    until(lambda: not is_there(first), "it is gone")
    assert watch(store, "status").returncode == 3
    assert pid_of(watch(store, "start").stdout) != first


def test_a_watchdog_that_ends_leaves_no_lock_file(store):
    watch(store, "start")
    assert lock_of(store).exists()
    watch(store, "stop")
    assert not lock_of(store).exists()


def test_the_next_watchdog_of_the_user_removes_what_a_killed_one_left(store):
    """Also where it watches another store; and it leaves alone what is in use."""
    killed, running = (f"{store}-{name}" for name in ("killed", "running"))
    try:
        pid = pid_of(watch(killed, "start").stdout)
        watch(running, "start")
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_there(pid), "it is gone")
        an_hour_ago = time.time() - 3601
        os.utime(lock_of(killed), (an_hour_ago, an_hour_ago))

        watch(store, "start")

        until(lambda: not lock_of(killed).exists(), "the file is removed")
        assert lock_of(running).exists()
        assert watch(running, "status").stdout.startswith("guardrails watch: running, pid ")
    finally:
        watch(running, "stop")


def test_only_one_runs_of_many_that_are_started_at_once(store):
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "guardrails", "watch", store, "start"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(6)
    ]
    said = [process.communicate(timeout=60)[0] for process in started]
    assert sum("started" in each for each in said) == 1, said
    assert sum("running already" in each for each in said) == 5, said


def test_in_the_foreground_it_ends_on_sigterm_and_says_when_another_runs(store):
    """At once, and not at its next look, for which it has ten minutes."""
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children would ignore it anyway
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "guardrails", "watch", store, "--poll=10m", "run"],
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGHUP, inherited)
    try:
        assert "watchdog: begins" in process.stderr.readline()
        second = watch(store, "run")
        assert second.returncode == 1
        assert second.stderr.endswith(f"is running already, pid {process.pid}\n")
        process.send_signal(signal.SIGHUP)
        process.terminate()
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.communicate()


LOOKS = """
import sys
from guardrails.ops import cli
from guardrails.watchdog import process

looks = []

class Looking(process.WatchdogLoop):
    def __init__(self, policy, stores, notify, **options):
        super().__init__(policy, stores, notify, **options)
        self.notify = notify

    def look(self):
        looks.append(self)
        {look}

process.WatchdogLoop = Looking
sys.exit(cli.main(["watch", *sys.argv[1:], "--poll=50ms", "run"]))
"""


@pytest.fixture
def looking(store, tmp_path):
    """Starts one whose looks are the test's own; what it says is in a file."""
    started = []

    def start(look, *words):
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(
                [sys.executable, "-c", LOOKS.format(look=look), store, *words],
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process, (tmp_path / "said").read_text

    yield start
    for process in started:
        process.kill()
        process.wait(SECONDS)


def test_a_look_that_raises_does_not_end_it(looking):
    process, said = looking("print('looks', flush=True) if len(looks) > 2 else 1 / 0")
    until(lambda: "looks\n" in said(), "it looks")
    assert said().count("ZeroDivisionError") == 2
    assert said().count("a look failed; the next one follows all the same") == 2
    process.terminate()
    assert process.wait(SECONDS) == 0


def test_how_a_command_ended_is_said_though_no_other_event_comes(looking):
    command = f"--on-event={sys.executable} -c 'raise SystemExit(7)'"
    _process, said = looking("len(looks) > 1 or self.notify('overdue', 'x')", command)
    until(lambda: "ended with status 7" in said(), "it is said")


def test_a_store_has_one_watchdog_however_its_name_is_written(store):
    first = pid_of(watch(store, "start").stdout)
    again = watch(f"{store}?clients=100", "start")
    assert again.stdout == f"guardrails watch: running already, pid {first}\n"
    environ = {"GUARDRAILS_STORE": store.partition("=")[2]}
    assert pid_of(watch("status", **environ).stdout) == first


@pytest.fixture
def telling(store, tmp_path):
    """One that has something to write at each of its looks, and where else it could write."""
    with socket.socket() as kept, (tmp_path / "stderr").open("w") as stderr:
        kept.bind(("127.0.0.1", 0))  # nobody listens here
        url = f"--probe=http://127.0.0.1:{kept.getsockname()[1]}/"
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "guardrails", "watch", store, f"--log-file={tmp_path}/w.log"),
                *(url, "--probe-every=50ms", "--probe-failures=1", "--probe-cooldown=0", "run"),
            ],
            stderr=stderr,
        )
        try:
            until(lambda: writes(tmp_path / "w.log"), "it writes")
            yield process
        finally:
            process.terminate()
            status = process.wait(SECONDS)
    assert status == 0


def writes(file):
    return file.exists() and "probe-failed" in file.read_text()


def test_it_does_not_wait_for_a_reader_of_its_standard_error(store):
    """Workers may hang for the same reason, and the watchdog is there for workers that hang."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while os.write(writing, b"x" * 4096):
            pass
    os.set_blocking(writing, True)
    command = [sys.executable, "-m", "guardrails", "watch", store, "run"]
    process = subprocess.Popen(command, stderr=writing)
    try:
        # No worker has made the store yet.
        until(lambda: watch(store, "status").returncode == 4, "it runs")
        process.terminate()
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait(SECONDS)
        os.close(writing)
        os.close(reading)


def test_a_log_may_be_moved_with_its_folder_and_the_watchdog_goes_on(telling, tmp_path):
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    try:
        until(lambda: writes(moved / "stderr"), "it writes elsewhere")
        assert telling.poll() is None
    finally:
        moved.rename(tmp_path)


def test_a_log_that_is_moved_away_is_made_again_for_nobody_else(telling, tmp_path):
    log = tmp_path / "w.log"
    log.rename(tmp_path / "w.log.1")
    until(lambda: writes(log), "it writes to a new one")
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_log_that_was_replaced_by_a_link_is_not_written_through(telling, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "link").rename(tmp_path / "w.log")
    until(lambda: writes(tmp_path / "stderr"), "it writes elsewhere")
    assert precious.read_text() == "precious"
    assert telling.poll() is None


def test_it_does_not_start_with_a_log_that_is_a_link(store, tmp_path):
    precious, link = tmp_path / "precious", tmp_path / "w.log"
    precious.write_text("precious")
    link.symlink_to(precious)
    ran = watch(store, f"--log-file={link}", "start")
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"guardrails: log_file: '{link}' cannot be opened")
    assert precious.read_text() == "precious"
    assert watch(store, "status").returncode == 3


def test_a_log_file_named_from_here_lies_here(store, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "guardrails", "watch", store, "--log-file=w.log", "start"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=60,
    )
    until(lambda: "watchdog: begins" in (tmp_path / "w.log").read_text(), "it writes there")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--timeout=soon", "run"], "guardrails: timeout: 'soon' is not a duration"),
        (["--store=redis://x", "status"], "guardrails: store: nothing handles 'redis://x'"),
        (["--user=no-such-user", "status"], "guardrails: user: there is no 'no-such-user'"),
        (["--user=4294967295", "status"], "guardrails: user: there is no '4294967295'"),
        (["--on-event=/nowhere/tell me", "start"], "guardrails: on_event: there is no program"),
        (["--on-event=/nowhere/tell me", "run"], "guardrails: on_event: there is no program"),
        ([PROBE, "--on-failure=/nowhere/x", "start"], "guardrails: on_failure: there is no program"),
        ([PROBE, "--on-failure=SIGHUP", "start"], "guardrails: master: no process is named, so"),
        ([PROBE, "--master=4000000", "start"], "guardrails: master: there is no process 4000000"),
        (
            [PROBE, "--master=/nowhere/x", "start"],
            "guardrails: master: there is no pid file",
        ),
        ([PROBE, "--master=/etc/passwd", "start"], "guardrails: master: pid file /etc/passwd has no"),
        (["--log=/nowhere/x.log", "start"], "guardrails: log: there is no folder /nowhere"),
        (["--log=/", "start"], "guardrails: log: '/' is not the path of a file"),
        (["--log=/dev/null", "start"], "guardrails: log: /dev/null is not a regular file"),
        (["--log=/etc/passwd", "--logrotate=/nowhere/x", "start"], "guardrails: logrotate: /nowhere/x"),
        (["--timeout=0", "start"], "guardrails: timeout: '0' means that no request is ever overdue"),
        (["--backups=5", "start"], "guardrails: --backups is no longer an option: logrotate keeps"),
        (["--log-file=/nowhere/x", "start"], "guardrails: log_file: '/nowhere/x' cannot be opened"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_no_traceback(words, said):
    ran = watch(*words)
    assert ran.returncode == 2
    assert ran.stderr.startswith(said)
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("user", ["nobody", "54321"])
def test_who_becomes_another_user_is_nothing_of_root_any_more(user):
    """A number needs no entry in the list of users."""
    code = (
        "import contextlib, json, os\n"
        "from guardrails.watchdog.user import become\n"
        "os.setgroups([0, 4, 6])\n"
        f"become({user!r})\n"
        "for back in (os.setuid, os.setgid, os.seteuid, os.setegid):\n"
        "    with contextlib.suppress(PermissionError):\n"
        "        back(0)\n"
        "print(json.dumps([os.getresuid(), os.getresgid(), os.getgroups()]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    uid, gid, groups = 54321, 54321, []
    if user == "nobody":
        uid, gid = pwd.getpwnam(user)[2:4]
        groups = os.getgrouplist(user, gid)
    assert json.loads(ran.stdout) == [[uid] * 3, [gid] * 3, groups]


def test_without_a_command_the_usage_is_shown():
    ran = watch()
    assert ran.returncode == 2
    assert "usage: guardrails watch" in ran.stderr


SERVING = """
import os, sys
import guardrails
from guardrails import testing

app = guardrails.SpeedLimit("9/s")(testing.hello, store=sys.argv[1])
held = testing.Client(app).get(sys.argv[2], buffered=False)
print("ready", flush=True)
sys.stdin.read()
held.close()
"""


@pytest.fixture
def serving(store):
    """Starts a worker with one request in flight."""
    started = []

    def serve(path, **options):
        url = store.partition("=")[2]
        process = subprocess.Popen(
            [sys.executable, "-c", SERVING, f"{url}?private&clients=100", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **options,
        )
        started.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield serve
    for process in started:
        process.communicate()  # it ends with its input


def test_status_says_what_is_watched_and_how_old_the_oldest_request_is(store, serving):
    serving("/old one")
    said = watch(store, "--poll=100ms", "start")
    assert said.returncode == 0
    assert f"; it watches {store.partition('=')[2]}: 1 worker, 1 request, the oldest GET" in said.stdout
    status = watch(store, "status")
    assert status.returncode == 0
    assert re.search(
        r"running, pid \d+, for \d+ s: watches shm:test-watch-\w+: 1 worker, 1 request, the oldest "
        r"GET /old%20one from 192\.0\.2\.1, \d+ s old \(seen \d+ s ago\)",
        status.stdout,
    )


def test_status_has_a_status_of_its_own_for_nothing(store, serving):
    """A name that nobody's store has, and a store whose workers have ended."""
    started = watch(store, "--poll=100ms", "start")
    name = store.partition("=")[2]
    assert started.returncode == 0
    assert (
        f"it watches nothing: there is no store {name[4:]} of uid {os.geteuid()} yet" in started.stdout
    )
    assert watch(store, "status").returncode == 4

    worker = serving("/")
    assert until(lambda: watch(store, "status").returncode == 0, "it watches") is True
    worker.communicate()
    told = until(lambda: (said := watch(store, "status")).returncode == 4 and said, "it has nothing")
    assert re.search(rf"watches nothing: ({name} has no worker now|there is no store)", told.stdout)


def test_the_status_of_all_has_a_line_for_each_watchdog(store, serving):
    serving("/")
    watch(store, "start")
    with subprocess.Popen(
        [sys.executable, "-m", "guardrails", "watch", f"--parent={os.getpid()}", "run"],
        stderr=subprocess.PIPE,
        text=True,
    ) as own:
        assert "watchdog: begins" in own.stderr.readline()
        said = until(
            lambda: (said := watch("status")).stdout.count("running, pid") > 1 and said, "both"
        )
        own.terminate()
        own.communicate(timeout=SECONDS)
    assert said.returncode == 0
    assert re.search(rf"running, pid {own.pid}, for \d+ s, beside server {os.getpid()}: ", said.stdout)


CHOOSING = """
import os, sys
from guardrails import SpeedLimit, testing
from guardrails.ops import cli
from guardrails.store import directory

directory.PREFERRED = sys.argv[1]
held = [SpeedLimit("9/s")(testing.hello, store=f"shm:{name}?clients=100") for name in ("shop", "blog")]
for app in held:
    testing.Client(app).get("/").close()
sys.exit(cli.main(["watch", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("action", ["start", "run"])
def test_of_several_stores_one_must_be_named(tmp_path, action):
    ran = subprocess.run(
        [sys.executable, "-c", CHOOSING, str(tmp_path), action],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stderr == (
        "guardrails: store: there are several stores with workers, so name the one to watch: "
        "--store shm:blog, --store shm:shop\n"
    )


@pytest.mark.parametrize("only_monitors", [False, True])
def test_workers_of_a_server_with_a_watchdog_of_its_own_are_left_to_it(store, tmp_path, only_monitors):
    """But not to one that only monitors, and ends nobody."""
    url = store.partition("=")[2]
    serve = [sys.executable, "-c", SERVING, f"{url}?private&clients=100"]
    command = [sys.executable, "-m", "guardrails", "watch"]
    started = []

    def start(words, **options):
        started.append(subprocess.Popen(words, stdin=subprocess.PIPE, text=True, **options))
        return started[-1]

    try:
        words = ["--timeout=0", "--load=1000"] if only_monitors else []
        own = start([*command, *words, f"--parent={os.getpid()}", "run"], stderr=subprocess.PIPE)
        assert "watchdog: begins" in own.stderr.readline()
        ours = start([*serve, "/ours"], stdout=subprocess.PIPE)
        assert ours.stdout.readline() == "ready\n"
        theirs = start(["sh", "-c", '"$@"; exit $?', "sh", *serve, "/theirs"], stdout=subprocess.PIPE)
        assert theirs.stdout.readline() == "ready\n"

        log = tmp_path / "w.log"
        options = (store, f"--log-file={log}", "--timeout=100ms", "--poll=100ms", "--dry-run", "run")
        start([*command, *options])
        # After all that is found at a look has been told of.
        last = "/ours" if only_monitors else "/theirs"  # the older one is told of first
        until(lambda: log.exists() and f"left-alone: GET {last}" in log.read_text(), "it looks")
    finally:
        for process in reversed(started):
            if process.args[0] == "sh" or SERVING in process.args:
                process.communicate()  # it ends with its input
            else:
                process.terminate()
                process.communicate(timeout=SECONDS)
    assert "overdue: GET /theirs" in log.read_text()
    assert ("GET /ours" in log.read_text()) == only_monitors


def test_a_watchdog_takes_over_the_workers_of_a_server_whose_own_one_is_killed(
    store, tmp_path, serving
):
    """So one that cron starts beside a server covers for its own."""
    command = [sys.executable, "-m", "guardrails", "watch"]
    words = [f"--parent={os.getpid()}", "run"]
    with subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True) as own:
        try:
            assert "watchdog: begins" in own.stderr.readline()
            serving("/ours")
            log = tmp_path / "w.log"
            watch(store, f"--log-file={log}", "--timeout=1s", "--poll=100ms", "--dry-run", "start")
            told = until(
                lambda: "leaves 1 worker" in (told := watch(store, "status").stdout) and told, ""
            )
            assert "leaves 1 worker to the watchdog of their own server" in told
            assert "GET /ours" not in log.read_text()
        finally:
            own.kill()
    until(lambda: "overdue: GET /ours" in log.read_text(), "it takes over")


def test_an_event_runs_the_operators_command_with_the_facts_and_no_shell(store, tmp_path):
    """A request that is too old, in a worker that nobody would start again."""
    note = tmp_path / "note.py"
    note.write_text(
        "import json, os, sys\n"
        "facts = {k: v for k, v in os.environ.items() if k.startswith('GUARDRAILS_')}\n"
        f"open({str(tmp_path)!r} + '/' + facts['GUARDRAILS_EVENT'], 'w').write("
        "json.dumps([sys.argv[1:], facts]))\n"
    )
    url = store.partition("=")[2]
    serving = subprocess.Popen(
        [sys.executable, "-c", SERVING, f"{url}?private&clients=100", "/$(touch x);`id`"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    )
    try:
        assert serving.stdout.readline() == b"ready\n"
        command = f"--on-event={sys.executable} {note} 'one word' $HOME"
        watch(store, "--timeout=100ms", "--poll=100ms", command, "start")
        seen = until(lambda: (tmp_path / "left-alone").exists() and (tmp_path / "left-alone"), "told")
        words, facts = json.loads(until(seen.read_text, "all of it"))
        assert words == ["one word", "$HOME"]
        assert facts["GUARDRAILS_PID"] == str(serving.pid)
        assert facts["GUARDRAILS_CLIENT"] == "192.0.2.1"
        assert facts["GUARDRAILS_PATH"].startswith("/$(touch")
        assert "has no supervisor that would restart it" in facts["GUARDRAILS_MESSAGE"]
        assert not (tmp_path / "x").exists()
        assert serving.poll() is None
    finally:
        serving.communicate()

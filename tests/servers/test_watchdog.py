"""The watchdog and real servers: a request that never ends is noticed, shown and ended."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from setups import BIN
from troubled import GTHREAD, KINDS, MOD_WSGI, NOBODY, SYNC, TROUBLES, UWSGI_THREADS

from support import is_there

TIMEOUT = 1.5
"""Not a whole second, since the printer is back in Python for a moment at each of those alone."""
OPTIONS = {
    "timeout": "1500ms",
    "poll": "100ms",
    "signal_interval": "1s",
    "grace": "2s",
    "kill_interval": 0,
}
STACKS = {
    "sleep": r"testing\.py\", line \d+ in app",
    "spin": r"testing\.py\", line \d+ in app",
    "lock": r"testing\.py\", line \d+ in app",
    "gil": r"testing\.py\", line \d+ in holding_the_gil",
    "nul": r"testing\.py\", line \d+ in printing_for_ever",
}


@contextmanager
def watching(site, **options):
    """A watchdog beside a server, by the command line; gives what reads its log."""
    given = OPTIONS | ({"user": site.setup.user} if site.setup.user else {}) | options
    words = []
    for name, value in given.items():
        if value is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [f"{flag}={value}"]
    log = site.folder / "watchdog.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "guardrails", "watch", f"--store={site.store_url}", *words, "run"],
            stdout=output,
            stderr=output,
        )
    try:
        site.until(lambda: "watchdog: begins" in log.read_text(), "the watchdog begins")
        yield log.read_text
    finally:
        process.terminate()
        assert process.wait(60) == 0


class Asked:
    """A request under way in a thread of its own, and what came of it."""

    def __init__(self, site, target):
        self.answer = None
        self.began = time.monotonic()
        self._thread = threading.Thread(target=self._ask, args=(site, target), daemon=True)
        self._thread.start()

    def _ask(self, site, target):
        # Longer than any test waits: a server that hangs must not look like one that hung up.
        self.answer = site.ask(target, seconds=600)

    def wait(self):
        self._thread.join(120)
        assert self.answer is not None
        return self.answer


@pytest.mark.parametrize("page", TROUBLES)
@pytest.mark.parametrize("kind", [*KINDS, MOD_WSGI], ids=lambda kind: kind.name)
def test_whoever_never_ends_is_shown_ended_and_replaced(trouble, kind, page, observe_trouble):
    beside = "gunicorn" in kind.name
    site = trouble(kind, workers=2, **({"TROUBLE_WATCHDOG": json.dumps(OPTIONS)} if beside else {}))
    if beside:
        site.until(lambda: "watchdog: begins" in site.whole_log(), "the watchdog begins")
        watch_and_see(site, kind, page, site.whole_log, observe_trouble)
    else:
        with watching(site) as log:
            watch_and_see(site, kind, page, log, observe_trouble)


def watch_and_see(site, kind, page, log, observe_trouble):
    asked = Asked(site, f"/{page}?seconds=100")
    seconds = []

    def lasted():
        seconds.append(round(time.monotonic() - asked.began - TIMEOUT, 1))

    site.until(
        lambda: re.search(r"overdue: worker \d+: +File.*trouble\.py|line \d+ in printing", log()),
        "a stack",
    )
    lasted()
    shown = log()
    pid = int(
        re.search(rf"overdue: GET /{page} from 127\.0\.0\.1, \d+ s old, in worker (\d+)", shown)[1]
    )
    stack = re.search(STACKS[page], shown)
    site.until(lambda: not is_there(pid), "its worker ends")
    lasted()
    answer = asked.wait()
    site.until(lambda: site.pid() not in (0, pid), "another worker answers")
    end = rf"GET /{page} from .* has ended after (?:retiring \()?(\w+)"
    site.until(lambda: re.search(end, log()), "its end is told")
    lasted()

    assert stack
    assert site.goes_on()
    assert asked.answer.status in (0, 200, 500, 502)
    observe_trouble(
        kind,
        page,
        {
            "stack": "shown" if stack else "not shown",
            "client": str(answer.status) if answer.status else "the end of its connection",
            "by": re.search(end, log())[1],
            "seconds": seconds,
        },
    )


def open_gate(site):
    (site.folder / "gate").touch()


def test_those_beside_it_end_in_peace(trouble):
    """A stuck request in a threaded worker: the others in it are waited for, and are answered."""
    site = trouble(GTHREAD, workers=1)
    with watching(site, timeout="2s", grace="60s", exempt_paths="/download") as log:
        beside = Asked(site, "/download/gate")
        site.until(site.in_flight, "the one beside has begun")
        stuck = Asked(site, "/sleep?seconds=100")
        site.until(lambda: "retiring (SIGTERM)" in log(), "its worker is told to retire")
        open_gate(site)
        assert beside.wait().status == 200
        assert stuck.wait().status == 0
    told = log()
    assert "1 request more in that worker" in told
    assert "retiring (SIGTERM), and 1 request beside it have 60 s to end" in told
    assert "may be lost" not in told


@pytest.mark.parametrize("kind", [GTHREAD, UWSGI_THREADS], ids=lambda kind: kind.name)
def test_one_request_is_ended_by_an_exception_and_its_worker_lives(trouble, kind):
    site = trouble(kind, TROUBLE_INTERRUPTIBLE="1")
    first = site.pid()
    with watching(
        site, interrupt=True, timeout="2s", signal_interval="60s", exempt_paths="/download"
    ) as log:
        spinning = Asked(site, "/spin?seconds=100")
        beside = Asked(site, "/download/sleep?seconds=4")
        assert spinning.wait().status in (0, 500)
        assert beside.wait().status == 200
        site.until(lambda: "it has ended after an exception in its thread" in log(), "its end is told")
    assert site.pid() == first
    site.until(lambda: "RequestInterruptedError" in site.whole_log(), "the server tells of it")


def test_the_client_of_a_killed_request_is_refused_the_same_for_a_while(trouble):
    site = trouble(SYNC, workers=2)
    with watching(site, ban="10m"):
        Asked(site, "/blamed/sleep?seconds=100").wait()
        refused = site.ask("/blamed/sleep?seconds=0")
        assert refused.status == 503
        assert 300 < int(refused.headers["retry-after"]) <= 600
        assert site.ask("/pid").status == 200


def test_what_it_cost_is_charged_to_its_client(trouble):
    """Three seconds and more are thirty of a tenth of a CPU, and ten are allowed: it waits."""
    site = trouble(SYNC, workers=2)
    with watching(site, timeout="3s"):
        Asked(site, "/blamed/sleep?seconds=100").wait()
        refused = site.ask("/blamed/sleep?seconds=0")
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) > 0
    assert site.ask("/pid").status == 200


def test_root_never_acts_on_what_another_user_wrote(trouble):
    """Who owns a store says what processes are in it; root would signal whatever that is."""
    site = trouble(MOD_WSGI, workers=2)
    with watching(site, user=None) as log:
        assert Asked(site, "/sleep?seconds=3").wait().status == 200
        said = "yet; the watchdog waits for one (--user watches the workers of another user)"
        site.until(lambda: said in log(), said)
    assert "overdue" not in log()


@pytest.mark.parametrize(("kind", "page"), [(SYNC, "sleep"), (GTHREAD, "gil")])
def test_where_all_workers_hang_none_waits_for_another(trouble, kind, page):
    site = trouble(kind, workers=3)
    with watching(site, kill_interval="10m", signal_interval="500ms", timeout="3s") as log:
        stuck = []
        for number in range(3):
            stuck.append(Asked(site, f"/{number}/{page}?seconds=300"))
            site.until(lambda: len(site.in_flight()) == len(stuck), "the request has begun")
        for each in stuck:
            each.wait()
        site.until(lambda: log().count("has ended after") == 3, "each end is told")


def test_an_exempt_path_is_never_too_old(trouble):
    site = trouble(SYNC, workers=2)
    with watching(site, exempt_paths="/download", dry_run=True) as log:
        exempt = Asked(site, "/download/gate")
        site.until(site.in_flight, "the exempt one has begun")
        other = Asked(site, "/gate")
        site.until(lambda: "overdue: GET /gate" in log(), "the other is told of")
        open_gate(site)
        assert (exempt.wait().status, other.wait().status) == (200, 200)
    assert "GET /download" not in log()


def test_the_watchdog_of_roots_server_watches_workers_of_another_user(trouble):
    site = trouble(NOBODY, workers=2, TROUBLE_WATCHDOG=json.dumps(OPTIONS))
    site.until(lambda: "watchdog: begins" in site.whole_log(), "the watchdog begins")
    Asked(site, "/sleep?seconds=100").wait()
    site.until(lambda: re.search(r"GET /sleep .* has ended after", site.whole_log()), "its end is told")
    assert re.search(STACKS["sleep"], site.whole_log())
    assert site.goes_on()


@pytest.mark.skipif(os.geteuid() != 0, reason="py-spy looks into other processes as root")
@pytest.mark.skipif(not (BIN / "py-spy").exists(), reason="py-spy is not installed")
def test_where_c_code_holds_python_and_the_signal_is_somebody_elses_py_spy_is_asked(trouble):
    site = trouble(SYNC, TROUBLE_SIGNAL="taken")
    with watching(site, dry_run=True) as log:
        stuck = Asked(site, "/gil")
        site.until(lambda: re.search(r"overdue: worker \d+: .*trouble\.py", log()), "a stack")
        os.kill(int(re.search(r"overdue: worker (\d+)", log())[1]), signal.SIGKILL)
        assert stuck.wait().status == 0
    assert "py-spy" not in log()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a server as another user")
def test_root_watches_workers_of_another_user(trouble):
    site = trouble(MOD_WSGI, workers=2)
    with watching(site) as log:
        Asked(site, "/sleep?seconds=100").wait()
        site.until(lambda: re.search(r"GET /sleep .* has ended after", log()), "its worker ends")
    with site.store() as store:
        assert store.requests() == []


def test_the_watchdog_of_a_server_ends_with_it(trouble):
    site = trouble(SYNC, TROUBLE_WATCHDOG=json.dumps(OPTIONS))
    site.until(lambda: "watchdog: begins" in site.whole_log(), "the watchdog begins")
    (pid,) = {
        int(found)
        for found in re.findall(r"guardrails watch (\d+) INFO watchdog: begins", site.whole_log())
    }
    os.kill(site.process.pid, 9)
    site.until(lambda: not is_there(pid), "the watchdog ends")
    assert "ends, since the server that started it has ended" in site.whole_log()


@pytest.mark.parametrize("kind", [SYNC, GTHREAD], ids=lambda kind: kind.name)
def test_after_dev_shm_was_cleaned_each_worker_is_reached(trouble, kind):
    """Also those that have served nothing since: their next request may be the one that hangs."""
    site = trouble(kind, workers=3, TROUBLE_INTERRUPTIBLE="1")
    before = set()
    site.until(lambda: before.add(site.pid()) or len(before) == 3, "each worker has served")
    remove_all_files(site, before)
    time.sleep(1.1)  # the name of the file is looked at once a second
    with watching(site, dry_run=True) as log:
        stuck = [Asked(site, f"/{number}/gate") for number in range(3)]
        for number in range(3):
            found = rf"overdue: GET /{number}/gate from 127\.0\.0\.1"
            site.until(lambda found=found: re.search(found, log()), f"request {number} is told of")
        site.until(lambda: log().count("in page_gate") == 3, "each stack is shown")
        open_gate(site)
        assert {each.wait().status for each in stuck} == {200}
    assert "does not show the stack" not in log()


def remove_all_files(site, pids):
    """Remove what a cleaner of /dev/shm would, of this site alone."""
    folder = Path("/dev/shm", f"guardrails-{os.geteuid()}")  # noqa: S108 - where stores lie
    name = site.store_url.removeprefix("shm:")
    patterns = [f"{name}.*", *(f"*-{pid}-*" for pid in pids)]
    files = [file for pattern in patterns for file in folder.glob(pattern)]
    assert len(files) >= 1 + len(pids)
    for file in files:
        file.unlink()


def watchdogs_begun(site):
    found = re.findall(r"guardrails watch (\d+) INFO watchdog: begins", site.whole_log())
    return [int(pid) for pid in found]


def test_hup_starts_a_watchdog_again_that_was_killed(trouble):
    site = trouble(SYNC, TROUBLE_WATCHDOG=json.dumps(OPTIONS))
    site.until(lambda: watchdogs_begun(site), "the watchdog begins")
    os.kill(watchdogs_begun(site)[0], signal.SIGKILL)
    first = site.pid()
    site.process.send_signal(signal.SIGHUP)
    site.until(lambda: len(watchdogs_begun(site)) == 2, "another watchdog begins")
    site.until(lambda: site.pid() not in (0, first), "a new worker answers")

    site.process.send_signal(signal.SIGHUP)
    second = site.pid()
    site.until(lambda: site.pid() not in (0, second), "a new worker answers")
    assert is_there(watchdogs_begun(site)[1])
    assert len(watchdogs_begun(site)) == 2
    Asked(site, "/sleep?seconds=100").wait()
    site.until(lambda: re.search(r"GET /sleep .* has ended after", site.whole_log()), "it watches")


def test_a_server_whose_watchdog_cannot_start_does_not_start_either(trouble):
    with pytest.raises(AssertionError, match="the server has ended") as ended:
        trouble(SYNC, TROUBLE_WATCHDOG=json.dumps(OPTIONS | {"log_file": "/nowhere/watchdog.log"}))
    assert "log_file: '/nowhere/watchdog.log' cannot be opened: No such file" in str(ended.value)

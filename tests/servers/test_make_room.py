"""A server with a single worker goes on answering while that worker is replaced."""

import json
import re
import time

import pytest
from test_watchdog import Asked, watching
from troubled import GTHREAD, NOBODY_THREADS, SYNC, UWSGI_THREADS

from support import is_there

LONGEST_WAIT = 2.0
WATCHDOG = {"timeout": "2s", "poll": "100ms", "signal_interval": "1s", "exempt_paths": "/download"}


class Pings:
    """Requests one after the other, each on a connection of its own."""

    def __init__(self, site):
        self.site = site
        self.waits = []
        self.failed = []

    def until(self, condition, what, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}\n{self.site.log()}"
            self.ping()

    def ping(self):
        began = time.monotonic()
        answer = self.site.ask("/pid", seconds=30)
        self.waits.append(time.monotonic() - began)
        if answer.status != 200:
            self.failed.append(answer.status)
        time.sleep(0.1)


def gunicorn_workers(site):
    """The pids of the workers that a gunicorn has now, whether they have served or not."""
    log = site.whole_log()
    booted = {int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", log)}
    return {pid for pid in booted if is_there(pid)}


@pytest.mark.parametrize("by_hook", [True, False], ids=["its own watchdog", "one by hand"])
def test_while_the_only_worker_retires_each_ping_is_answered(trouble, by_hook):
    environ = {"TROUBLE_WATCHDOG": json.dumps(WATCHDOG)} if by_hook else {}
    site = trouble(GTHREAD, workers=1, **environ)
    if by_hook:
        site.until(lambda: "watchdog: begins" in site.whole_log(), "the watchdog begins")
        see_that_each_ping_is_answered(site, site.whole_log)
    else:
        with watching(site, grace=None, kill_interval=None, **WATCHDOG) as log:
            see_that_each_ping_is_answered(site, log)


def see_that_each_ping_is_answered(site, log):
    (old,) = gunicorn_workers(site)
    innocent = Asked(site, "/download/sleep?seconds=8")
    stuck = Asked(site, "/sleep?seconds=100")
    pings = Pings(site)
    pings.until(lambda: not is_there(old), "the worker has been replaced")
    pings.until(lambda: stuck.answer is not None, "the stuck request is over")
    for _ in range(20):
        pings.ping()

    assert innocent.wait().status == 200
    assert stuck.wait().status == 0
    assert pings.failed == []
    assert max(pings.waits) < LONGEST_WAIT
    assert "another worker is started first" in log()
    assert len(gunicorn_workers(site)) == 1


def test_a_worker_that_is_the_only_one_and_too_large_is_replaced_without_a_pause(trouble):
    size = {"unshared": "100M", "min_lifetime": 0, "jitter": 0}
    site = trouble(GTHREAD, workers=1, TROUBLE_SIZE=json.dumps(size))
    (old,) = gunicorn_workers(site)
    innocent = Asked(site, "/sleep?seconds=8")
    pings = Pings(site)
    site.ask("/leak?seconds=120")
    pings.until(lambda: not is_there(old), "the worker has been replaced")

    assert innocent.wait().status == 200
    assert pings.failed == []
    assert max(pings.waits) < LONGEST_WAIT
    assert "it finishes its requests and retires" in site.whole_log()
    pings.until(lambda: len(gunicorn_workers(site)) == 1, "there is one worker again")


def test_a_worker_that_is_the_only_one_and_at_its_soft_limit_of_cpu_is_replaced_without_a_pause(
    trouble,
):
    site = trouble(SYNC, workers=1, TROUBLE_LIMITS=json.dumps({"CPU": "2:"}))
    (old,) = gunicorn_workers(site)
    pings = Pings(site)
    site.ask("/burn?seconds=2.5")
    pings.until(lambda: not is_there(old), "the worker has been replaced")

    assert pings.failed == []
    assert max(pings.waits) < LONGEST_WAIT
    assert "its soft limit: it finishes its requests and retires" in site.whole_log()


@pytest.mark.parametrize("kind", [UWSGI_THREADS, NOBODY_THREADS], ids=["uWSGI", "gunicorn of root"])
def test_where_no_worker_can_be_added_the_only_one_serves_until_the_others_have_ended(trouble, kind):
    """The watchdog runs as the user of the workers, and may not signal a gunicorn of root."""
    site = trouble(kind, workers=1)
    options = WATCHDOG | {"signal_interval": "500ms"}
    with watching(site, grace=None, kill_interval=None, **options) as log:
        old = site.pid()
        innocent = Asked(site, "/download/sleep?seconds=5")
        Asked(site, "/sleep?seconds=100")
        pings = Pings(site)
        pings.until(lambda: not is_there(old), "the worker has been replaced")
        pings.until(lambda: site.pid() not in (0, old), "another worker answers")
    assert innocent.wait().status == 200
    assert max(pings.waits) < LONGEST_WAIT
    assert "waiting for" in log()
    assert "another worker is started" not in log()

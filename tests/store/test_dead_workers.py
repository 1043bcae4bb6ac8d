"""A worker that is killed leaves the names of the requests that it had in flight."""

import logging
import os
import re
import secrets
import subprocess
import sys

import pytest

import guardrails

SERVING = """
import sys
import guardrails
from guardrails import MaxConcurrentReqs, testing

app = guardrails.throttle(testing.hello, MaxConcurrentReqs(99), store=sys.argv[1])
browser = testing.Client(app)
browser.get("/done").close()
held = [browser.get(path, buffered=False) for path in sys.argv[2:]]
print("ready", flush=True)
sys.stdin.read()
for each in held:
    each.close()
"""


class Shop:
    """A store that several processes serve from, and what an observer sees there."""

    def __init__(self):
        self.url = f"shm:test-dead-{secrets.token_hex(6)}?private&clients=100"
        self.store = guardrails.open_store(self.url)
        self.store.create = True
        self.store.requests()
        self.started = []

    def worker(self, *paths):
        process = subprocess.Popen(
            [sys.executable, "-c", SERVING, self.url, *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    def close(self):
        for process in self.started:
            process.kill()
            with process:  # closes its pipes
                process.wait()
        self.store.close()


@pytest.fixture
def shop():
    shop = Shop()
    yield shop
    shop.close()


def kill(worker):
    worker.kill()
    worker.wait()


def test_a_killed_worker_leaves_the_names_of_its_requests(shop, caplog):
    worker = shop.worker("/report", "/export")
    kill(worker)

    deaths = shop.store.deaths()

    assert [(death.pid, death.in_flight, death.method, death.path) for death in deaths] == [
        (worker.pid, 2, "GET", "/report"),
        (worker.pid, 2, "GET", "/export"),
    ]
    assert {death.parent for death in deaths} == {os.getpid()}
    assert {death.client for death in deaths} == {"192.0.2.1"}
    assert shop.store.requests() == []
    (said,) = caplog.messages
    assert re.fullmatch(
        rf"worker {worker.pid} has died with 2 requests in flight: GET /report from 192\.0\.2\.1, "
        r"begun \d+ s before; GET /export from 192\.0\.2\.1, begun \d+ s before",
        said,
    )


def test_another_worker_that_finds_them_first_leaves_them_for_the_next_look(shop):
    kill(shop.worker("/report"))
    finder = shop.worker("/other")
    assert [death.path for death in shop.store.deaths()] == ["/report"]
    finder.stdin.close()
    assert b"has died with 1 request in flight: GET /report" in finder.stderr.read()


def test_each_death_is_recorded_once_and_only_later_ones_are_asked_for(shop):
    kill(shop.worker("/report"))
    (known,) = shop.store.deaths()
    shop.store.workers()
    kill(shop.worker("/export"))
    assert [death.path for death in shop.store.deaths(known.number)] == ["/export"]
    assert len(shop.store.deaths()) == 2


def test_a_worker_that_died_without_a_request_is_recorded_and_not_logged(shop, caplog):
    worker = shop.worker()
    kill(worker)
    shop.store.workers()
    ((pid, in_flight, age),) = [
        (death.pid, death.in_flight, death.age_seconds) for death in shop.store.deaths()
    ]
    assert (pid, in_flight, age) == (worker.pid, 0, None)
    assert caplog.messages == []


def test_a_worker_that_exits_in_order_has_not_died(shop):
    worker = shop.worker("/report")
    worker.stdin.close()
    assert worker.wait(30) == 0
    assert shop.store.workers() == shop.store.deaths() == []


def test_of_a_worker_with_many_requests_sixteen_are_recorded_and_all_are_counted(shop, caplog):
    kill(shop.worker(*(f"/page{number}" for number in range(20))))
    deaths = shop.store.deaths()
    assert len(deaths) == 16
    assert {death.in_flight for death in deaths} == {20}
    assert caplog.messages[0].endswith("; 15 more")


def test_a_text_of_a_client_cannot_forge_a_log_line(shop, caplog):
    kill(shop.worker("/a%0Aworker 1 has died"))
    with caplog.at_level(logging.WARNING):
        shop.store.deaths()
    (said,) = caplog.messages
    assert "\n" not in said
    assert "%20" in said


def test_the_latest_deaths_are_kept_when_the_store_is_made_larger(shop):
    kill(shop.worker("/report"))
    (known,) = shop.store.deaths()
    larger = guardrails.open_store(shop.url.replace("clients=100", "clients=1000"))
    larger.create = True
    assert [death.number for death in larger.deaths()] == [known.number]
    larger.close()

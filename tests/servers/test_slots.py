"""Slots come back, however a request ends."""

import os
import signal
import threading

import pytest
from wire import Wire

ENDINGS = [
    ("a list", "GET", "/slot/plain"),
    ("a generator", "GET", "/slot/generator"),
    ("write()", "GET", "/slot/write"),
    ("the app raises", "GET", "/slot/raise"),
    ("the app raises in the body", "GET", "/slot/raise-later"),
    ("HEAD of a list", "HEAD", "/slot/plain"),
    ("HEAD of a generator", "HEAD", "/slot/generator"),
    ("HEAD of a file", "HEAD", "/slot/file"),
    ("304", "GET", "/slot/304"),
    ("a file", "GET", "/slot/file"),
]


def reached(site, path, count):
    """Whether so many requests for a path have reached the app."""
    return sum(page["path"] == path for page in site.journal("page")) >= count


def in_background(site, target):
    """Ask, and let the answer come when it will."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(site.ask(target, seconds=60)))
    thread.start()
    return thread, answers


def hang(site):
    """A request that holds the slot; returns the pid of its worker, the thread that waits, answers."""
    before = len(site.journal("began"))
    waiting, answers = in_background(site, "/slot/slow?seconds=50")
    site.until(lambda: len(site.journal("began")) > before, "the request has begun")
    return site.journal("began")[-1]["pid"], waiting, answers


def test_a_slot_comes_back_after_every_ending(site, observe):
    seen = {}
    for ending, method, target in ENDINGS:
        before = len([page for page in site.journal("page") if page["path"] == target])
        seen[ending] = site.ask(target, method).status
        assert reached(site, target, before + 1), f"{ending}: {seen}"
        site.until(site.is_free, f"the slot is free after {ending}")
    assert seen["a list"] == seen["a file"] == seen["HEAD of a list"] == 200
    for ending, method, target in ENDINGS:
        # Some servers answer or hang up after an error in the body, as it happens.
        if ending != "the app raises in the body":
            bare = site.ask(target.replace("/slot/", "/bare/"), method).status
            assert seen[ending] == bare, f"{ending}: without guardrails it is {bare}"
    observe("endings", seen)


def test_a_slot_comes_back_when_the_client_is_gone_before_the_answer(site):
    before = len(site.journal("began"))
    with Wire(site.port) as wire:
        wire.send("GET", "/slot/slow?seconds=0.5", {"ClientAddress": site.new_client()})
        site.until(lambda: len(site.journal("began")) > before, "the request has begun")
        wire.reset()

    site.until(site.is_free, "the slot is free")


def test_a_slot_comes_back_when_the_client_is_gone_while_the_answer_streams(site):
    with Wire(site.port) as wire:
        wire.send("GET", "/slot/endless", {"ClientAddress": site.new_client()})
        wire.until(b"xxxx")
        assert site.held() == {"slot": 1}
        wire.reset()

    # The stream ends by itself only after ninety seconds.
    site.until(site.is_free, "the slot is free")


def test_a_slot_comes_back_when_its_worker_is_killed(site, observe):
    pid, waiting, answers = hang(site)
    os.kill(pid, signal.SIGKILL)
    waiting.join(60)
    assert not waiting.is_alive()
    if not site.setup.respawns:
        site.stop()
        site.start()

    # No process reports the death. The next request that would be refused finds it first.
    site.until(lambda: answered(site, "/slot/plain"), "the slot is free")
    site.until(site.is_free, "nothing is left of it")
    assert answers[0].status != 200, "the request came to its own end"
    observe("killed", answers[0].status or "nothing")


def answered(site, target):
    try:
        return site.ask(target).status == 200
    except OSError:  # its successor is not there yet
        return False


def test_a_slot_comes_back_when_the_servers_own_time_out_ends_the_request(site, observe):
    if not site.setup.ends_requests:
        pytest.skip("this server has no time-out that ends such a request")
    _, waiting, answers = hang(site)
    waiting.join(60)
    assert not waiting.is_alive()

    site.until(lambda: answered(site, "/slot/plain"), "the slot is free")
    site.until(site.is_free, "nothing is left of it")
    assert answers[0].status != 200, "the request came to its own end"
    observe("timed out", answers[0].status or "nothing")

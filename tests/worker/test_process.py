"""What a process has: renewed after a fork, and its files go with it."""

import json
import os
import secrets
import subprocess
import sys

import pytest

from guardrails import SpeedLimit
from guardrails.store import directory
from guardrails.store.process_files import remove_files_of_dead
from guardrails.store.processes import this_process
from guardrails.worker.process import current_process

WORKER = """
import ctypes, json, os, sys
import guardrails
from guardrails import SpeedLimit, testing
from guardrails.store import directory

def files_of(pid):
    return sorted(
        path.name.partition("-")[0]
        for folder in directory.folders()
        for path in folder.glob(f"*-*-{pid}-*")
    )

app = guardrails.throttle(testing.hello, SpeedLimit("9/s"), store=sys.argv[1], interruptible=True)
client = testing.Client(app)
assert client.get("/").status_code == 200
"""

FORKING = """
parent = os.getpid()
child = FORK
if child == 0:
    for _ in range(REQUESTS):
        assert client.get("/").status_code == 200
    print(json.dumps([files_of(parent), files_of(os.getpid())]), flush=True)
    sys.exit()
os.waitpid(child, 0)
print(json.dumps([files_of(parent), files_of(child)]))
"""

WAITING = """
print("ready", flush=True)
sys.stdin.read()
"""

BOTH = ["control", "stack"]


def start(program):
    """Start a worker of its own that has served one request."""
    store = f"shm:test-process-{secrets.token_hex(6)}?private&clients=100"
    return subprocess.Popen(
        [sys.executable, "-c", WORKER + program, store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def files_of(pid):
    return sorted(
        path.name.partition("-")[0]
        for folder in directory.folders()
        for path in folder.glob(f"*-*-{pid}-*")
    )


def test_a_fork_without_pythons_hooks_is_noticed_at_the_next_request(serve, worker_process):
    """As under uWSGI: the child has its parent's object, with the parent's number."""
    heard = []
    worker_process.hooks.after_response = (lambda open_request: heard.append(open_request.path),)
    worker_process.is_retiring = True
    site = serve(SpeedLimit("9/s"))
    assert site.get("/parent").status_code == 200
    worker_process.pid = os.getppid()

    assert site.get("/child").status_code == 200

    renewed = current_process()
    assert renewed is not worker_process
    assert renewed.pid == os.getpid()
    assert renewed is current_process(), "once per process"
    assert not renewed.is_retiring
    assert heard == ["/parent", "/child"]


@pytest.mark.parametrize("fork", ["os.fork()", "ctypes.PyDLL(None).fork()"], ids=["python", "c"])
@pytest.mark.parametrize(("requests", "own_files"), [(0, []), (1, BOTH)])
def test_a_forked_child_removes_its_own_files_and_not_its_parents(fork, requests, own_files):
    """In C a process forks without Python's hooks, as uWSGI does."""
    worker = start(FORKING.replace("FORK", fork).replace("REQUESTS", str(requests)))
    output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0

    in_child, after_child = map(json.loads, output.splitlines())
    assert in_child == [BOTH, own_files]
    assert after_child == [BOTH, []]
    assert files_of(worker.pid) == []


def test_the_next_worker_removes_the_files_of_one_that_was_killed():
    killed = start(WAITING)
    assert killed.stdout.readline() == "ready\n"
    assert files_of(killed.pid) == BOTH
    killed.kill()
    killed.communicate()

    following = start(WAITING)
    assert following.stdout.readline() == "ready\n"
    try:
        assert files_of(killed.pid) == []
        assert files_of(following.pid) == BOTH
    finally:
        following.communicate()
    assert files_of(following.pid) == []


def test_what_dead_processes_left_is_removed(tmp_path):
    tmp_path.chmod(0o700)
    me = this_process()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for kind in ("stack", "control"):
        (tmp_path / f"{kind}-{me.namespace}-{dead.pid}-1").touch()
        (tmp_path / f"{kind}-{me.namespace}-{os.getpid()}-{me.start}").touch()
        (tmp_path / f"{kind}-1-{dead.pid}-1").touch()  # of another container
    (tmp_path / "stack-of-cards-2").touch()

    remove_files_of_dead(tmp_path)

    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"stack-of-cards-2"} | {
        name
        for kind in ("stack", "control")
        for name in (f"{kind}-{me.namespace}-{os.getpid()}-{me.start}", f"{kind}-1-{dead.pid}-1")
    }

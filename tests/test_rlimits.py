"""rlimits(): limits as a value, set only where it is applied. Each in a process of its own."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import guardrails

APP = """
import json, resource

NAMES = ("CORE", "DATA", "NOFILE", "AS")

def app(environ, start_response):
    limits = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in NAMES}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(limits).encode()]
"""


def in_a_process(program):
    """What a Python of its own prints, as JSON."""
    ran = subprocess.run(
        [sys.executable, "-c", "import json, resource, guardrails\n" + program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_building_sets_nothing():
    before, after = in_a_process(
        "before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "guardrails.rlimits(NOFILE=64)\n"
        "print(json.dumps([before, resource.getrlimit(resource.RLIMIT_NOFILE)]))"
    )
    assert before == after


@pytest.mark.parametrize("call", [".apply()", "()", "('server', 'worker')", "(1, 2, 3, name=4)"])
def test_applying_or_calling_with_anything_sets_the_soft_limit(call):
    soft, hard, hard_before = in_a_process(
        "hard_before = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        f"guardrails.rlimits(NOFILE=64){call}\n"
        "print(json.dumps([*resource.getrlimit(resource.RLIMIT_NOFILE), hard_before]))"
    )
    assert (soft, hard) == (64, hard_before)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("NOFILE", "64:128", [64, 128]),
        ("NOFILE", ":128", [128, 128]),
        ("DATA", "1G:2G", [2**30, 2**31]),
        ("AS", "4096M:unlimited", [2**32, -1]),
        ("CORE", 0, [0, None]),
        ("CORE", "0:0", [0, 0]),
    ],
)
def test_soft_and_hard_units_and_unlimited(name, value, expected):
    found = in_a_process(
        f"guardrails.rlimits({name}={value!r}).apply()\n"
        f"print(json.dumps(resource.getrlimit(resource.RLIMIT_{name})))"
    )
    assert [found[0], found[1] if expected[1] is not None else None] == expected


def test_it_reports_what_was_and_what_is():
    (report,) = in_a_process("print(json.dumps(guardrails.rlimits(NOFILE='64:128').apply()))")
    assert report[:3] == ["NOFILE", 64, 128]
    assert report[3] > 64


def test_a_memory_hog_meets_its_limit_as_a_memory_error():
    assert in_a_process(
        "guardrails.rlimits(DATA='512M').apply()\n"
        "try: bytearray(2**30); met = False\n"
        "except MemoryError: met = True\n"
        "print(json.dumps(met))"
    )


def test_a_limit_that_the_system_refuses_is_said_in_a_sentence():
    said = in_a_process(
        "guardrails.rlimits(NOFILE='64:64').apply()\n"
        "try: guardrails.rlimits(NOFILE='65').apply()\n"
        "except guardrails.ConfigurationError as error: print(json.dumps(str(error)))"
    )
    assert said.startswith("NOFILE: the system refuses soft 65 and hard 64")


def test_equal_limits_are_equal_values():
    assert guardrails.rlimits(NOFILE=64) == guardrails.rlimits(NOFILE="64")


def test_as_gunicorns_post_fork_hook_every_worker_has_the_limits(tmp_path):
    (tmp_path / "limited.py").write_text(APP)
    (tmp_path / "gunicorn.conf.py").write_text(
        "import guardrails\npost_fork = guardrails.rlimits(NOFILE=96, CORE=0)\n"
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        server = subprocess.Popen(
            [
                Path(sys.executable).with_name("gunicorn"),
                *("--bind", f"fd://{listener.fileno()}", "--workers", "1", "--log-level", "error"),
                "limited:app",
            ],
            cwd=tmp_path,
            pass_fds=[listener.fileno()],
        )
        try:
            limits = _ask(listener.getsockname()[1])
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=20)
    assert limits["NOFILE"][0] == 96
    assert limits["CORE"][0] == 0


def _ask(port):
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as response:
                return json.load(response)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)

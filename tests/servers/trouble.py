"""The site that gets into trouble: each page hangs, burns, hogs or leaks in its own way.

TROUBLE_STORE names the store. TROUBLE_LIMITS and TROUBLE_SIZE have the limits to apply.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs

sys.path.insert(0, str(Path(__file__).parent))

import guardrails
from guardrails import CPUThrottle, SpeedLimit, testing
from guardrails.worker import stacks

LIMITS = json.loads(os.environ.get("TROUBLE_LIMITS", "null"))
SIZE = json.loads(os.environ.get("TROUBLE_SIZE", "null"))
HOOK = os.environ.get("TROUBLE_HOOK", "")

if os.environ.get("TROUBLE_SIGNAL"):
    signal.signal(stacks.DUMP_SIGNAL, lambda *_: None)
limits = guardrails.rlimits(**LIMITS) if LIMITS else None
if limits is not None and HOOK == "postfork":
    from uwsgidecorators import postfork

    postfork(limits)
elif limits is not None and HOOK == "import":
    limits.apply()
if SIZE:
    guardrails.size_limit(**SIZE).apply()

kept = []


def answer(start_response, text, status="200 OK"):
    body = text.encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def page_pid(seconds):
    return str(os.getpid())


def page_gate(seconds):
    """Wait until the test opens the gate."""
    gate = Path(os.environ["TROUBLE_FOLDER"], "gate")
    until = time.monotonic() + 200
    while not gate.exists() and time.monotonic() < until:
        time.sleep(0.05)
    return str(os.getpid())


def page_burn(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
    return str(os.getpid())


def page_hog(seconds):
    try:
        return str(len(bytearray(8 << 30)))
    except MemoryError:
        return "MemoryError"


def page_creep(seconds):
    held = []
    while True:
        held.append(bytearray(1 << 20))


def page_file(seconds):
    with Path(os.environ["TROUBLE_FOLDER"], f"large-{os.getpid()}").open("wb", buffering=0) as file:
        try:
            file.writelines(bytes(1 << 20) for _ in range(64))
        except OSError as error:
            return f"{error.strerror} after {file.tell() >> 20} MB"
    return "all of it"


def page_files(seconds):
    files = []
    try:
        while len(files) < 4096:
            files.append(Path("/dev/null").open())  # noqa: SIM115 - that is the trouble
    except OSError as error:
        return error.strerror
    finally:
        for file in files:
            file.close()
    return "all of them"


def page_leak(seconds):
    kept.append(bytearray(os.urandom(1 << 20)) * int(seconds))
    return str(os.getpid())


def page_usage(seconds):
    return json.dumps({name: list(used) for name, used in guardrails.usage().items()})


PAGES = {name.removeprefix("page_"): page for name, page in globals().items() if name[:5] == "page_"}
APPS = {
    "sleep": testing.sleeping,
    "lock": testing.waiting_for_lock,
    "spin": testing.spinning,
    "gil": lambda _seconds: testing.holding_the_gil,
    "nul": lambda _seconds: testing.printing_for_ever,
}


def pages(environ, start_response):
    name = environ["PATH_INFO"].strip("/").rpartition("/")[2]
    query = parse_qs(environ.get("QUERY_STRING", ""))
    seconds = float(query.get("seconds", ["0"])[0])
    if name in APPS:
        return APPS[name](seconds)(environ, start_response)
    return answer(start_response, PAGES.get(name, page_pid)(seconds))


application = guardrails.throttle(
    pages,
    SpeedLimit("1000000/day"),  # tests ask as fast as the machine can, and are never refused
    CPUThrottle("10%", window="10s", path="/blamed"),
    store=os.environ["TROUBLE_STORE"],
    trusted_proxies=(),
    interruptible=bool(os.environ.get("TROUBLE_INTERRUPTIBLE")),
)

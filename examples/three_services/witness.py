"""Two middlewares that show the demo what happened, independently of guardrails' counters."""

import fcntl
import os
import time
from contextlib import suppress
from itertools import count
from pathlib import Path


def name_decisions(app):
    """The outermost one: say in headers which worker answered, and which guard refused."""

    def named(environ, start_response):
        def start(status, headers, *exc_info):
            decision = environ.get("guardrails.decision")
            told = [("X-Worker", str(os.getpid()))]
            if decision is not None and not decision.admitted:
                told.append(("X-Refused-By", decision.guard))
            return start_response(status, [*headers, *told], *exc_info)

        return app(environ, start)

    return named


def count_at_once(app, path):
    """The innermost one: each request to `path` takes the first free desk of the folder DEMO_DESKS.

    A desk is a locked file. All workers share the desks, and the kernel frees those of a killed worker.
    A new desk is added when none is free, so in the end their number is how many requests were served
    at once. Desks of a killed worker are waited for: on a busy machine its threads do nothing any more,
    but take a while to end.
    """
    folder = os.environ.get("DEMO_DESKS")

    def counted(environ, start_response):
        if folder is None or environ["PATH_INFO"] != path:
            return app(environ, start_response)
        with sit_down(Path(folder)):
            return app(environ, start_response)

    return counted


def sit_down(folder):
    deadline = time.monotonic() + 10
    while True:
        desks = sorted(folder.iterdir())
        for path in desks:
            if desk := lock(path):
                return desk
        if time.monotonic() > deadline or not any(map(is_of_a_killed_worker, desks)):
            break
        time.sleep(0.005)
    return next(filter(None, (lock(folder / f"desk-{number}") for number in count(1))))


def lock(path):
    desk = path.open("a")
    try:
        fcntl.flock(desk, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        desk.close()
        return None
    print(os.getpid(), file=desk, flush=True)
    return desk


def is_of_a_killed_worker(path):
    """Whether the process that took the desk last is dead, or has not written its pid yet."""
    with suppress(OSError, IndexError):
        pid = path.read_text().split()[-1]
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True

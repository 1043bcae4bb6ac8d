"""Two witnesses that tell the demo what happened, independently of guardrails' counters."""

import fcntl
import os
import time
from contextlib import suppress
from itertools import count
from pathlib import Path


def name_decisions(app):
    """Outermost: say in headers which worker answered, and which guard refused."""

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
    """Innermost: each request to `path` sits at the first free desk of the folder DEMO_DESKS.

    A desk is a locked file, so all workers share them, and the kernel frees a killed worker's. As
    many desks as there are in the end, so many requests were served at once. A new one is brought in
    when none is free, but for those of a killed worker: on a busy machine its threads take a while
    to be gone, though they do nothing any more.
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
    """Whether who sat down there last is a zombie, or gone, or has yet to write who he is."""
    with suppress(OSError, IndexError):
        pid = path.read_text().split()[-1]
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True

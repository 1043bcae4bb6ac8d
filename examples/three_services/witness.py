"""Two witnesses that tell the demo what happened, independently of guardrails' counters."""

import fcntl
import os
import time
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
    many desks as there are in the end, so many requests were served at once. A new one is only
    brought in when none was free for a tenth of a second: on a busy machine the threads of a killed
    worker take up to half of that to be gone, though they do nothing any more.
    """
    folder = os.environ.get("DEMO_DESKS")

    def counted(environ, start_response):
        if folder is None or environ["PATH_INFO"] != path:
            return app(environ, start_response)
        with sit_down(Path(folder)):
            return app(environ, start_response)

    return counted


def sit_down(folder):
    deadline = time.monotonic() + 0.1
    while time.monotonic() < deadline:
        for path in sorted(folder.iterdir()):
            if desk := lock(path):
                return desk
        time.sleep(0.005)
    return next(filter(None, (lock(folder / f"desk-{number}") for number in count(1))))


def lock(path):
    desk = path.open("ab")
    try:
        fcntl.flock(desk, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        desk.close()
        return None
    return desk

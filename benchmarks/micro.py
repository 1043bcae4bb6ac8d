"""One request through the middleware, `enter`, a refusal, and the peers, side by side.

`python benchmarks/micro.py FILE SECONDS` runs one worker process of the benchmark, and leaves a
suite of pyperf's in FILE, whose values are those of the same rounds in all its benchmarks.
"""

import copy
import sys
from contextlib import ExitStack
from time import perf_counter

import peers
import pyperf
from subjects import (
    AGENTS,
    ENVIRON,
    Counting,
    decision_of,
    four_guards,
    guarded,
    hello,
    own_store,
    serve,
    without_lock,
)
from timing import interleave, repeated

BANNED = "203.0.113.66"
OPEN_REQUESTS = 64


def contestants(stack):
    """{name: work} of everything that is measured here."""
    store = stack.enter_context(own_store())
    lockless = stack.enter_context(own_store())
    flock = stack.enter_context(own_store(lock="flock"))
    floor = guarded(lockless)
    without_lock(lockless)
    flask, limited = peers.flask_app().wsgi_app, peers.limited_flask_app().wsgi_app
    apps = {
        "app": hello,
        "app + guardrails": guarded(store),
        "app + guardrails, no lock": floor,
        "app + guardrails, flock": guarded(flock),
        "app + guardrails, memory store": guarded("memory:"),
        "Flask": flask,
        "Flask + Flask-Limiter": limited,
        "Flask + guardrails": guarded(stack.enter_context(own_store()), flask),
        "refusal": banning(stack.enter_context(own_store())),
    }
    work = {name: requests(app) for name, app in apps.items() if name != "refusal"}
    work["refusal"] = requests(apps["refusal"], REMOTE_ADDR=BANNED)
    work["limits hit()"] = repeated(peers.limits_hit())
    work["enter"] = enters(stack.enter_context(own_store()))
    work["leave"] = enters(stack.enter_context(own_store()), leaving=True)
    work["enter, no lock"] = enters(stack.enter_context(own_store()), lock=False)
    return work


def requests(app, **facts):
    """A contestant that serves requests."""
    environ = ENVIRON | facts

    def work(count):
        for _ in range(count):
            serve(app, environ.copy())

    return work


def banning(store):
    """An app with the same guards, of which one has banned a client already."""
    app = guarded(store, guards=four_guards(ban="1d"))
    decision_of(app, REMOTE_ADDR=BANNED, HTTP_USER_AGENT=AGENTS[0])
    if decision_of(app, REMOTE_ADDR=BANNED).admitted:
        raise SystemExit("benchmark: the client that should be banned is not")
    return app


def enters(store, *, lock=True, leaving=False):
    """A contestant that enters with four guards, and leaves; only one of both is timed."""
    watched = Counting(store)
    guarded(watched)
    fresh = copy.copy(watched.open_request)
    fresh.row, fresh.generation, fresh.entered = -1, 0, False
    if not lock:
        without_lock(store)

    def work(count):
        entering = left = 0.0
        while count > 0:
            open_requests = [copy.copy(fresh) for _ in range(min(count, OPEN_REQUESTS))]
            started = perf_counter()
            for open_request in open_requests:
                store.enter(open_request)
            entered = perf_counter()
            for open_request in open_requests:
                store.leave(open_request)
            entering += entered - started
            left += perf_counter() - entered
            count -= OPEN_REQUESTS
        return left if leaving else entering

    return work


def calls_per_request():
    """Calls to the store for one request: ours, and Flask-Limiter's for its four limits."""
    with own_store() as store:
        watched = Counting(store)
        app = guarded(watched)
        watched.calls = dict.fromkeys(watched.calls, 0)
        serve(app, ENVIRON.copy())
    limited = peers.limited_flask_app().wsgi_app
    theirs = peers.round_trips(limited, lambda app: serve(app, ENVIRON.copy()))
    return watched.calls, theirs


def measure(seconds):
    with ExitStack() as stack:
        return interleave(contestants(stack), seconds)


def main():
    path, seconds = sys.argv[1], float(sys.argv[2])
    suite = [
        pyperf.Benchmark([pyperf.Run(values, metadata={"name": name, "unit": "second"})])
        for name, values in measure(seconds).items()
    ]
    pyperf.BenchmarkSuite(suite).dump(path, replace=True)


if __name__ == "__main__":
    main()

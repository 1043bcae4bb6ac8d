"""`enter` in a process where two threads keep the interpreter busy. Prints one JSON object.

`python benchmarks/threads.py SECONDS`
"""

import copy
import json
import sys
import threading
from contextlib import ExitStack
from statistics import median, quantiles
from time import perf_counter

from subjects import Counting, guarded, own_store, without_lock

BUSY_THREADS = 2
TURN_SECONDS = 0.25
OPEN_REQUESTS = 64


def measure(seconds):
    """{lock: the median and the 99th percentile of one enter}"""
    with ExitStack() as stack:
        stores = {
            "mutex": stack.enter_context(own_store()),
            "flock": stack.enter_context(own_store(lock="flock")),
            "no lock": stack.enter_context(own_store()),
        }
        open_requests = {name: _visit(store) for name, store in stores.items()}
        without_lock(stores["no lock"])
        taken = {name: [] for name in stores}
        with _busy_threads():
            until = perf_counter() + seconds
            while perf_counter() < until:
                for name, store in stores.items():
                    taken[name] += _turn(store, open_requests[name])
    return {
        name: {"median": median(times), "p99": quantiles(times, n=100)[98], "count": len(times)}
        for name, times in taken.items()
    }


def _visit(store):
    watched = Counting(store)
    guarded(watched)
    fresh = copy.copy(watched.open_request)
    fresh.row, fresh.generation, fresh.entered = -1, 0, False
    return fresh


def _turn(store, fresh):
    times = []
    until = perf_counter() + TURN_SECONDS
    while perf_counter() < until:
        open_requests = [copy.copy(fresh) for _ in range(OPEN_REQUESTS)]
        for open_request in open_requests:
            started = perf_counter()
            store.enter(open_request)
            times.append(perf_counter() - started)
        for open_request in open_requests:
            store.leave(open_request)
    return times


class _busy_threads:  # noqa: N801 - reads as a function
    def __enter__(self):
        self.stop = False
        self.threads = [threading.Thread(target=self._spin) for _ in range(BUSY_THREADS)]
        for thread in self.threads:
            thread.start()

    def __exit__(self, *error):
        self.stop = True
        for thread in self.threads:
            thread.join()

    def _spin(self):
        number = 1
        while not self.stop:
            for _ in range(1000):
                number = number * 1_103_515_245 % 2**31


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]))))

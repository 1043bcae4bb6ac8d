"""What many clients cost: time by how many there are, and memory. Prints one JSON object.

`python benchmarks/clients.py SECONDS`
"""

import itertools
import json
import os
import random
import sys
import tracemalloc
from contextlib import ExitStack
from time import perf_counter

import peers
from subjects import ENVIRON, Counting, guarded, own_store, serve
from timing import interleave

from guardrails.client.identity import Client
from guardrails.client.networks import parse_address
from guardrails.store import layout
from guardrails.store.contract import Debit
from guardrails.store.lifecycle import DEFAULT_ROWS
from guardrails.testing import hello

MOST = 1_000_000
POPULATIONS = (1_000, 10_000, 100_000, MOST)
LIVE_MICROSECONDS = 100_000_000
AT_A_TIME = 500
SIZES = (10_000, 50_000, 100_000, 1_000_000)
WEIGHED = 5_000


def address_of(number):
    """Addresses all over the place, each client its own."""
    number = number * 2_654_435_761 % 2**24
    return f"11.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def growth(seconds):
    """What a request costs among so many clients, each of which has live state in the store."""
    name = f"bench-{os.getpid()}-clients"
    with ExitStack() as stack:
        work = {}
        for population in POPULATIONS:
            # A store of its own over the same file, so that each has its own memo.
            store = stack.enter_context(own_store(name=name, clients=MOST))
            watched = Counting(store)
            app = guarded(watched)
            work[population] = _random_requests(app, population)
        filled_in = _fill(store, watched.open_request)
        work[0] = _random_requests(hello, 1_000)
        for population in POPULATIONS[:2]:
            _ask_for_all(work[population], population)
        taken = interleave(work, seconds)
        evicted = store.alarms().get("evicted", 0)
    return {"taken": taken, "evicted": evicted, "filled in": filled_in}


def _random_requests(app, population):
    choose = random.Random(population).randrange

    def work(count):
        environs = [ENVIRON | {"REMOTE_ADDR": address_of(choose(population))} for _ in range(count)]
        started = perf_counter()
        for environ in environs:
            serve(app, environ)
        return perf_counter() - started

    return work


def _ask_for_all(work, population):
    for _ in range(3):
        work(population)


def _fill(store, open_request):
    """Give every client live meters, through the verb that charges after the fact."""
    meters = [meter for keyed in open_request.requirements for meter in keyed.requirement.meters]
    started = perf_counter()
    numbers = iter(range(MOST))
    while batch := list(itertools.islice(numbers, AT_A_TIME)):
        keys = [Client(parse_address(address_of(number))).key for number in batch]
        store.update(
            open_request, [Debit(meter, key, LIVE_MICROSECONDS) for key in keys for meter in meters]
        )
    return perf_counter() - started


def memory():
    """Bytes of the store's file by clients, and what a client costs limits in each worker."""
    files = {clients: layout.plan(clients, DEFAULT_ROWS).size for clients in SIZES}
    cell = layout.plan(SIZES[0], DEFAULT_ROWS).sections["cells"].stride
    hit = peers.four_limits()
    hit(address_of(WEIGHED))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(WEIGHED):
        hit(address_of(number))
    limiter = (tracemalloc.get_traced_memory()[0] - before) / WEIGHED
    tracemalloc.stop()
    return {"files": files, "cell": cell, "limiter": limiter}


if __name__ == "__main__":
    print(json.dumps({"growth": growth(float(sys.argv[1])), "memory": memory()}))

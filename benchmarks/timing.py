"""Side by side: every contestant gets a short turn in each round, so that noise hits them all.

The machine that this was made on is shared, and figures taken one after another differ more from
moment to moment than the contestants do. What others do to a turn only ever makes it longer, so what
is quoted is the tenth percentile of all turns: what it takes when it is let be.
"""

import gc
from statistics import quantiles
from time import perf_counter

TURN_SECONDS = 0.003
WARM_UP_SECONDS = 0.05


def interleave(contestants, seconds, least_rounds=10):
    """Seconds per call of each contestant, one value per round: {name: [value, ...]}.

    contestants: {name: callable(count)}, which does the work `count` times, and may return the
    seconds that count, where not all of it does.
    """
    turns = {name: _calls_per_turn(work) for name, work in contestants.items()}
    taken = {name: [] for name in contestants}
    until = perf_counter() + seconds
    order = list(contestants)
    gc.collect()
    while perf_counter() < until or len(taken[order[0]]) < least_rounds:
        for name in order:
            count = turns[name]
            taken[name].append(_timed(contestants[name], count) / count)
        order.reverse()
    return taken


def repeated(call):
    """A contestant that makes one call again and again."""

    def work(count):
        for _ in range(count):
            call()

    return work


def quiet(values):
    """What it takes when nobody disturbs."""
    return quantiles(values, n=10)[0]


def _timed(work, count):
    started = perf_counter()
    own = work(count)
    return own if own is not None else perf_counter() - started


def _calls_per_turn(work):
    """How many calls fill a turn; finding out warms everything up."""
    count = 1
    until = perf_counter() + WARM_UP_SECONDS
    while True:
        started = perf_counter()
        work(count)
        lasted = perf_counter() - started
        if perf_counter() > until:
            return max(1, int(count * TURN_SECONDS / max(lasted, 1e-9)))
        if lasted < TURN_SECONDS:
            count *= 2

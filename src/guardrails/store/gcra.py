"""The arithmetic of meters: pure functions of a stored word, the present instant and the meter.

A meter follows the generic cell rate algorithm (ITU-T I.371, annex A) in its virtual scheduling form.
That is a leaky bucket which stores one number: the theoretical arrival time, `tat`, at which the
bucket will have run empty.

    base   = max(tat, now)             an instant that has passed means an empty bucket
    excess = base + need - now         how full the bucket would be, in microseconds
    admitted if excess <= limit (+ slack, with a delay of excess - limit)
    charged: tat = base + cost

The stored word has the instant in its upper 52 bits and a mark in its lower 12. The mark
REFUSED_UNTIL_RESUME means that the key was refused, and is refused until its excess is at most
`resume`. A word whose instant has passed is free.
"""

from guardrails.store.contract import Meter

MARK_BITS = 12
REFUSED_UNTIL_RESUME = 1


def meter_base(word: int, now: int, horizon: int) -> int:
    """Return the later of the stored instant and now. An instant beyond the horizon is ignored."""
    tat = word >> MARK_BITS
    return tat if now < tat <= now + horizon else now


def meter_excess(word: int, now: int, meter: Meter) -> int:
    """Return how full the bucket would be with the request, in microseconds."""
    return meter_base(word, now, meter.horizon) + meter.need - now


def meter_limit(word: int, now: int, meter: Meter) -> int:
    """Return how full it may be, in microseconds: `resume` for a marked key, `limit` otherwise."""
    ahead = now < word >> MARK_BITS <= now + meter.horizon
    return meter.resume if ahead and word & REFUSED_UNTIL_RESUME else meter.limit


def meter_word(tat: int, *, marked: bool = False) -> int:
    """Return the word that stores an instant, and the mark."""
    return tat << MARK_BITS | (REFUSED_UNTIL_RESUME if marked else 0)

"""The arithmetic of meters: pure functions of (state, now, figures).

A meter follows the generic cell rate algorithm (ITU-T I.371, annex A) in its virtual scheduling
form, which is a leaky bucket that stores one number: the theoretical arrival time, `tat`, the
instant at which the bucket will have run empty.

    base   = max(tat, now)             an instant that has passed says nothing
    excess = base + need - now         how full the bucket would be, in microseconds
    admitted if excess <= limit (+ slack, with a delay of excess - limit)
    charged: tat = base + cost

State is one word. Its upper 52 bits are an instant, its lower 12 a mark ("was refused, and has to
sink to `resume` first"). A word whose instant has passed is free.
"""

from guardrails.store.contract import Meter

MARK_BITS = 12
REFUSED_UNTIL_RESUME = 1


def meter_base(word: int, now: int, horizon: int) -> int:
    """The instant that counts: now, unless the stored one is ahead and sound."""
    tat = word >> MARK_BITS
    return tat if now < tat <= now + horizon else now


def meter_excess(word: int, now: int, meter: Meter) -> int:
    """How full the bucket would be, were the request admitted without a charge yet."""
    return meter_base(word, now, meter.horizon) + meter.need - now


def meter_limit(word: int, now: int, meter: Meter) -> int:
    """What the excess is held against: `resume` for a marked key, `limit` otherwise."""
    ahead = now < word >> MARK_BITS <= now + meter.horizon
    return meter.resume if ahead and word & REFUSED_UNTIL_RESUME else meter.limit


def meter_word(tat: int, *, marked: bool = False) -> int:
    """The word that stores an instant."""
    return tat << MARK_BITS | (REFUSED_UNTIL_RESUME if marked else 0)

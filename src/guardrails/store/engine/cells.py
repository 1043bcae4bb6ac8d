"""Open addressing in shared words: pairs of (keyed hash, word), found within `PROBE` places.

A window is always scanned whole, so places may fall free in any order and no tombstone is needed.
"""

from guardrails.store.gcra import MARK_BITS
from guardrails.store.layout import PROBE, Section

_WINDOW = 2 * PROBE


class Cells:
    """One table. A place is the index of a key's 64-bit word; the word behind it is its state."""

    def __init__(self, words: memoryview, section: Section) -> None:
        self.words = words
        self.first = section.word
        self.mask = section.records - PROBE

    def find(self, key: int) -> int:
        """The key's place, or -1."""
        home = self.first + ((key & self.mask) << 1)
        words = self.words
        if words[home] == key:
            return home
        keys = words[home : home + _WINDOW : 2].tolist()
        return home + 2 * keys.index(key) if key in keys else -1

    def take(self, key: int, now: int) -> tuple[int, bool]:
        """A place for a key that has none, and whether a live word had to go for it.

        Free is a place whose instant has passed; when none is, the one nearest its end goes.
        Whoever dies here leaves a free place: the old word goes first, then comes the key.
        """
        home = self.first + ((key & self.mask) << 1)
        words = self.words
        states = words[home + 1 : home + _WINDOW : 2].tolist()
        ends_first = min(states)
        place = home + 2 * states.index(ends_first)
        words[place + 1] = 0
        words[place] = key
        return place, ends_first >> MARK_BITS > now

    def clear(self) -> None:
        """Free every place."""
        last = self.first + 2 * (self.mask + PROBE)
        for index in range(self.first + 1, last, 2):
            self.words[index] = 0


class SlotCounts(Cells):
    """How many rows hold each slot. A place whose total is 0 is free; none is ever evicted."""

    def total(self, key: int) -> int:
        """How many hold it."""
        place = self.find(key)
        return self.words[place + 1] if place >= 0 else 0

    def add(self, key: int, count: int) -> bool:
        """Change a total, by 1 or by -1; False when there is no place for a new one."""
        home = self.first + ((key & self.mask) << 1)
        place = home if self.words[home] == key else self.find(key)
        if place < 0:
            states = self.words[home + 1 : home + _WINDOW : 2].tolist()
            if 0 not in states:
                return False
            place = home + 2 * states.index(0)
            self.words[place] = key
        self.words[place + 1] = max(0, self.words[place + 1] + count)
        return True

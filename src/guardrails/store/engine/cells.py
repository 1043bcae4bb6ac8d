"""A hash table in shared memory: open addressing, each entry a keyed hash and a word.

A key's entry is one of the `PROBE` places that follow its home. All of them are always examined, so
places may become free in any order, and no tombstones are needed.
"""

from guardrails.store.gcra import MARK_BITS
from guardrails.store.layout import PROBE, Section

_WINDOW = 2 * PROBE


class Cells:
    """One table. A place is the index of an entry's hash; the word after it is the entry's word."""

    def __init__(self, words: memoryview, section: Section) -> None:
        self.words = words
        self.first = section.word
        self.mask = section.records - PROBE

    def find(self, key: int) -> int:
        """Return the key's place, or -1."""
        home = self.first + ((key & self.mask) << 1)
        words = self.words
        if words[home] == key:
            return home
        keys = words[home : home + _WINDOW : 2].tolist()
        return home + 2 * keys.index(key) if key in keys else -1

    def take(self, key: int, now: int) -> tuple[int, bool]:
        """Give a place to a key that has none. Return it, and whether an entry was evicted for it.

        A place is free if its instant has passed. If none is free, the entry whose instant passes first
        is evicted. The old word is cleared before the key is written, so a process that is killed
        between the two leaves a free place.
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
    """How many rows hold each slot. A place whose count is 0 is free; no entry is ever evicted."""

    def total(self, key: int) -> int:
        """Return how many rows hold a slot."""
        place = self.find(key)
        return self.words[place + 1] if place >= 0 else 0

    def add(self, key: int, count: int) -> bool:
        """Change a count by 1 or -1. Return False if there is no place for a new one."""
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

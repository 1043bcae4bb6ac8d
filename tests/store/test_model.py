"""The shared store answers exactly as the memory store does, whatever is done to both."""

import copy
import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from short_forms import MINUTE, SECOND, ban, cpu_meter, meter, private_store, requirement, slot

from guardrails.store.contract import Debit, KeyedRequirement, RouteRequirements, StoreRequest
from guardrails.store.memory import MemoryStore
from guardrails.store.records import InFlight
from guardrails.testing import Clock

CPU = cpu_meter(window=3 * SECOND, resume=0.5)
EARLY = slot("early", limit=2, max_hold=5 * SECOND)
REQUIREMENTS = {
    "rate": requirement(meter("rate", count=2, burst=3), guard="rate"),
    "two rates": requirement(
        meter("fast", burst=2), meter("slow", period=MINUTE, burst=5), guard="two"
    ),
    "wait": requirement(meter("wait", wait=2 * SECOND), guard="wait", wait=2 * SECOND),
    "too dear": requirement(meter("dear", burst=2, cost=3), guard="dear"),
    "cpu": requirement(CPU, guard="cpu"),
    "cap": requirement(slot("cap", limit=2), guard="cap"),
    "early": requirement(EARLY, guard="early"),
    "bans": requirement(meter("strict", burst=2), guard="bans", **ban("bans", lasts=7 * SECOND)),
    "bans nobody": requirement(
        meter("strict", burst=2), guard="bans", **(ban("bans", lasts=7 * SECOND) | {"ban_for": 0})
    ),
    "cpu bans": requirement(
        cpu_meter("cpu 2", window=SECOND), guard="cpu bans", **ban("cpu", lasts=2 * SECOND)
    ),
    "ban only": requirement(guard="bans", ban_only=True, **ban("bans", lasts=7 * SECOND)),
    "refused": requirement(guard="refused", refused=True, **ban("refused", lasts=3 * SECOND)),
}
GUARDS = sorted({each.guard for each in REQUIREMENTS.values()})
KEYS = [b"one", b"two", b""]
GONE = InFlight(0, 0, 0.0, "", "", "", "", 0)


class StoresAgree(RuleBasedStateMachine):
    requests_made = Bundle("requests_made")

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.memory = MemoryStore(self.clock)
        self.shared = private_store(self.clock, clients=512, rows=32)
        self.both("declare", GUARDS)
        self.entered = 0
        self.known = {}

    def recurring(self, names, dry, resource):
        """The same object for the same requirements and resource, as the middleware gives it."""
        requirements = RouteRequirements(
            KeyedRequirement(REQUIREMENTS[name], None, name in dry) for name in names
        )
        return self.known.setdefault((names, dry, resource), requirements)

    def teardown(self):
        self.shared.close()

    def both(self, verb, *arguments, **options):
        """Do the same to both, and compare what they say."""
        answers = [
            getattr(store, verb)(
                *(pair[side] if isinstance(pair, tuple) else pair for pair in arguments), **options
            )
            for side, store in enumerate((self.memory, self.shared))
        ]
        expected, found = (
            answer._replace(number=0) if hasattr(answer, "number") else answer for answer in answers
        )
        assert found == expected
        return answers[0]

    @rule(
        target=requests_made,
        # A guard asks a request once, so no request has the same meters twice.
        names=st.lists(
            st.sampled_from(sorted(REQUIREMENTS)),
            max_size=4,
            unique_by=lambda name: tuple(each.name for each in REQUIREMENTS[name].meters) or name,
        ),
        key=st.sampled_from(KEYS),
        ban_key=st.sampled_from(KEYS),
        dry=st.sets(st.sampled_from(sorted(REQUIREMENTS)), max_size=2),
        may_wait=st.booleans(),
        final=st.booleans(),
        recurring=st.booleans(),
        resource=st.sampled_from(["/p", "/q", "/" + "x" * 200]),
    )
    def enter(self, names, key, ban_key, dry, may_wait, final, recurring, resource):
        if self.entered >= 30:
            return None
        open_request = StoreRequest(
            self.recurring(tuple(names), frozenset(dry), resource)
            if recurring
            else [KeyedRequirement(REQUIREMENTS[name], key, name in dry) for name in names],
            key=key,
            ban_key=ban_key,
            client="192.0.2.1",
            method="GET",
            host="h",
            path="/p",
            resource=resource,
            may_wait=may_wait,
            pid=os.getpid(),
        )
        pair = (open_request, copy.copy(open_request))
        self.both("enter", pair, final=final)
        assert pair[0].entered == pair[1].entered
        self.entered += pair[0].entered
        return pair

    @rule(pair=requests_made, name=st.sampled_from(sorted(REQUIREMENTS)), key=st.sampled_from(KEYS))
    def enter_again(self, pair, name, key):
        if pair is None or not pair[0].entered:
            return
        if not self.is_in_flight(pair):
            return
        for open_request in pair:
            open_request.requirements = [KeyedRequirement(REQUIREMENTS[name], key, False)]
        if sum(shown.slots for shown in self.memory.requests()) < 8:
            self.both("enter", pair)

    @rule(pair=requests_made, amount=st.integers(0, 20 * SECOND), key=st.sampled_from(KEYS))
    def leave(self, pair, amount, key):
        if pair is not None:
            before = self.is_in_flight(pair)
            self.both("leave", pair, [Debit(CPU, key, amount)] if amount else [])
            self.entered -= before

    @rule(
        burnt=st.sampled_from([SECOND, 2 * SECOND, 4 * SECOND, 60 * SECOND]),
        pauses=st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.6, 2.5]), min_size=1, max_size=4),
        dry=st.booleans(),
    )
    def charge_and_retry(self, burnt, pauses, dry):
        """CPU is charged, and the client tries again while its bucket empties."""
        for store in (self.memory, self.shared):
            store.update(StoreRequest([], pid=os.getpid()), [Debit(CPU, b"one", burnt)])
        for pause in pauses:
            self.clock.advance(pause)
            pair = tuple(
                StoreRequest([KeyedRequirement(REQUIREMENTS["cpu"], b"one", dry)], pid=os.getpid())
                for _ in range(2)
            )
            self.both("enter", pair)
            self.both("leave", pair)

    @rule(pair=requests_made, amount=st.integers(1, 2 * SECOND), release=st.booleans())
    def update(self, pair, amount, release):
        if pair is not None and self.is_in_flight(pair):
            self.both("update", pair, [Debit(CPU, b"one", amount)], [EARLY] if release else [])

    @rule(
        pair=requests_made,
        amount=st.integers(0, 20 * SECOND),
        ban_for=st.sampled_from([0, 2 * SECOND, MINUTE]),
    )
    def penalize(self, pair, amount, ban_for):
        if pair is not None:
            shown = [
                next((r for r in store.requests() if r.generation == open_request.generation), GONE)
                for store, open_request in zip((self.memory, self.shared), pair, strict=True)
            ]
            self.both("penalize", tuple(shown), amount, ban_for)

    @rule(seconds=st.one_of(st.floats(0, 3), st.sampled_from([0.25, 0.5, 1, 5.000001, 60])))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @rule(word=st.sampled_from(["on", "on", "dry-run", "off"]), guard=st.sampled_from([None, *GUARDS]))
    def switch(self, word, guard):
        self.both("switch", word, guard)

    @rule()
    def reset(self):
        self.both("reset")

    @invariant()
    def they_show_the_same(self):
        assert self.shared.slots_held() == self.memory.slots_held()
        shown = [
            sorted(each._replace(generation=0, row=0) for each in store.requests())
            for store in (self.memory, self.shared)
        ]
        assert shown[0] == shown[1]

    @invariant()
    def they_counted_the_same(self):
        counted = [
            {name: counters for name, counters in store.counters().items() if any(counters)}
            for store in (self.memory, self.shared)
        ]
        assert counted[0] == counted[1]

    def is_in_flight(self, pair):
        return pair[0].generation in {shown.generation for shown in self.memory.requests()}


TestStoresAgree = StoresAgree.TestCase
TestStoresAgree.settings = settings(
    max_examples=min(150, 3 * settings().max_examples), stateful_step_count=40, deadline=None
)

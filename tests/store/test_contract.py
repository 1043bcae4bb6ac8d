"""What every store does. The memory store is the specification, and the others must agree with it."""

import os
import time

import pytest
from short_forms import (
    MINUTE,
    SECOND,
    ban,
    cpu_meter,
    meter,
    open_request,
    private_store,
    requirement,
    slot,
)

from guardrails.errors import ConfigurationError, StoreError
from guardrails.store.contract import MOST_SLOTS, Debit
from guardrails.store.memory import MemoryStore


def admitted(store, *requirements, **options):
    return store.enter(open_request(*requirements, **options)).admitted


def test_a_meter_admits_its_burst_and_then_one_an_interval(store, clock):
    limit = requirement(meter(count=2, burst=3))
    assert [admitted(store, limit) for _ in range(4)] == [True, True, True, False]
    clock.advance(0.5)
    assert [admitted(store, limit) for _ in range(2)] == [True, False]


def test_a_refusal_says_when_it_would_admit_and_that_is_true(store, clock):
    limit = requirement(meter(count=1, period=7 * SECOND))
    store.enter(open_request(limit))
    (refusal,) = store.enter(open_request(limit)).refusals
    assert refusal.retry == 7 * SECOND
    clock.advance(6.999999)
    assert not admitted(store, limit)
    clock.advance(0.000001)
    assert admitted(store, limit)


def test_a_refused_request_charges_nothing_anywhere(store, clock):
    slow, fast = requirement(meter("slow")), requirement(meter("fast", burst=2), guard="other")
    store.enter(open_request(slow))
    assert not admitted(store, fast, slow)
    assert [admitted(store, fast) for _ in range(3)] == [True, True, False]


def test_keys_do_not_share_a_meter(store):
    limit = requirement(meter())
    assert admitted(store, limit, key=b"one")
    assert admitted(store, limit, key=b"two")
    assert not admitted(store, limit, key=b"one")


def test_remaining_counts_down_to_nothing(store):
    limit = requirement(meter(count=1, burst=3))
    assert [store.enter(open_request(limit)).remaining for _ in range(4)] == [2, 1, 0, 0]


def test_a_cost_beyond_the_burst_is_refused_for_good(store):
    (refusal,) = store.enter(open_request(requirement(meter(burst=2, cost=3)))).refusals
    assert refusal.never
    assert refusal.retry is None


def test_slack_admits_with_a_delay_where_the_caller_may_wait(store):
    limit = requirement(meter(wait=2 * SECOND))
    assert store.enter(open_request(limit, may_wait=True)).delay == 0
    assert store.enter(open_request(limit, may_wait=True)).delay == SECOND
    assert store.enter(open_request(limit, may_wait=True)).delay == 2 * SECOND
    assert not admitted(store, limit, may_wait=True)
    assert not admitted(store, limit)


def test_a_debit_refuses_until_the_bucket_is_down_to_resume(store, clock):
    cpu = requirement(throttled := cpu_meter(window=10 * SECOND, resume=0.5))
    first = open_request(cpu)
    assert store.enter(first).admitted
    store.leave(first, [Debit(throttled, b"client", 12 * SECOND)])
    (refusal,) = store.enter(open_request(cpu)).refusals
    assert refusal.retry == 7 * SECOND
    clock.advance(6.9)
    assert not admitted(store, cpu)
    clock.advance(0.1)
    assert admitted(store, cpu)


def test_without_a_refusal_the_bucket_may_be_full_to_its_limit(store, clock):
    cpu = requirement(throttled := cpu_meter(window=10 * SECOND))
    first = open_request(cpu)
    store.enter(first)
    store.leave(first, [Debit(throttled, b"client", 9 * SECOND)])
    assert admitted(store, cpu)


def test_a_debit_is_clamped_to_the_horizon(store, clock):
    cpu = requirement(throttled := cpu_meter(window=10 * SECOND))
    first = open_request(cpu)
    store.enter(first)
    store.leave(first, [Debit(throttled, b"client", 1000 * SECOND)])
    assert not admitted(store, cpu)
    clock.advance(45)
    assert admitted(store, cpu)


def test_update_debits_a_request_that_goes_on(store):
    cpu = requirement(throttled := cpu_meter(window=10 * SECOND))
    first = open_request(cpu)
    store.enter(first)
    store.update(first, [Debit(throttled, b"client", 12 * SECOND)])
    assert not admitted(store, cpu)
    assert len(store.requests()) == 1


def test_a_slot_is_held_until_its_request_leaves(store):
    cap = requirement(slot(limit=2))
    first, second = open_request(cap), open_request(cap)
    assert store.enter(first).admitted
    assert store.enter(second).admitted
    assert not admitted(store, cap)
    store.leave(first)
    assert admitted(store, cap)
    assert not admitted(store, cap)


def test_leaving_twice_gives_back_once(store):
    cap = requirement(slot(limit=1))
    first, second = open_request(cap), open_request(cap)
    store.enter(first)
    store.leave(first)
    store.enter(second)
    store.leave(first)
    assert store.slots_held() == {"slot": 1}
    assert not admitted(store, cap)


def test_leaving_without_having_been_admitted_does_nothing(store):
    cap = requirement(slot(limit=1))
    holder, refused = open_request(cap), open_request(cap)
    store.enter(holder)
    assert not store.enter(refused).admitted
    store.leave(refused)
    store.leave(open_request(cap))
    assert store.slots_held() == {"slot": 1}


def test_another_process_cannot_leave_for_this_one(store):
    holder = open_request(requirement(slot()))
    store.enter(holder)
    holder.pid = os.getpid() + 1
    store.leave(holder)
    assert store.slots_held() == {"slot": 1}


def test_update_gives_a_slot_back_before_the_end(store):
    early, late = slot("early"), slot("late")
    first = open_request(requirement(early, late))
    store.enter(first)
    store.update(first, [], [early])
    assert store.slots_held() == {"late": 1}
    store.leave(first)
    assert store.slots_held() == {}


def test_a_slot_held_too_long_is_given_to_the_next(store, clock):
    cap = requirement(slot(limit=1, max_hold=10 * SECOND))
    forgotten = open_request(cap)
    store.enter(forgotten)
    clock.advance(10)
    assert not admitted(store, cap)
    clock.advance(1)
    assert admitted(store, cap)
    store.leave(forgotten)
    assert store.slots_held() == {"slot": 1}
    assert store.alarms()["held_too_long"] == 1


def test_the_retry_for_a_slot_follows_from_how_long_it_is_held(store, clock):
    cap = requirement(slot(limit=2))
    for _ in range(3):
        quick = open_request(cap)
        store.enter(quick)
        clock.advance(30)
        store.leave(quick)
    store.enter(open_request(cap))
    store.enter(open_request(cap))
    (refusal,) = store.enter(open_request(cap)).refusals
    assert refusal.retry == 15 * SECOND


def test_the_retry_for_a_slot_is_a_second_at_least(store):
    cap = requirement(slot())
    store.enter(open_request(cap))
    (refusal,) = store.enter(open_request(cap)).refusals
    assert refusal.retry == SECOND


def test_one_request_holds_eight_slots_and_no_more(store):
    many = [requirement(slot(f"slot {number}")) for number in range(MOST_SLOTS + 1)]
    assert admitted(store, *many[:MOST_SLOTS])
    with pytest.raises(StoreError, match="8 slots"):
        store.enter(open_request(*many, key=b"another"))
    assert sum(store.slots_held().values()) == MOST_SLOTS


def test_a_request_that_enters_again_adds_to_its_row(store):
    outer, inner = requirement(slot("outer")), requirement(slot("inner"), guard="inner")
    both = open_request(outer)
    store.enter(both)
    both.requirements = open_request(inner).requirements
    assert store.enter(both).admitted
    assert len(store.requests()) == 1
    assert store.slots_held() == {"outer": 1, "inner": 1}
    store.leave(both)
    assert store.slots_held() == {}
    assert store.requests() == []


def test_a_refusal_sets_the_ban_and_further_requests_do_not_extend_it(store, clock):
    limit = requirement(meter(), **ban(lasts=20 * MINUTE))
    assert admitted(store, limit)
    (refusal,) = store.enter(open_request(limit)).refusals
    assert refusal.retry == 20 * MINUTE
    clock.advance(19 * 60)
    (refusal,) = store.enter(open_request(limit)).refusals
    assert refusal.banned
    assert refusal.retry == MINUTE
    clock.advance(60)
    assert admitted(store, limit)


def test_a_ban_is_found_by_a_requirement_that_is_only_about_the_ban(store):
    limit = requirement(meter(), **ban())
    elsewhere = requirement(ban_only=True, **ban())
    assert admitted(store, elsewhere)
    store.enter(open_request(limit))
    store.enter(open_request(limit))
    assert not admitted(store, elsewhere)
    assert store.counters()["guard"].admitted == 1


def test_a_refused_requirement_needs_no_meter(store):
    result = store.enter(open_request(requirement(refused=True)))
    assert not result.admitted
    assert result.refusals[0].retry is None
    assert store.counters()["guard"].refused == 1


def test_a_dry_run_refuses_nothing_and_charges_like_the_real_one(store, clock):
    limit = requirement(meter(burst=2))
    outcomes = [store.enter(open_request(limit, dry_run=True)) for _ in range(3)]
    assert all(result.admitted for result in outcomes)
    assert [len(result.dry_run_refusals) for result in outcomes] == [0, 0, 1]
    assert not admitted(store, limit)


def test_a_dry_run_sets_only_a_shadow_of_its_ban(store, clock):
    limit = requirement(meter(), **ban())
    for _ in range(2):
        store.enter(open_request(limit, dry_run=True))
    clock.advance(1)
    result = store.enter(open_request(limit, dry_run=True))
    assert result.dry_run_refusals[0].banned
    assert admitted(store, limit)


def test_a_requirement_in_a_dry_run_charges_nothing_for_a_request_that_another_refuses(store, clock):
    watched = requirement(meter("watched", burst=1), guard="watched")
    enforced = requirement(refused=True)
    entering = open_request(enforced)
    entering.requirements += open_request(watched, dry_run=True).requirements
    assert not store.enter(entering).admitted
    assert admitted(store, watched)


def test_a_refusal_that_is_not_final_leaves_no_trace(store, clock):
    cap = requirement(slot(), **ban())
    holder = open_request(cap)
    store.enter(holder)
    assert not store.enter(open_request(cap), final=False).admitted
    assert store.counters()["guard"].refused == 0
    store.leave(holder)
    assert admitted(store, cap)


def test_a_refusal_that_waiting_for_a_slot_cannot_change_counts_at_once(store, clock):
    limit = requirement(meter(), **ban())
    store.enter(open_request(limit))
    assert not store.enter(open_request(limit, requirement(slot())), final=False).admitted
    assert store.counters()["guard"].refused == 1
    clock.advance(60)
    assert not admitted(store, limit)


def test_a_requirement_that_bans_for_no_time_still_knows_the_ban(store, clock):
    limit = requirement(meter(), **ban())
    harmless = requirement(meter(), **(ban() | {"ban_for": 0}))
    store.enter(open_request(limit))
    assert not admitted(store, harmless)
    clock.advance(1)
    assert [admitted(store, limit), admitted(store, limit)] == [True, False]
    clock.advance(60)
    assert store.enter(open_request(harmless)).refusals[0].banned


def test_the_switch_turns_everything_off_and_what_is_held_is_still_released(store):
    cap = requirement(slot())
    holder = open_request(cap)
    store.enter(holder)
    store.switch("off")
    assert store.enter(open_request(cap)) is None
    store.leave(holder)
    assert store.slots_held() == {}
    store.switch("on")
    assert admitted(store, cap)


def test_the_switch_makes_everything_run_dry(store):
    limit = requirement(meter())
    store.switch("dry-run")
    assert [store.enter(open_request(limit)).admitted for _ in range(2)] == [True, True]
    assert store.counters()["guard"].dry_run_refused == 1


def test_one_guard_can_be_switched(store):
    first, second = requirement(meter("a"), guard="a"), requirement(meter("b"), guard="b")
    store.declare(["a", "b"])
    store.switch("off", guard="a")
    assert admitted(store, first, second)
    result = store.enter(open_request(first, second))
    assert [refusal.keyed.requirement.guard for refusal in result.refusals] == ["b"]
    store.switch("dry-run", guard="b")
    assert admitted(store, first, second)
    assert (store.switch(guard="a"), store.switch(guard="b"), store.switch()) == (
        "off",
        "dry-run",
        "on",
    )


def test_a_guard_that_is_not_there_cannot_be_switched(store):
    """A misspelled name must not be answered "off", and must leave nothing behind."""
    store.declare(["speed-limit /login client"])
    admitted(store, requirement(meter("other"), guard="other"))

    for switch in (
        lambda: store.switch("off", "speed-limit /logn client"),
        lambda: store.switch(guard="speed-limit /logn client"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            switch()
        assert str(caught.value) == (
            "switch: 'speed-limit /logn client' is not a guard of this store: the guards are 'other', "
            "'speed-limit /login client'"
        )
    store.reset()
    assert set(store.counters()) == {"other", "speed-limit /login client"}
    assert store.switch("off", "speed-limit /login client") == "off"


def test_without_any_guard_the_error_says_so(store):
    with pytest.raises(ConfigurationError, match="the guards are none: no worker has served a request"):
        store.switch("off", "login")


def test_a_guard_that_is_declared_again_keeps_its_counters_and_its_switch(store):
    admitted(store, requirement(meter("a"), guard="a"))
    store.switch("dry-run", "a")
    store.declare(["a", "b"])

    assert store.counters()["a"].admitted == 1
    assert store.switch(guard="a") == "dry-run"
    assert store.switch(guard="b") == "on"


def test_each_change_of_a_switch_is_one_warning(store, clock, caplog):
    store.declare(["a"])
    limit = requirement(meter("a"), guard="a")
    for words in (("off", "a"), ("off", "a"), ("dry-run",), ("on",), ("on",)):
        store.switch(*words)
        for _ in range(3):
            clock.advance(2)
            store.enter(open_request(limit))

    assert [record.getMessage().partition(": the ")[2] for record in caplog.records] == [
        "switch of 'a' was set to \"off\"",
        'switch was set to "dry-run"',
        'switch was set to "on"',
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_the_scoreboard_shows_what_is_in_flight(store, clock):
    entering = open_request(requirement(slot()), client="198.51.100.7", path="/morphing/" + "x" * 300)
    store.enter(entering)
    clock.advance(2.5)
    (shown,) = store.requests()
    assert (shown.pid, shown.client, shown.method, shown.host) == (
        os.getpid(),
        "198.51.100.7",
        "GET",
        "example.org",
    )
    assert shown.age_seconds == 2.5
    assert shown.path == ("/morphing/" + "x" * 300)[:128]
    assert shown.slots == 1


def test_a_request_that_asks_for_nothing_still_has_a_row(store):
    quiet = open_request()
    assert store.enter(quiet).admitted
    assert len(store.requests()) == 1
    store.leave(quiet)
    assert store.requests() == []


def test_counters_tell_what_each_guard_did(store):
    limit = requirement(meter(wait=SECOND))
    for _ in range(3):
        store.enter(open_request(limit, may_wait=True))
    assert store.counters()["guard"] == (2, 1, 1, 0)


def test_reset_clears_meters_and_counters_and_keeps_slots(store):
    both = requirement(meter(), slot(limit=2))
    store.enter(open_request(both))
    assert not admitted(store, both)
    store.reset()
    assert store.slots_held() == {"slot": 1}
    assert admitted(store, both)
    assert store.counters()["guard"].admitted == 1


@pytest.mark.parametrize("make", [MemoryStore, private_store])
def test_a_store_sleeps_as_gevent_says_though_it_was_made_before_gevent_was_there(make, monkeypatch):
    slept = []
    store = make()
    monkeypatch.setattr(time, "sleep", slept.append)
    store.sleep(5_000)
    assert slept == [0.005]
    store.close()

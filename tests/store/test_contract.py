"""What every store does. The memory store is the specification; the others must agree."""

import os

import pytest
from asking import MINUTE, SECOND, ban, cpu_meter, demand, meter, slot, tally, visit

from guardrails.errors import StoreError
from guardrails.store.contract import MOST_SLOTS, Debit


def admitted(store, *demands, **options):
    return store.enter(visit(*demands, **options)).admitted


def test_a_meter_admits_its_burst_and_then_one_an_interval(store, clock):
    limit = demand(meter(count=2, burst=3))
    assert [admitted(store, limit) for _ in range(4)] == [True, True, True, False]
    clock.advance(0.5)
    assert [admitted(store, limit) for _ in range(2)] == [True, False]


def test_a_refusal_says_when_it_would_admit_and_that_is_true(store, clock):
    limit = demand(meter(count=1, period=7 * SECOND))
    store.enter(visit(limit))
    (refusal,) = store.enter(visit(limit)).refusals
    assert refusal.retry == 7 * SECOND
    clock.advance(6.999999)
    assert not admitted(store, limit)
    clock.advance(0.000001)
    assert admitted(store, limit)


def test_a_refused_request_charges_nothing_anywhere(store, clock):
    slow, fast = demand(meter("slow")), demand(meter("fast", burst=2), guard="other")
    store.enter(visit(slow))
    assert not admitted(store, fast, slow)
    assert [admitted(store, fast) for _ in range(3)] == [True, True, False]


def test_keys_do_not_share_a_meter(store):
    limit = demand(meter())
    assert admitted(store, limit, key=b"one")
    assert admitted(store, limit, key=b"two")
    assert not admitted(store, limit, key=b"one")


def test_remaining_counts_down_to_nothing(store):
    limit = demand(meter(count=1, burst=3))
    assert [store.enter(visit(limit)).remaining for _ in range(4)] == [2, 1, 0, 0]


def test_a_cost_beyond_the_burst_is_refused_for_good(store):
    (refusal,) = store.enter(visit(demand(meter(burst=2, cost=3)))).refusals
    assert refusal.never
    assert refusal.retry is None


def test_slack_admits_with_a_delay_where_the_caller_may_wait(store):
    limit = demand(meter(wait=2 * SECOND))
    assert store.enter(visit(limit, may_wait=True)).delay == 0
    assert store.enter(visit(limit, may_wait=True)).delay == SECOND
    assert store.enter(visit(limit, may_wait=True)).delay == 2 * SECOND
    assert not admitted(store, limit, may_wait=True)
    assert not admitted(store, limit)


def test_a_debit_refuses_until_the_bucket_is_down_to_resume(store, clock):
    cpu = demand(throttled := cpu_meter(window=10 * SECOND, resume=0.5))
    first = visit(cpu)
    assert store.enter(first).admitted
    store.leave(first, [Debit(throttled, b"client", 12 * SECOND)])
    (refusal,) = store.enter(visit(cpu)).refusals
    assert refusal.retry == 7 * SECOND
    clock.advance(6.9)
    assert not admitted(store, cpu)
    clock.advance(0.1)
    assert admitted(store, cpu)


def test_without_a_refusal_the_bucket_may_be_full_to_its_limit(store, clock):
    cpu = demand(throttled := cpu_meter(window=10 * SECOND))
    first = visit(cpu)
    store.enter(first)
    store.leave(first, [Debit(throttled, b"client", 9 * SECOND)])
    assert admitted(store, cpu)


def test_a_debit_is_clamped_to_the_horizon(store, clock):
    cpu = demand(throttled := cpu_meter(window=10 * SECOND))
    first = visit(cpu)
    store.enter(first)
    store.leave(first, [Debit(throttled, b"client", 1000 * SECOND)])
    assert not admitted(store, cpu)
    clock.advance(45)
    assert admitted(store, cpu)


def test_update_debits_a_request_that_goes_on(store):
    cpu = demand(throttled := cpu_meter(window=10 * SECOND))
    first = visit(cpu)
    store.enter(first)
    store.update(first, [Debit(throttled, b"client", 12 * SECOND)])
    assert not admitted(store, cpu)
    assert len(store.requests()) == 1


def test_a_tally_counts_in_a_window_that_starts_at_the_first_event(store, clock):
    three = demand(tally(limit=3, window=MINUTE))
    assert [admitted(store, three) for _ in range(2)] == [True, True]
    clock.advance(59)
    assert [admitted(store, three) for _ in range(2)] == [True, False]
    clock.advance(1)
    assert admitted(store, three)


def test_a_slot_is_held_until_its_visit_leaves(store):
    cap = demand(slot(limit=2))
    first, second = visit(cap), visit(cap)
    assert store.enter(first).admitted
    assert store.enter(second).admitted
    assert not admitted(store, cap)
    store.leave(first)
    assert admitted(store, cap)
    assert not admitted(store, cap)


def test_leaving_twice_gives_back_once(store):
    cap = demand(slot(limit=1))
    first, second = visit(cap), visit(cap)
    store.enter(first)
    store.leave(first)
    store.enter(second)
    store.leave(first)
    assert store.slots_held() == {"slot": 1}
    assert not admitted(store, cap)


def test_leaving_without_having_been_admitted_does_nothing(store):
    cap = demand(slot(limit=1))
    holder, refused = visit(cap), visit(cap)
    store.enter(holder)
    assert not store.enter(refused).admitted
    store.leave(refused)
    store.leave(visit(cap))
    assert store.slots_held() == {"slot": 1}


def test_another_process_cannot_leave_for_this_one(store):
    holder = visit(demand(slot()))
    store.enter(holder)
    holder.pid = os.getpid() + 1
    store.leave(holder)
    assert store.slots_held() == {"slot": 1}


def test_update_gives_a_slot_back_before_the_end(store):
    early, late = slot("early"), slot("late")
    first = visit(demand(early, late))
    store.enter(first)
    store.update(first, [], [early])
    assert store.slots_held() == {"late": 1}
    store.leave(first)
    assert store.slots_held() == {}


def test_a_slot_held_too_long_is_given_to_the_next(store, clock):
    cap = demand(slot(limit=1, max_hold=10 * SECOND))
    forgotten = visit(cap)
    store.enter(forgotten)
    clock.advance(10)
    assert not admitted(store, cap)
    clock.advance(1)
    assert admitted(store, cap)
    store.leave(forgotten)
    assert store.slots_held() == {"slot": 1}
    assert store.alarms()["held_too_long"] == 1


def test_the_retry_for_a_slot_follows_from_how_long_it_is_held(store, clock):
    cap = demand(slot(limit=2))
    for _ in range(3):
        quick = visit(cap)
        store.enter(quick)
        clock.advance(30)
        store.leave(quick)
    store.enter(visit(cap))
    store.enter(visit(cap))
    (refusal,) = store.enter(visit(cap)).refusals
    assert refusal.retry == 15 * SECOND


def test_the_retry_for_a_slot_is_a_second_at_least(store):
    cap = demand(slot())
    store.enter(visit(cap))
    (refusal,) = store.enter(visit(cap)).refusals
    assert refusal.retry == SECOND


def test_one_request_holds_eight_slots_and_no_more(store):
    many = [demand(slot(f"slot {number}")) for number in range(MOST_SLOTS + 1)]
    assert admitted(store, *many[:MOST_SLOTS])
    with pytest.raises(StoreError, match="8 slots"):
        store.enter(visit(*many, key=b"another"))
    assert sum(store.slots_held().values()) == MOST_SLOTS


def test_a_visit_that_enters_again_adds_to_its_row(store):
    outer, inner = demand(slot("outer")), demand(slot("inner"), guard="inner")
    both = visit(outer)
    store.enter(both)
    both.asks = visit(inner).asks
    assert store.enter(both).admitted
    assert len(store.requests()) == 1
    assert store.slots_held() == {"outer": 1, "inner": 1}
    store.leave(both)
    assert store.slots_held() == {}
    assert store.requests() == []


def test_a_refusal_raises_the_ban_and_knocking_does_not_extend_it(store, clock):
    limit = demand(meter(), **ban(lasts=20 * MINUTE))
    assert admitted(store, limit)
    (refusal,) = store.enter(visit(limit)).refusals
    assert refusal.retry == 20 * MINUTE
    clock.advance(19 * 60)
    (refusal,) = store.enter(visit(limit)).refusals
    assert refusal.banned
    assert refusal.retry == MINUTE
    clock.advance(60)
    assert admitted(store, limit)


def test_a_ban_is_found_by_a_demand_that_only_asks_for_it(store):
    limit = demand(meter(), **ban())
    elsewhere = demand(ban_only=True, **ban())
    assert admitted(store, elsewhere)
    store.enter(visit(limit))
    store.enter(visit(limit))
    assert not admitted(store, elsewhere)
    assert store.counters()["guard"].admitted == 1


def test_a_refused_demand_needs_no_meter(store):
    verdict = store.enter(visit(demand(refused=True)))
    assert not verdict.admitted
    assert verdict.refusals[0].retry is None
    assert store.counters()["guard"].refused == 1


def test_a_dry_run_refuses_nobody_and_charges_like_the_real_one(store, clock):
    limit = demand(meter(burst=2))
    outcomes = [store.enter(visit(limit, dry_run=True)) for _ in range(3)]
    assert all(verdict.admitted for verdict in outcomes)
    assert [len(verdict.dry_run_refusals) for verdict in outcomes] == [0, 0, 1]
    assert not admitted(store, limit)


def test_a_dry_run_raises_only_a_shadow_of_its_ban(store, clock):
    limit = demand(meter(), **ban())
    for _ in range(2):
        store.enter(visit(limit, dry_run=True))
    clock.advance(1)
    verdict = store.enter(visit(limit, dry_run=True))
    assert verdict.dry_run_refusals[0].banned
    assert admitted(store, limit)


def test_a_dry_demand_charges_nothing_for_a_request_that_another_refuses(store, clock):
    watched = demand(meter("watched", burst=1), guard="watched")
    enforced = demand(refused=True)
    asked = visit(enforced)
    asked.asks += visit(watched, dry_run=True).asks
    assert not store.enter(asked).admitted
    assert admitted(store, watched)


def test_a_refusal_that_is_not_final_leaves_no_trace(store, clock):
    cap = demand(slot(), **ban())
    holder = visit(cap)
    store.enter(holder)
    assert not store.enter(visit(cap), final=False).admitted
    assert store.counters()["guard"].refused == 0
    store.leave(holder)
    assert admitted(store, cap)


def test_the_switch_turns_everything_off_and_what_is_held_is_still_released(store):
    cap = demand(slot())
    holder = visit(cap)
    store.enter(holder)
    store.switch("off")
    assert store.enter(visit(cap)) is None
    store.leave(holder)
    assert store.slots_held() == {}
    store.switch("on")
    assert admitted(store, cap)


def test_the_switch_makes_everything_run_dry(store):
    limit = demand(meter())
    store.switch("dry-run")
    assert [store.enter(visit(limit)).admitted for _ in range(2)] == [True, True]
    assert store.counters()["guard"].dry_run_refused == 1


def test_one_guard_can_be_switched(store):
    first, second = demand(meter("a"), guard="a"), demand(meter("b"), guard="b")
    store.switch("off", guard="a")
    assert admitted(store, first, second)
    verdict = store.enter(visit(first, second))
    assert [refusal.ask.demand.guard for refusal in verdict.refusals] == ["b"]
    store.switch("dry-run", guard="b")
    assert admitted(store, first, second)
    assert (store.switch(guard="a"), store.switch(guard="b"), store.switch()) == (
        "off",
        "dry-run",
        "on",
    )


def test_the_scoreboard_shows_what_is_in_flight(store, clock):
    asked = visit(demand(slot()), client="198.51.100.7", path="/morphing/" + "x" * 300)
    store.enter(asked)
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
    quiet = visit()
    assert store.enter(quiet).admitted
    assert len(store.requests()) == 1
    store.leave(quiet)
    assert store.requests() == []


def test_counters_tell_what_each_guard_did(store):
    limit = demand(meter(wait=SECOND))
    for _ in range(3):
        store.enter(visit(limit, may_wait=True))
    assert store.counters()["guard"] == (2, 1, 1, 0)


def test_reset_forgets_the_past_but_not_who_is_there(store):
    both = demand(meter(), slot(limit=2))
    store.enter(visit(both))
    assert not admitted(store, both)
    store.reset()
    assert store.slots_held() == {"slot": 1}
    assert admitted(store, both)
    assert store.counters()["guard"].admitted == 1

"""Saying something once: ever, in a period, for each key, and within bounds."""

from guardrails.once import Once


def test_the_first_time_is_the_only_one():
    once = Once()

    assert [once() for _ in range(3)] == [True, False, False]


def test_each_key_has_a_first_time():
    once = Once()

    assert [once(key) for key in ("a", "b", "a", "c")] == [True, True, False, True]


def test_after_a_period_it_may_be_said_again():
    once = Once(60)

    assert [once("a", now=now) for now in (0, 59, 60, 61, 121)] == [True, False, True, False, True]


def test_the_period_counts_from_the_last_time_that_it_was_said():
    once = Once(60)
    once("a", now=0)
    once("a", now=50)

    assert once("a", now=61)


def test_strangers_who_bring_about_ever_new_keys_are_cut_short():
    once = Once(60, most=3)

    assert [once(key, now=0) for key in range(5)] == [True, True, True, False, False]
    assert once(4, now=61)


def test_without_an_end_the_bound_stays():
    once = Once(most=2)

    assert [once(key, now=1e9 * key) for key in range(4)] == [True, True, False, False]

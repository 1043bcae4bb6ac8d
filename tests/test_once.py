"""Saying something once: ever, once in a period, or once for each key. Time is an argument."""

import pytest

from guardrails.once import Once


def test_each_key_has_its_own_first_time():
    once = Once()
    assert [once("a"), once("b"), once("a"), once(), once()] == [True, True, False, True, False]


def test_after_its_period_a_key_may_be_said_again():
    once = Once(10)
    calls = [(0, 1), (0, 2), (9, 1), (10, 1), (11, 2)]
    assert [once(key, now=now) for now, key in calls] == [True, True, False, True, True]


def test_a_key_that_is_forgotten_may_be_said_again_at_once():
    once = Once(10)
    once("a", now=0)
    once("b", now=0)
    once.forget("a")
    once.forget("c")
    assert [once("a", now=1), once("b", now=1)] == [True, False]


def test_keys_beyond_the_most_are_not_said_until_others_have_expired():
    once = Once(10, most=2)
    calls = [(0, 1), (5, 2), (6, 3), (10, 3), (11, 4)]
    assert [once(key, now=now) for now, key in calls] == [True, True, False, True, False]


@pytest.mark.parametrize("seconds", [10, 0.5])
def test_keys_whose_period_is_over_are_not_remembered(seconds):
    once = Once(seconds, most=1000)
    assert all(once(number, now=number) for number in range(1000))
    assert len(once._said) <= seconds + 1

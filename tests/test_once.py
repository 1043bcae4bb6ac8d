"""Saying something once: ever, once in a period, or once for each key. Time is an argument."""

import sys
import threading

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


def test_threads_that_ask_at_the_same_time_are_all_answered():
    once, answers = Once(60), []
    start = threading.Barrier(4)

    def ask():
        start.wait(60)
        for number in range(2000):
            answers.append(once(number % 50, now=number))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)

    assert len(answers) == 8000


def test_a_clock_that_goes_back_says_nothing_twice():
    once = Once(60)

    assert [once("a", now=now) for now in (100, 50, 159, 160)] == [True, False, False, True]

"""How options are checked: unknown keywords, words, True and False, and options that were renamed."""

import inspect
from typing import Literal

import pytest

import guardrails
from guardrails import BlockAgents, ConfigurationError, SpeedLimit, testing
from guardrails.options import check_keywords, check_word, warn_renamed
from guardrails.request.options import ThrottleOptions


def refused(call, *arguments, **options):
    """The sentence with which a call is refused."""
    with pytest.raises(ConfigurationError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_an_unknown_keyword_of_throttle_names_the_nearest():
    sentence = refused(guardrails.throttle, testing.hello, trusted_proxy=["10.0.0.0/8"])

    assert sentence.startswith("throttle: 'trusted_proxy' is not an option: write trusted_proxies;")


def test_an_unknown_keyword_of_a_guard_that_is_called_is_refused_too():
    sentence = refused(SpeedLimit("1/second"), testing.hello, dryrun=True)

    assert "'dryrun' is not an option: write dry_run;" in sentence


def test_a_keyword_that_resembles_nothing_is_to_be_left_out():
    assert refused(check_keywords, "throttle", ["zzz"], ["store", "exempt"]) == (
        "throttle: 'zzz' is not an option: leave it out; the options are exempt, store"
    )


def test_the_signature_stays_what_editors_show():
    parameters = inspect.signature(guardrails.throttle).parameters

    assert parameters["on_store_error"].default == "fallback"
    assert parameters["store"].kind is inspect.Parameter.KEYWORD_ONLY


def test_the_options_of_a_guard_that_is_called_are_those_of_throttle():
    """They are written twice, for help() and for type checkers."""
    keywords = {
        name: parameter.annotation
        for name, parameter in inspect.signature(guardrails.throttle).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }

    assert keywords == {
        name: reference.__forward_arg__ for name, reference in ThrottleOptions.__annotations__.items()
    }


@pytest.mark.parametrize(
    ("option", "build"),
    [
        ("dry_run", lambda value: SpeedLimit("1/s", dry_run=value)),
        ("dry_run", lambda value: BlockAgents("curl", dry_run=value)),
        ("strict", lambda value: SpeedLimit("4/s", strict=value)),
        ("enabled", lambda value: guardrails.throttle(testing.hello, enabled=value)),
        ("dry_run", lambda value: guardrails.throttle(testing.hello, dry_run=value)),
        ("interruptible", lambda value: guardrails.throttle(testing.hello, interruptible=value)),
        ("dry_run", lambda value: guardrails.watchdog(dry_run=value)),
        ("interrupt", lambda value: guardrails.watchdog(interrupt=value)),
        ("defaults", lambda value: guardrails.rlimits(defaults=value)),
    ],
)
@pytest.mark.parametrize("value", ["no", "false", "", 0, 1, []])
def test_what_is_on_or_off_takes_true_and_false_alone(option, build, value):
    """A text such as "no" from a settings file would count as true."""
    assert refused(build, value) == (
        f"{option}: {value!r} is neither True nor False: write one of them"
    )


@pytest.mark.parametrize("value", ["", "Red", None, True, 1])
def test_a_word_that_is_unknown_is_refused_with_those_that_are(value):
    assert refused(check_word, value, Literal["red", "green", "blue"], "colour") == (
        f'colour: {value!r} is unknown: write "red", "green" or "blue"'
    )


def test_a_renamed_word_works_on_with_a_warning_at_the_users_line():
    with pytest.warns(DeprecationWarning, match=r'on_store_error="deny" is now .*"refuse"') as warned:
        app = guardrails.throttle(testing.hello, on_store_error="deny", store="memory:")

    assert warned[0].filename == __file__
    assert app._admission._on_store_error == "refuse"


def test_a_renamed_option_is_named_with_its_new_name():
    with pytest.warns(DeprecationWarning, match="keep is now backups; the next minor version"):
        warn_renamed("keep", "backups")

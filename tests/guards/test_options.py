"""The options of guards: what editors show, what is refused, and what worked under an earlier name."""

import copy
import dataclasses
import inspect
import pickle
import typing
import warnings

import pytest

from guardrails import (
    BlockAgents,
    ConfigurationError,
    CPUThrottle,
    Guard,
    MaxConcurrentReqs,
    SpeedLimit,
)
from guardrails.guards.base import GuardOptions

OF_EVERY_GUARD = [
    *("name", "path", "methods", "host", "exempt", "exempt_paths"),
    *("status", "dry_run", "ban", "on_error"),
]
OF_COUNTING_GUARDS = [*OF_EVERY_GUARD, "by", "wait"]


def keywords_of(function):
    """The keywords of a function, as `help()` and editors show them."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


@pytest.mark.parametrize(
    ("function", "own", "common"),
    [
        (SpeedLimit, ["burst", "strict", "cost"], OF_COUNTING_GUARDS),
        (MaxConcurrentReqs, ["hold", "max_hold"], OF_COUNTING_GUARDS),
        (CPUThrottle, ["window", "resume", "at_once"], OF_COUNTING_GUARDS),
        (BlockAgents, ["missing"], OF_EVERY_GUARD),
        (BlockAgents.from_file, ["missing"], OF_EVERY_GUARD),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_help_shows_every_option(function, own, common):
    assert sorted(keywords_of(function)) == sorted(own + common)
    assert inspect.Parameter.VAR_KEYWORD not in {
        parameter.kind for parameter in inspect.signature(function).parameters.values()
    }


def test_the_options_that_type_checkers_see_are_those_of_every_guard():
    hints = typing.get_type_hints(Guard)
    of_guard = {item.name: hints[item.name] for item in dataclasses.fields(Guard)}

    assert typing.get_type_hints(GuardOptions) == of_guard


@pytest.mark.parametrize(
    ("build", "start"),
    [
        (lambda: SpeedLimit("1/s", brust=5), "SpeedLimit: 'brust' is not an option: write burst;"),
        (
            lambda: MaxConcurrentReqs(1, methode="GET"),
            "MaxConcurrentReqs: 'methode' is not an option: ",
        ),
        (
            lambda: CPUThrottle("1%", windows=5),
            "CPUThrottle: 'windows' is not an option: write window;",
        ),
        (lambda: BlockAgents("x", by="all"), "BlockAgents: 'by' is not an option: "),
        (
            lambda: BlockAgents.from_file("no-such-file", mising="refuse"),
            "from_file: 'mising' is not an option: write missing;",
        ),
    ],
)
def test_an_unknown_option_is_refused_and_the_nearest_known_one_is_named(build, start):
    with pytest.raises(ConfigurationError) as caught:
        build()

    assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    "build",
    [
        lambda: SpeedLimit("1/s", on_error="deny"),
        lambda: MaxConcurrentReqs(1, on_error="deny"),
        lambda: CPUThrottle("20%", on_error="deny"),
        lambda: BlockAgents("curl", on_error="deny"),
    ],
)
def test_deny_still_means_refuse_and_the_warning_points_at_the_users_line(build):
    """It was the word of version 0.1 for what every other option calls "refuse"."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guard = build()

    assert guard.on_error == "refuse"
    (warning,) = caught
    assert warning.category is DeprecationWarning
    assert 'on_error="deny" is now on_error="refuse"' in str(warning.message)
    assert (warning.filename, warning.lineno) == (__file__, build.__code__.co_firstlineno)


@pytest.fixture
def agents_file(tmp_path):
    file = tmp_path / "agents.txt"
    file.write_text("curl\n")
    return file


def ours(environ):
    """A callable that can be pickled."""
    return environ.get("REMOTE_USER")


@pytest.mark.parametrize(
    "guard",
    [
        SpeedLimit("5/second; 500/hour", name="login", path=["/a"], by="header:X-Key", ban="20m"),
        SpeedLimit("5/second", by=ours, strict=True),
        MaxConcurrentReqs(3, by="client", hold="call"),
        CPUThrottle("20%", at_once=2, resume=0.25),
        BlockAgents("curl", "wget", missing="refuse", status=404),
    ],
    ids=lambda guard: guard.kind,
)
def test_a_guard_can_be_copied_and_pickled(guard):
    assert copy.copy(guard) == guard
    assert copy.deepcopy(guard) == guard
    assert pickle.loads(pickle.dumps(guard)) == guard  # noqa: S301 - made on this line


def test_a_guard_with_a_file_can_be_copied_and_pickled(agents_file):
    guard = BlockAgents.from_file(agents_file, path="/a")

    assert copy.deepcopy(guard) == guard
    assert pickle.loads(pickle.dumps(guard)) == guard  # noqa: S301 - made on this line


def test_deny_with_a_file_warns_too(agents_file):
    with pytest.warns(DeprecationWarning, match="refuse") as caught:
        guard = BlockAgents.from_file(agents_file, on_error="deny")

    assert (guard.on_error, caught[0].filename) == ("refuse", __file__)


def test_a_guard_can_be_made_from_another_with_some_options_replaced():
    guard = SpeedLimit("1/second", path="/login", ban="20m")

    assert dataclasses.replace(guard, path="/reset") == SpeedLimit("1/second", path="/reset", ban="20m")

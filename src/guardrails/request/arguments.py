"""What `throttle()` is given: taken, or refused in a sentence that says what to write."""

from __future__ import annotations

import os
from collections.abc import Sequence

from guardrails.errors import ConfigurationError
from guardrails.guards.base import Guard
from guardrails.guards.bound import BoundGuard
from guardrails.store.contract import DRY_RUN, MOST_SLOTS, OFF, SWITCH_WORDS, Store


def check_guards(guards: Sequence[Guard]) -> Sequence[Guard]:
    """What stands before the app: guards that were built."""
    for guard in guards:
        if not isinstance(guard, Guard):
            raise ConfigurationError(
                f"guards: {guard!r} is not a guard: build one first, as in "
                'throttle(app, SpeedLimit("120/minute"))'
            )
    return guards


def check_store(store: Store) -> Store:
    """A store that was built."""
    if not hasattr(store, "enter") or not hasattr(store, "leave"):
        raise ConfigurationError(
            f'store: {store!r} is not a store: write a URL, such as "memory:" or "shm:NAME"'
        )
    return store


def check_slots(bound_guards: Sequence[BoundGuard]) -> None:
    """A request can hold only so many slots at once."""
    slots = sum(
        len(requirement.slots) for bound in bound_guards if (requirement := bound.usual_requirement)
    )
    if slots > MOST_SLOTS:
        raise ConfigurationError(
            f"guards: {slots} of them cap concurrent requests, and a request can hold {MOST_SLOTS} "
            "slots: use one guard for several paths, as in path=[...], or nest a throttle with a "
            "store= of its own"
        )


def switch_position(enabled: bool, dry_run: bool) -> str:
    """Where the switch stands: GUARDRAILS in the environment, else the arguments."""
    word = os.environ.get("GUARDRAILS")
    if word is None:
        if not enabled:
            return OFF
        return DRY_RUN if dry_run else "on"
    if word not in SWITCH_WORDS:
        raise ConfigurationError(
            f"GUARDRAILS: {word!r} in the environment is not a position of the switch: write "
            "on, dry-run or off, or unset it"
        )
    return word

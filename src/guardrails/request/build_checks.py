"""Checks of the arguments of `throttle()`. A mistake is a ConfigurationError.

setup_checks.py has the checks of what only requests show.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from wsgiref.types import WSGIApplication

from guardrails.errors import ConfigurationError
from guardrails.guards.apps import check_wsgi_app
from guardrails.guards.base import Guard
from guardrails.guards.bound import BoundGuard
from guardrails.options import check_bool
from guardrails.paths import falls_under
from guardrails.store.contract import DRY_RUN, MOST_SLOTS, OFF, ON, SWITCH_WORDS, Store


def check_app(app: Any) -> WSGIApplication:
    """Return the app that `throttle()` wraps. Raises ConfigurationError for what is no WSGI app."""
    if isinstance(app, Guard):
        raise ConfigurationError(
            f"throttle: {app!r} is a guard, and the app comes before the guards: write "
            "throttle(app, guard)"
        )
    checked: WSGIApplication = check_wsgi_app(app, "SpeedLimit", caller="throttle")
    return checked


def check_guards(guards: Sequence[Guard]) -> Sequence[Guard]:
    """Return guards that were built. Raises ConfigurationError for anything else."""
    for guard in guards:
        if isinstance(guard, list | tuple):
            raise ConfigurationError(
                f"guards: {guard!r} is a list, and each guard is an argument: write "
                "throttle(app, *guards)"
            )
        if not isinstance(guard, Guard):
            raise ConfigurationError(
                f"guards: {guard!r} is not a guard: build one first, as in "
                'throttle(app, SpeedLimit("120/minute"))'
            )
    for number, guard in enumerate(guards):
        if guard.name is None and guard in guards[:number]:
            raise ConfigurationError(
                f"guards: {guard!r} is given twice, and the second does nothing: leave one of them out"
            )
    return guards


def check_store(store: Store) -> Store:
    """Return a store that was built. Raises ConfigurationError for anything else."""
    if not all(hasattr(store, verb) for verb in ("enter", "leave", "declare")):
        raise ConfigurationError(
            f'store: {store!r} is not a store: write a URL, such as "memory:" or "shm:NAME"'
        )
    return store


def check_slots(guards: Sequence[BoundGuard]) -> None:
    """Refuse guards that need more slots than a request can hold."""
    slots = sum(len(requirement.slots) for bound in guards if (requirement := bound.usual_requirement))
    if slots > MOST_SLOTS:
        raise ConfigurationError(
            f"guards: {slots} of them cap concurrent requests, and a request can hold {MOST_SLOTS} "
            "slots: use one guard for several paths, as in path=[...], or nest a throttle with a "
            "store= of its own"
        )


def check_exempt_paths(guards: Sequence[BoundGuard], exempt_paths: tuple[str, ...]) -> None:
    """Refuse exempt paths that leave a guard nothing to cover."""
    for bound in guards:
        exempt = (*exempt_paths, *bound.guard.exempt_paths)
        paths = bound.guard.path if bound.guard.path is not None else ("/",)
        if isinstance(paths, tuple) and all(falls_under(path, exempt) for path in paths):
            raise ConfigurationError(
                f"exempt_paths: {list(exempt)} exempts all that {bound.name} covers, so this guard "
                "would do nothing: leave it out, or exempt less"
            )


def check_wsgi_app_attribute(app: Any) -> None:
    """Refuse an app that leads back to the throttle before it. Called when a request has come back.

    `app.wsgi_app = throttle(app)` makes such a loop: Flask's app calls its `wsgi_app`.

    Raises:
        ConfigurationError: the app has such an attribute.
    """
    if hasattr(app, "wsgi_app"):
        raise ConfigurationError(
            f"throttle: {app!r} calls the throttle that wraps it, for ever: write "
            "app.wsgi_app = guardrails.throttle(app.wsgi_app, ...)"
        )


def switch_position(enabled: bool, dry_run: bool) -> str:
    """Return where the switch stands: GUARDRAILS in the environment, else the arguments."""
    check_bool(enabled, "enabled")
    check_bool(dry_run, "dry_run")
    word = os.environ.get("GUARDRAILS", "").strip().lower()
    if not word:
        if not enabled:
            return OFF
        return DRY_RUN if dry_run else ON
    if word not in SWITCH_WORDS:
        raise ConfigurationError(
            f"GUARDRAILS: {word!r} in the environment is not a position of the switch: write "
            "on, dry-run or off, or unset it"
        )
    return word

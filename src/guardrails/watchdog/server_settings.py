"""Settings of gunicorn that defeat the watchdog: gunicorn ends a worker, or its requests, first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from guardrails.watchdog.policy import Policy

_SIGNALS = 3
"""How many signals the watchdog sends, one after the other."""


def defeating_settings(server: Any, policy: Policy) -> Iterator[str]:
    """Find the settings of a server that defeat the watchdog's options.

    Args:
        server: gunicorn's arbiter; any other object has no such settings.
        policy: the options.

    Yields:
        A sentence about each: the setting, the option, what happens, and the remedy.
    """
    settings = getattr(server, "cfg", None)
    classes = {known.__name__ for known in getattr(server, "worker_class", object).__mro__}
    if settings is None or "Worker" not in classes or not policy.timeout:
        return
    if "SyncWorker" in classes:
        if 0 < settings.timeout <= policy.timeout:
            enough = _more_than(policy.timeout + _SIGNALS * policy.signal_interval)
            yield (
                f"gunicorn's timeout of {settings.timeout} s ends a sync worker before the watchdog's "
                f"timeout of {policy.timeout:g} s is over, and the log has no stack: set gunicorn's "
                f"timeout to {enough} or more, or the watchdog's to less"
            )
    elif settings.graceful_timeout < policy.grace + policy.signal_interval:
        enough = _more_than(policy.grace + policy.signal_interval)
        yield (
            f"gunicorn's graceful_timeout of {settings.graceful_timeout} s cuts off the requests of a "
            f"retiring worker before the watchdog's grace of {policy.grace:g} s and signal_interval of "
            f"{policy.signal_interval:g} s are over: set gunicorn's graceful_timeout to {enough} or "
            "more, or the watchdog's grace to less"
        )


def _more_than(seconds: float) -> int:
    return int(seconds) + 1

"""What is wrong with a watchdog's options on this host is found out when it starts."""

from __future__ import annotations

from typing import Any

from guardrails.errors import ConfigurationError
from guardrails.watchdog.events import command_words
from guardrails.watchdog.option_values import check_program
from guardrails.watchdog.options import Watchdog
from guardrails.watchdog.stores import Stores


def check_start(watch: Watchdog, parent: int | None) -> list[str]:
    """Refuse what could never work, and return warnings about what is not there yet.

    Args:
        watch: the options.
        parent: pid of the server whose workers are to be watched; None for a store.

    Raises:
        ConfigurationError: a program, a file or a process that an option names is not there, or there
            are several stores and none was chosen.
    """
    on_event = dict(watch.options)["on_event"]
    if on_event is not None:
        check_program(command_words(on_event, "on_event"), "on_event")
    monitor = watch.monitor(_ignore)
    warnings = [] if monitor is None else monitor.check()
    if parent is None and watch.store_name is None and not watch.policy.ends_nothing:
        stores = Stores(None, None).serving()
        if len(stores) > 1:
            raise ConfigurationError(
                "store: there are several stores with workers, so name the one to watch: "
                + ", ".join(f"--store {name}" for name in stores)
            )
    return warnings


def _ignore(*_arguments: Any, **_facts: Any) -> None:
    """Takes the events of a monitor that is built only for its checks."""

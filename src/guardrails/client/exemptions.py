"""Exemptions: the networks and the callables of an `exempt` option."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from guardrails.client.networks import Networks, listed

Exempt = str | Callable[[dict[str, Any]], object] | Iterable[str | Callable[[dict[str, Any]], object]]
"""What `exempt` takes: networks, addresses, "loopback", "private", callables, or several of these."""


class Exemptions:
    """An `exempt` option, checked.

    Args:
        exempt: what the user gave.

    Attributes:
        callables: the callables among it.
        networks: the networks among it.

    Raises:
        ConfigurationError: an item is neither a network nor a callable.
    """

    def __init__(self, exempt: Exempt) -> None:
        several = listed(exempt, "exempt")
        self.callables = tuple(one for one in several if callable(one))
        self.networks = Networks([one for one in several if not callable(one)], "exempt")

    def __bool__(self) -> bool:
        return bool(self.callables or self.networks)

    def chosen(self, environ: dict[str, Any], failed: Callable[[Exception], object]) -> bool:
        """Whether a callable exempts this request.

        Args:
            environ: the WSGI environ.
            failed: called with the exception of a callable that raised; such a callable exempts
                nothing.
        """
        for exempts in self.callables:
            try:
                if exempts(environ):
                    return True
            except Exception as error:
                failed(error)
        return False

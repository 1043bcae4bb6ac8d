"""Who is left alone: networks, asked by bisection, and callables of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from guardrails.client.networks import Networks, listed

Exempt = str | Callable[[dict[str, Any]], object] | Iterable[str | Callable[[dict[str, Any]], object]]
"""What `exempt=` may be: one or several networks, addresses, "loopback", "private", callables."""


class Exemptions:
    """An `exempt=`, checked. Raises ConfigurationError for what is neither network nor callable."""

    def __init__(self, exempt: Exempt) -> None:
        several = listed(exempt, "exempt")
        self.callables = tuple(one for one in several if callable(one))
        self.networks = Networks([one for one in several if not callable(one)], "exempt")

    def __bool__(self) -> bool:
        return bool(self.callables or self.networks)

    def chosen(self, environ: dict[str, Any], failed: Callable[[Exception], object]) -> bool:
        """Whether a callable leaves this request alone. One that raises leaves nobody alone."""
        for exempts in self.callables:
            try:
                if exempts(environ):
                    return True
            except Exception as error:
                failed(error)
        return False

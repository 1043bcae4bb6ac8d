"""What looks like a mistake in how guardrails is set up, each under a code that stays the same.

A check never changes what happens to a request, and says its sentence once per process. Every code
has a section in docs/errors.md with cause, remedy and how to silence it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from guardrails.errors import ConfigurationError

log = logging.getLogger("guardrails")

CODES = (
    "undeclared-proxy",
    "ignored-forwarding-header",
    "no-client-address",
    "everything-trusted",
    "guard-met-twice",
    "guard-never-matched",
    "cap-above-threads",
    "wait-without-threads",
)


class Checks:
    """Says what looks wrong, once each. silence: the codes that it keeps to itself."""

    def __init__(self, silence: str | Iterable[str] = ()) -> None:
        codes = (silence,) if isinstance(silence, str) else tuple(silence)
        for code in codes:
            if code not in CODES:
                raise ConfigurationError(
                    f"silence: {code!r} is not the code of a check: use " + ", ".join(CODES)
                )
        self._silent = set(codes)

    def warn(self, code: str, message: str, *values: object) -> None:
        """Say it, unless it was said or silenced."""
        if code not in self._silent:
            self._silent.add(code)
            log.warning(f"{message} [%s]", *values, code)  # noqa: G004 - the code ends each sentence

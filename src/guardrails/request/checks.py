"""What looks like a mistake in how guardrails is set up, each under a code that stays the same.

A check never changes what happens to a request, and says its sentence once for each guard or peer
that it is about, in each process. Every code has a section in docs/errors.md with cause, remedy and
how to silence it.
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


_MOST_SUBJECTS = 16
"""What a code is said of at most: strangers may bring some about."""


class Checks:
    """Says what looks wrong, once each. silence: the codes that it keeps to itself."""

    def __init__(self, silence: str | Iterable[str] = ()) -> None:
        codes = (silence,) if isinstance(silence, str) else tuple(silence)
        for code in codes:
            if code not in CODES:
                raise ConfigurationError(
                    f"silence: {code!r} is not the code of a check: use " + ", ".join(CODES)
                )
        self._said: dict[str, set[object]] = {code: set() for code in CODES if code not in codes}

    def warn(self, code: str, about: object, message: str, *values: object) -> None:
        """Say it, unless it was said of this guard or peer, or silenced."""
        said = self._said.get(code)
        if said is not None and about not in said and len(said) < _MOST_SUBJECTS:
            said.add(about)
            log.warning(f"{message} [%s]", *values, code)  # noqa: G004 - the code ends each sentence

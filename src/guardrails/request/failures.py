"""Errors of guardrails' own: each is counted, and logged at most once a minute."""

import logging
from collections import Counter

from guardrails.errors import StoreError, is_failure
from guardrails.once import Once

log = logging.getLogger("guardrails")

_PERIOD_SECONDS = 60.0


class FailureLog:
    """Reports errors that do not fail the request.

    Attributes:
        errors: how many there were, by the name of their class.
    """

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()
        self._first_in_period = Once(_PERIOD_SECONDS)

    def report(self, error: Exception, what: str) -> None:
        """Count an error, and log it.

        Args:
            error: the error.
            what: what failed, and what guardrails does now.

        Raises:
            Exception: the error itself, where it is no failure but ends the request.
        """
        if not is_failure(error):
            raise error
        self.errors[type(error).__name__] += 1
        if self._first_in_period(f"{what} {type(error).__name__}"):
            # The sentence of a StoreError says all. An unexpected error needs its traceback.
            expected = isinstance(error, StoreError)
            log.error("%s: %s", what, error, exc_info=None if expected else error)

    def warn(self, about: str, message: str) -> None:
        """Log a warning, at most once a minute for each `about`."""
        if self._first_in_period(about):
            log.warning("%s", message)

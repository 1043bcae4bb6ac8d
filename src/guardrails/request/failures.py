"""Errors of guardrails' own: counted always, logged once a minute each."""

import logging
from collections import Counter

from cachetools import TTLCache

from guardrails.errors import StoreError, is_failure

log = logging.getLogger("guardrails")

_SILENCE_SECONDS = 60
_MOST_REMEMBERED = 256


class Reporter:
    """Says everything once in a while. `errors` counts by the error's name."""

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()
        self._said: TTLCache[str, bool] = TTLCache(maxsize=_MOST_REMEMBERED, ttl=_SILENCE_SECONDS)

    def report(self, error: Exception, what: str) -> None:
        """Count an error, and log it with its trace. What ends a request is none, and is raised on."""
        if not is_failure(error):
            raise error
        self.errors[type(error).__name__] += 1
        if self._first_in_a_while(f"{what} {type(error).__name__}"):
            # A store that is busy or gone says all in its sentence; what is unexpected needs its trace.
            expected = isinstance(error, StoreError)
            log.error("%s: %s", what, error, exc_info=None if expected else error)

    def say_once(self, about: str, message: str) -> None:
        """Warn of something."""
        if self._first_in_a_while(about):
            log.warning("%s", message)

    def _first_in_a_while(self, about: str) -> bool:
        try:
            if about in self._said:
                return False
            self._said[about] = True
        except (KeyError, RuntimeError):  # two threads at once: at worst it is said twice
            return True
        return True

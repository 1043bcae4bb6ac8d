"""The exceptions of guardrails."""

from typing import TypeGuard


class GuardrailsError(Exception):
    """The base class of all exceptions of guardrails."""


class ConfigurationError(GuardrailsError, ValueError):
    """An argument is wrong. The message names the argument, its value, the rule and the remedy."""


class CPULimitError(GuardrailsError):
    """Raised in a request that has used up its CPU time: see `rlimits(cpu_per_request=...)`."""


class RequestInterruptedError(GuardrailsError):
    """Raised in a request that took too long: see `throttle(interruptible=True)`."""


def is_failure(error: BaseException) -> TypeGuard[Exception]:
    """Whether an exception means that something failed.

    The other exceptions end a request, or the process, on purpose.
    """
    return isinstance(error, Exception) and not isinstance(
        error, (CPULimitError, RequestInterruptedError)
    )


class FigureOfNothingError(ConfigurationError):
    """A figure is 0, so no request could ever be admitted."""


class StoreError(GuardrailsError):
    """A store failed. `throttle(on_store_error=...)` says what then happens to a request."""


class StoreBusyError(StoreError):
    """The store is busy; the same call may succeed later."""


class InsideError(StoreBusyError):
    """This thread is in the store already: a destructor or a signal handler interrupted it there."""

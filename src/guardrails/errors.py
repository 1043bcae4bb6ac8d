"""What guardrails raises: at build time for a wrong configuration, and inside for a failing store."""

from typing import TypeGuard


class GuardrailsError(Exception):
    """The parent of everything that guardrails raises."""


class ConfigurationError(GuardrailsError, ValueError):
    """An argument is wrong: the message says which, its value, the rule and the remedy."""


class CPULimitError(GuardrailsError):
    """Raised within a request that has burnt its CPU: see `rlimits(cpu_per_request=...)`."""


class RequestInterruptedError(GuardrailsError):
    """Raised within a request that took too long: see `throttle(interruptible=True)`."""


def is_failure(error: BaseException) -> TypeGuard[Exception]:
    """Whether something failed. Otherwise somebody ends the request, or the process, by it."""
    return isinstance(error, Exception) and not isinstance(
        error, (CPULimitError, RequestInterruptedError)
    )


class StoreError(GuardrailsError):
    """A store could not do its work. It never reaches a client: see `on_store_error`."""


class StoreBusyError(StoreError):
    """The store could not be entered now, and the same call may succeed later."""


class InsideError(StoreBusyError):
    """This thread is in the store already: a destructor or a signal handler came in between."""

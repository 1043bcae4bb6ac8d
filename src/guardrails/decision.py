"""What was decided about a request, as apps, logs and callbacks see it."""

from typing import NamedTuple

PASSED = "PASSED"
DELAYED = "DELAYED"
REJECTED = "REJECTED"
DELAYED_DRY_RUN = "DELAYED_DRY_RUN"
REJECTED_DRY_RUN = "REJECTED_DRY_RUN"


class Decision(NamedTuple):
    """The answer of all guards to one request. It is in `environ["guardrails.decision"]`.

    admitted: whether the app is called.   outcome: PASSED, DELAYED, REJECTED, DELAYED_DRY_RUN or
    REJECTED_DRY_RUN.   guard: the name of the guard that decided; None when all let it pass.
    key: whom that guard counts by, as it may be shown.   retry_after: seconds, rounded up, until a
    request like this would be admitted; None when waiting cannot help, or is not needed.
    remaining: how many more such requests the tightest guard would admit now; None when unknown.
    status: the HTTP status of the refusal; None when admitted.   id: the number of the decision, for
    finding it in the log.
    """

    admitted: bool = True
    outcome: str = PASSED
    guard: str | None = None
    key: str | None = None
    retry_after: int | None = None
    remaining: int | None = None
    status: int | None = None
    id: int = 0

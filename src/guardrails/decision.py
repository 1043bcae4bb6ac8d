"""The decision about a request, as apps, logs and callbacks see it."""

from typing import Final, Literal, NamedTuple

PASSED: Final = "PASSED"
"""The request was admitted at once."""

DELAYED: Final = "DELAYED"
"""The request was admitted after a delay: see `wait`."""

REJECTED: Final = "REJECTED"
"""The request was refused."""

DELAYED_DRY_RUN: Final = "DELAYED_DRY_RUN"
"""The request was admitted at once; a guard with `dry_run` would have delayed it."""

REJECTED_DRY_RUN: Final = "REJECTED_DRY_RUN"
"""The request was admitted; a guard with `dry_run` would have refused it."""

Outcome = Literal["PASSED", "DELAYED", "REJECTED", "DELAYED_DRY_RUN", "REJECTED_DRY_RUN"]


class Decision(NamedTuple):
    """The decision of all guards about one request, in `environ["guardrails.decision"]`.

    The environ has no such key where the guards are switched off by GUARDRAILS=off or `enabled=False`,
    and where guardrails itself failed on the request.

    Read its fields by name, such as `decision.admitted`: later versions add fields at the end. It is
    a tuple so that programs can encode, pickle and copy an environ that holds it.

    Attributes:
        admitted: whether the app is called.
        outcome: PASSED, DELAYED, REJECTED, DELAYED_DRY_RUN or REJECTED_DRY_RUN.
        guard: the name of the guard that refused, or would have refused; None if none did.
        key: what that guard counts the request by, in a form that may be shown; the client for a ban
            or a penalty. "" if the client is unknown; None if `guard` is None.
        retry_after: seconds, rounded up, until a request like this would be admitted; None if
            waiting does not help, or is not needed.
        remaining: how many more such requests the guard with the least room would admit now; None
            if that is not known.
        status: the HTTP status of the refusal; None if the request was admitted.
        id: the number of the decision, by which the log shows it.
    """

    admitted: bool = True
    outcome: Outcome = PASSED
    guard: str | None = None
    key: str | None = None
    retry_after: int | None = None
    remaining: int | None = None
    status: int | None = None
    id: int = 0

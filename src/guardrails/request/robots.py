"""What /robots.txt is allowed: a crawler takes a refused one for one that forbids or allows everything.

GET and HEAD of exactly this path, without a query, are exempt up to 30 a minute and client. Beyond
that, and for any other request, the path is guarded like every other path.
"""

from __future__ import annotations

from guardrails.store.contract import KeyedRequirement, Meter, Requirement

ROBOTS_TXT = "/robots.txt"

_INTERVAL, _BURST = 2_000_000, 30
_METER = Meter(
    "robots.txt",
    need=_INTERVAL,
    cost=_INTERVAL,
    limit=_BURST * _INTERVAL,
    resume=_BURST * _INTERVAL,
    horizon=_BURST * _INTERVAL,
)

ALLOWANCE = KeyedRequirement(Requirement("robots.txt", meters=(_METER,)), None, dry_run=False)
"""30 requests a minute for each client."""


class BeyondAllowance(list[KeyedRequirement]):
    """What the guards require of a request for robots.txt if its client's allowance is used up."""

"""Short forms of requirements, requests and stores."""

import itertools
import os

from guardrails.store.contract import (
    KeyedRequirement,
    Meter,
    Requirement,
    RouteRequirements,
    Slot,
    StoreRequest,
)
from guardrails.store.shared import SharedStore

SECOND = 1_000_000
MINUTE = 60 * SECOND


_numbers = itertools.count()


def private_store(clock=None, **options):
    """A shared store of this test's own, gone when it is closed."""
    name = f"test-{os.getpid()}-{next(_numbers)}"
    if clock is not None:
        options["clock"] = clock
    return SharedStore(name, private=True, **options)


def meter(name="meter", *, count=1, period=SECOND, burst=1, cost=1, wait=0):
    """A speed limit's meter."""
    interval = -(-period // count)
    return Meter(
        name,
        need=cost * interval,
        cost=cost * interval,
        limit=burst * interval,
        resume=burst * interval,
        horizon=burst * interval + wait,
        slack=wait,
    )


def cpu_meter(name="cpu", *, window=10 * SECOND, resume=0.5):
    """A CPU throttle's meter."""
    return Meter(name, 0, 0, limit=window, resume=int(window * resume), horizon=5 * window)


def slot(name="slot", *, limit=1, max_hold=600 * SECOND):
    return Slot(name, limit, max_hold)


def ban(name="guard", *, lasts=20 * MINUTE):
    """The three parts of a requirement that bans."""
    return {
        "ban": Meter(f"{name} ban", 0, 0, 0, 0, lasts),
        "shadow_ban": Meter(f"{name} ban dry-run", 0, 0, 0, 0, lasts),
        "ban_for": lasts,
    }


def requirement(*parts, guard="guard", **options):
    return Requirement(
        guard,
        meters=tuple(part for part in parts if isinstance(part, Meter)),
        slots=tuple(part for part in parts if isinstance(part, Slot)),
        **options,
    )


def open_request(
    *requirements, key=b"client", dry_run=False, may_wait=False, client="192.0.2.1", path="/"
):
    return StoreRequest(
        RouteRequirements(KeyedRequirement(each, None, dry_run) for each in requirements),
        key=key,
        ban_key=key,
        client=client,
        method="GET",
        host="example.org",
        path=path,
        may_wait=may_wait,
        pid=os.getpid(),
    )

"""What a watchdog watches at this moment, as `guardrails watch status` and systemd show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from guardrails.paths import plain_text
from guardrails.store.records import InFlight, Worker
from guardrails.watchdog.events import printable
from guardrails.watchdog.overdue import WatchedStore


class Watched(NamedTuple):
    """What a watchdog watches.

    Attributes:
        text: the rest of a sentence: "watches shm:shop: 4 workers, 2 requests, ...".
        is_nothing: whether there is no worker that it could act on.
        stores: the stores that it looks at, as in `--store`.
        looked_at: when it looked, in monotonic seconds.
    """

    text: str
    is_nothing: bool
    stores: tuple[str, ...] = ()
    looked_at: float = 0.0


def watched_now(
    stores: Iterable[WatchedStore],
    parent: int | None,
    has_own_watchdog: Callable[[int, int], bool],
    reason: str,
) -> Watched:
    """Return what a watchdog watches now.

    Args:
        stores: the stores that it looks at.
        parent: pid of the server whose workers it watches; None for those of all servers.
        has_own_watchdog: whether a server, of a pid namespace and a pid, has a watchdog of its own.
        reason: why it looks at no store; empty where it looks at one.

    Raises:
        StoreError: a store cannot be read.
    """
    names: list[str] = []
    workers: list[Worker] = []
    requests: list[InFlight] = []
    for watched in stores:
        mine = [each for each in watched.store.workers() if parent in (None, each.parent)]
        owners = {each.owner for each in mine}
        names.append(watched.name)
        workers += mine
        requests += [each for each in watched.store.requests() if each.owner in owners]
    named, now = ", ".join(names), time.monotonic()
    count = len({each.owner for each in workers})
    if not count:
        why = reason or (
            f"{named} has no worker now"
            if named
            else "no worker has served a request through a throttle() yet"
        )
        return Watched(f"watches nothing: {why}", True, tuple(names), now)
    text = f"watches {named}: {_counted(count, 'worker')}, {_counted(len(requests), 'request')}"
    if requests:
        oldest = max(requests, key=lambda request: request.age_seconds)
        path = plain_text(oldest.path).replace(" ", "%20")
        text += (
            f", the oldest {oldest.method} {path} from {oldest.client or 'an unknown client'}, "
            f"{oldest.age_seconds:.0f} s old"
        )
    left = 0 if parent is not None else _left_to_others(workers, has_own_watchdog)
    if left:
        text += f"; leaves {_counted(left, 'worker')} to the watchdog of their own server"
    return Watched(printable(text), False, tuple(names), now)


def _left_to_others(workers: Iterable[Worker], has_own_watchdog: Callable[[int, int], bool]) -> int:
    servers = [
        (each.namespace, each.parent) for each in {each.owner: each for each in workers}.values()
    ]
    watched = {server: has_own_watchdog(*server) for server in set(servers)}
    return sum(watched[server] for server in servers)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"

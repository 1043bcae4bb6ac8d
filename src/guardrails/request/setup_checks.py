"""Whether the guards fit the server and its traffic: looked at once per process, and now and then.

Nothing here changes what happens to a request; what looks wrong is said once, under its code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from guardrails.guards.base import Post
from guardrails.request.checks import Checks
from guardrails.request.delay_queue import THREADS_PER_WAITING_ONE
from guardrails.store.contract import GuardCounters, Store
from guardrails.worker.server import Server

LONG_ENOUGH = 24 * 3600
"""Seconds after which a guard should have met a request."""

monotonic = time.monotonic


class Inspector:
    """Looks at the guards of one throttle, in one process.

    posts: its guards on duty, by name; more of them may come.
    """

    def __init__(self, posts: Mapping[str, Post], checks: Checks) -> None:
        self._posts = posts
        self._checks = checks
        self._began = 0.0

    def begin(self, server: Server) -> None:
        """At the first request of a process: see what its server can do."""
        self._began = monotonic()
        for post in list(self._posts.values()):
            self._look_at_cap(post, server)
            if post.wait and server.threads is not None and server.threads < THREADS_PER_WAITING_ONE:
                self._checks.warn(
                    "wait-without-threads",
                    post.name,
                    "%s: wait= has no effect on %s: at most one in %d of a process's threads may "
                    "wait, so that the others go on serving; give each process at least %d threads, "
                    "or leave wait= out",
                    post.name,
                    server,
                    THREADS_PER_WAITING_ONE,
                    THREADS_PER_WAITING_ONE,
                )

    def look_again(self, store: Store) -> None:
        """Now and then: say which guards have met nothing in a day. `store`: where they count."""
        if monotonic() - self._began < LONG_ENOUGH:
            return
        posts = list(self._posts.values())
        met = {post.number for post in posts if post.met}
        counters = store.counters()
        for post in posts:
            # What varies may have met requests in other workers and asked nothing for them.
            if post.number in met or post.varies or post.usual_demand is None:
                continue
            if counters.get(post.name, _NOTHING) == _NOTHING:
                self._checks.warn(
                    "guard-never-matched",
                    post.name,
                    "%s: no request that it covers has come in a day: compare its path, methods and "
                    "host with what clients ask for (the case of a path counts), or leave it out",
                    post.name,
                )

    def _look_at_cap(self, post: Post, server: Server) -> None:
        demand, most = post.usual_demand, server.at_once
        limits = [slot.limit for slot in demand.slots] if demand is not None else []
        if most is not None and limits and min(limits) > most:
            self._checks.warn(
                "cap-above-threads",
                post.name,
                "%s: a cap of %d is never reached, since %s serves %d at once: lower it below that, "
                "or leave it out",
                post.name,
                min(limits),
                server,
                most,
            )


_NOTHING = GuardCounters()

"""The size guard: a worker that has grown too large retires. Successor of Apache::SizeLimit.

It is a cure for slow leaks; what grows in one request is stopped by a limit of DATA. After a response
one number of /proc is read; only when the whole process is beyond the limit is it looked at how much
of that no other process shares, which is dear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guardrails.errors import ConfigurationError
from guardrails.options import keyword_options
from guardrails.units import parse_count, parse_percent, parse_seconds, parse_size
from guardrails.worker import retire
from guardrails.worker.process import current_process
from guardrails.worker.server import Server, gunicorn_server, running_server
from guardrails.worker.size_guard import SizeGuard

DEFAULT_SHARE = "80%"
_MB = 1 << 20


@dataclass(frozen=True)
class SizeLimit:
    """How large a worker may grow. It is put in force by `apply()`, or by calling it as a hook.

    unshared, resident: bytes, or None.   share: the part of its cgroup's memory, shared out over the
    workers, that stands in for both.   every: requests from look to look.   jitter: the part of the
    limit by which it is drawn smaller, for each worker anew.   min_lifetime: seconds.
    """

    unshared: int | None
    resident: int | None
    share: float | None
    every: int
    jitter: float
    min_lifetime: float

    def apply(self) -> None:
        """Look after each response from now on; a second time it changes nothing."""
        self._apply(running_server({}))

    def __call__(self, _server: Any = None, _worker: Any = None, *more: Any, **_named: Any) -> None:
        """The same as `apply()`, whatever a server's hook is called with.

        Two arguments have names, since gunicorn counts them before it takes a `post_fork` hook.
        """
        found = [gunicorn_server(each) for each in (_server, _worker, *more)]
        self._apply(next((each for each in found if each is not None), None) or running_server({}))

    def _apply(self, server: Server) -> None:
        retire.remember_server(server)
        process = current_process()
        if self not in process.size_guards:
            guard = process.size_guards[self] = SizeGuard(self)
            process.hooks.when_started(guard.begin)
            process.hooks.after_response += (guard.look,)


@keyword_options
def size_limit(
    unshared: str | int | None = None,
    *,
    resident: str | int | None = None,
    every: int = 1,
    jitter: str | float = "10%",
    min_lifetime: str | float = "1m",
) -> SizeLimit:
    """Describe how large a worker may grow before it retires; nothing happens yet.

    unshared: memory that no other process has too, as "300M"; or a part of what the cgroup may have,
    shared out over the workers, as "80%", which is the default.   resident: all that is in memory,
    shared or not.   every: look after so many requests.   jitter: each worker draws its limit up to
    this part smaller, so that not all retire at once.   min_lifetime: no younger worker retires.

    A worker that is too large finishes its requests and ends in its server's own way, under gunicorn,
    uWSGI and mod_wsgi; elsewhere one log line says so. One worker at a time. It needs a throttle in
    front of the app, which sees the responses.

    Use it beside `throttle()`: `guardrails.size_limit("300M").apply()`, or as a hook of a server's.
    Raises ConfigurationError for what is wrong.
    """
    share = None
    if unshared is None and resident is None:
        unshared = DEFAULT_SHARE
    if isinstance(unshared, str) and unshared.strip().endswith("%"):
        share, unshared = _share(unshared, "unshared"), None
    parse_count(every, "every", most=1_000_000)
    part = 0.0 if jitter in (0, "0", "0%") else _share(jitter, "jitter")
    if part >= 1:
        raise ConfigurationError(f'jitter: {jitter!r} leaves nothing of the limit: write such as "10%"')
    return SizeLimit(
        None if unshared is None else _size(unshared, "unshared"),
        None if resident is None else _size(resident, "resident"),
        share,
        every,
        part,
        parse_seconds(min_lifetime, "min_lifetime"),
    )


def _share(value: str | float, argument: str) -> float:
    try:
        share = parse_percent(value, argument)
    except ConfigurationError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigurationError(
            f'{argument}: {value!r} is no part of a whole: write a percentage from 1 to 100, as "10%"'
        )
    return share


def _size(value: str | int, argument: str) -> int:
    size = parse_size(value, argument)
    if size < _MB:
        raise ConfigurationError(
            f"{argument}: {value!r} is less than any worker takes: write at least 1M, such as "
            f'"300M", or "{DEFAULT_SHARE}" of what the cgroup may have'
        )
    return size

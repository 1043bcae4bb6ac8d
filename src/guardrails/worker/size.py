"""The size guard: a worker that has grown too large retires. Successor of Apache::SizeLimit.

The guard is a remedy for slow leaks: of memory, of open files, of threads. A limit of DATA stops what
grows within one request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guardrails.errors import ConfigurationError
from guardrails.options import keyword_options
from guardrails.units import parse_count, parse_percent, parse_seconds, parse_size
from guardrails.worker import retire
from guardrails.worker.process import current_process
from guardrails.worker.server import Server, running_server, server_of_hook
from guardrails.worker.size_guard import SizeGuard

DEFAULT_SHARE = "80%"
_MOST_REQUESTS = 1_000_000
_MOST_THREADS = 100_000
_LEAST_FILES, _MOST_FILES = 16, 1_000_000_000
_MB = 1 << 20


@dataclass(frozen=True)
class SizeLimit:
    """How large a worker may grow. `apply()` puts the limit in force, and so does a call as a hook.

    Attributes:
        unshared: bytes that no other process has in memory; None without such a limit.
        resident: bytes in memory, shared or not; None without such a limit.
        share: the part of the cgroup's memory, divided by the number of workers, that `unshared` is
            computed from; None where `unshared` was given.
        files: the part of the soft limit of open files (NOFILE), or a number of them; None without
            such a limit.
        threads: the number of threads; None without such a limit.
        every: requests from one check to the next.
        jitter: each worker lowers its limits by a random part, at most this one.
        min_lifetime: seconds; a younger worker does not retire.
    """

    unshared: int | None
    resident: int | None
    share: float | None
    files: float | int | None
    threads: int | None
    every: int
    jitter: float
    min_lifetime: float

    def apply(self) -> None:
        """Check the size after each response from now on. A further call changes nothing."""
        self._apply(running_server({}))

    def __call__(self, _server: Any = None, _worker: Any = None, *more: Any, **_named: Any) -> None:
        """Do what `apply()` does, with the arguments that a server passes to its hook."""
        # gunicorn counts a hook's named arguments before it accepts the hook, so two have names.
        self._apply(server_of_hook(_server, _worker, *more))

    def _apply(self, server: Server) -> None:
        retire.remember_server(server)
        process = current_process()
        if self not in process.size_guards:
            guard = process.size_guards[self] = SizeGuard(self)
            process.hooks.when_started(guard.start)
            process.hooks.after_response += (guard.response_over,)


@keyword_options
def size_limit(
    unshared: str | int | None = None,
    *,
    resident: str | int | None = None,
    files: str | int | None = None,
    threads: int | None = None,
    every: int = 1,
    jitter: str | float = "10%",
    min_lifetime: str | float = "1m",
) -> SizeLimit:
    """Describe how large a worker may grow before it retires. Nothing happens before it is applied.

    Use the value beside `throttle()`, as in `guardrails.size_limit("300M").apply()`, or as a hook of a
    server. The size is checked after a response, so a throttle in front of the app is needed.

    A worker that is too large finishes its requests and ends, one worker of a store at a time. This
    works under gunicorn, uWSGI and mod_wsgi. Under other servers one log line reports the size.

    Args:
        unshared: memory that no other process has too: bytes, or a text such as "300M". A percentage is
            that part of the cgroup's memory, divided by the number of workers. "80%" is the default
            where no other limit is given either.
        resident: all memory of the worker, shared or not: bytes, or a text such as "500M". None (the
            default) sets no such limit.
        files: open files, sockets included: a percentage of the soft limit NOFILE, such as "90%", or a
            number. A worker that can open none accepts connections and drops them. None (the default)
            sets no such limit.
        threads: a number of threads. None (the default) sets no such limit.
        every: check after so many requests, 1 (the default) or more.
        jitter: each worker lowers its limits by a random part, at most this percentage ("10%" by
            default, 0 for none). So not all workers retire at once.
        min_lifetime: a worker that is younger does not retire: seconds, or a text such as "1m" (the
            default).

    Returns:
        A value that is a hook of a server and has `apply()`.

    Raises:
        ConfigurationError: a keyword or a value is wrong.
    """
    share = None
    if unshared is None and resident is None and files is None and threads is None:
        unshared = DEFAULT_SHARE
    if isinstance(unshared, str) and unshared.strip().endswith("%"):
        share, unshared = _parse_share(unshared, "unshared"), None
    parse_count(every, "every", most=_MOST_REQUESTS)
    jitter_share = 0.0 if jitter in (0, "0", "0%") else _parse_share(jitter, "jitter")
    if jitter_share >= 1:
        raise ConfigurationError(
            f'jitter: {jitter!r} could lower the limit to nothing: write less, such as "10%"'
        )
    return SizeLimit(
        None if unshared is None else _parse_limit(unshared, "unshared"),
        None if resident is None else _parse_limit(resident, "resident"),
        share,
        None if files is None else _parse_files(files),
        None if threads is None else parse_count(threads, "threads", least=2, most=_MOST_THREADS),
        every,
        jitter_share,
        parse_seconds(min_lifetime, "min_lifetime"),
    )


def _parse_share(value: str | float, argument: str) -> float:
    try:
        share = parse_percent(value, argument)
    except ConfigurationError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigurationError(
            f'{argument}: {value!r} is not a percentage from 1 to 100: write such as "10%"'
        )
    return share


def _parse_files(value: str | int) -> float | int:
    """A part of the soft limit, or a number."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return _parse_share(value, "files")
    if isinstance(value, str):
        raise ConfigurationError(
            f'files: {value!r} is neither a number nor a percentage: write such as "90%" or 900'
        )
    return parse_count(value, "files", least=_LEAST_FILES, most=_MOST_FILES)


def _parse_limit(value: str | int, argument: str) -> int:
    size = parse_size(value, argument)
    if size < _MB:
        raise ConfigurationError(
            f"{argument}: {value!r} is less than any worker needs: write at least 1M, such as "
            f'"300M", or "{DEFAULT_SHARE}" of the cgroup\'s memory'
        )
    return size

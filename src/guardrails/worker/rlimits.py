"""Resource limits per worker. Successor of Apache::Resource, over the standard library's `resource`.

Unlike there, no unit is guessed, an unknown name is an error, 0 means 0, and what was asked for is
never overridden by a default.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

from guardrails.errors import ConfigurationError
from guardrails.units import parse_count
from guardrails.worker import cpu_limit
from guardrails.worker.limit import (
    UNLIMITED,
    Limit,
    LimitReport,
    check,
    check_priority,
    priority,
    resource_module,
    restore,
    set_all,
)
from guardrails.worker.limit_defaults import default_limits
from guardrails.worker.limit_values import (
    ENVIRONMENT,
    defaults_from_environment,
    limits_from_environment,
    parse_limit,
    whole_seconds,
)
from guardrails.worker.limit_warnings import warn_of_misleading, warn_where_death_is_final
from guardrails.worker.process import current_process
from guardrails.worker.retire import remember_server
from guardrails.worker.server import (
    Server,
    gunicorn_server,
    in_the_master,
    running_server,
    worker_of_this_fork,
)

log = logging.getLogger("guardrails")


@dataclass(frozen=True)
class ResourceLimits:
    """Limits that are set in the process that calls `apply()`, or that calls the value itself.

    Being callable with any arguments it is a hook: `post_fork = guardrails.rlimits(...)` for
    gunicorn, `postfork(guardrails.rlimits(...))` for uWSGI. Within `with limits:` only soft limits
    are set, and are as they were after it.
    """

    limits: tuple[Limit, ...]
    defaults: bool = False
    cpu_per_request: int | None = None
    nice: int | None = None

    def apply(self) -> tuple[LimitReport, ...]:
        """Set them in this process, and report; a second time it only reports.

        In a process that forks the workers nothing is set, and there is nothing to report: each of
        them does it after its fork. Raises ConfigurationError for what the system refuses, and what
        this server cannot have.
        """
        return self._apply(running_server({}), log.info)

    def __call__(
        self, _server: Any = None, _worker: Any = None, *more: Any, **_named: Any
    ) -> tuple[LimitReport, ...]:
        """The same as `apply()`, whatever a server's hook is called with.

        Two arguments have names, since gunicorn counts them before it takes a `post_fork` hook. What
        was set goes to gunicorn's own log, where it is seen.
        """
        found = [gunicorn_server(given) for given in (_server, _worker, *more)]
        server = next((each for each in found if each is not None), None)
        say = getattr(getattr(_server, "log", None), "info", log.info)
        return self._apply(server or running_server({}), say)

    def __enter__(self) -> Self:
        """Set the soft limits for a while, in tests. CPU, `nice` and budgets cannot be had so."""
        beyond = self.cpu_per_request is not None or self.nice is not None or self.defaults
        if beyond or any(limit.name == "CPU" or limit.soft is None for limit in self.limits):
            raise ConfigurationError(
                "with: only soft limits other than CPU can be set for a while: leave out CPU, "
                '":HARD", defaults, nice and cpu_per_request, or call apply() in a process of its own'
            )
        soft = [limit._replace(hard=None) for limit in self.limits]
        _entered.setdefault(self, []).append(set_all(resource_module(), soft))
        return self

    def __exit__(self, *_error: object) -> None:
        restore(resource_module(), _entered[self].pop())

    def _apply(self, server: Server, say: Callable[[str], object]) -> tuple[LimitReport, ...]:
        if in_the_master():
            self._check(server)
            _put_off(self)
            return ()
        process = current_process()
        if self in process.applied_limits:
            return process.applied_limits[self]
        resource = resource_module()
        if self.cpu_per_request is not None:
            cpu_limit.check_one_at_a_time(server)
        remember_server(server)
        fill_in = default_limits(self.limits, server) if self.defaults else ()
        asked = [*self.limits, *(limit for limit in fill_in if limit.name not in process.named_limits)]
        # Before anything is done: what is refused leaves all as it was.
        for limit in asked:
            check(resource, limit)
        if self.nice is not None:
            check_priority(self.nice)
        # Who is told comes before the limit: one that is passed already kills at once.
        life = next((limit for limit in asked if limit.name == "CPU"), None)
        soft = None if life is None or life.soft in (None, UNLIMITED) else life.soft
        if soft is not None or self.cpu_per_request is not None:
            cpu_limit.watch(server, soft, self.cpu_per_request)
        was = priority()
        reports = set_all(resource, asked, self.nice)
        for report in reports:
            _tell(report, say)
        if self.cpu_per_request is not None:
            say(f"rlimits: cpu_per_request {self.cpu_per_request} s (argument)")
        if self.nice is not None:
            say(f"rlimits: nice {self.nice} (was {was}; argument)")
        warn_of_misleading(reports, server)
        if asked and not server.respawns:
            process.hooks.when_started(warn_where_death_is_final)
        process.named_limits.update(limit.name for limit in self.limits)
        process.applied_limits[self] = tuple(reports)
        return tuple(reports)

    def _check(self, server: Server) -> None:
        """Refuse in the process that forks the workers what they would be refused; set nothing."""
        resource = resource_module()
        if self.cpu_per_request is not None and server.threads is not None:
            cpu_limit.check_one_at_a_time(server)
        for limit in self.limits:
            check(resource, limit)
        if self.nice is not None:
            check_priority(self.nice)


_entered: dict[ResourceLimits, list[list[LimitReport]]] = {}


def _put_off(limits: ResourceLimits) -> None:
    """In the process that forks the workers: let each of them do it, and this one not."""
    if "uwsgi" in sys.modules:
        try:
            decorators = import_module("uwsgidecorators")
        except ImportError:
            raise ConfigurationError(
                "rlimits: uWSGI's workers are reached by its module uwsgidecorators, which is not "
                "installed: install it (python3-uwsgidecorators), or call apply() with lazy-apps"
            ) from None
        decorators.postfork(lambda: _begin_uwsgi_worker(limits))
    else:
        os.register_at_fork(after_in_child=lambda: _begin_gunicorn_worker(limits))
    log.info("rlimits: this process forks the workers: the limits are set in each of them")


def _begin_uwsgi_worker(limits: ResourceLimits) -> None:
    """In each worker, which uWSGI lets serve whatever is raised here."""
    try:
        limits.apply()
    except Exception as error:
        log.error("rlimits: this worker serves without its limits: %s", error)  # noqa: TRY400 - it says all


def _begin_gunicorn_worker(limits: ResourceLimits) -> None:
    """In each fork of the master's: those that become workers have the limits, or end.

    Python ignores what is raised here. So it ends as gunicorn has it end after an error in post_fork.
    """
    found = worker_of_this_fork()
    if found is None:
        return
    master, worker = found
    try:
        limits(master, worker)
    except Exception as error:
        master.log.error("rlimits: this worker does not start: %s", error)  # noqa: TRY400 - as above
        os._exit(master.WORKER_BOOT_ERROR)


def _tell(report: LimitReport, say: Callable[[str], object]) -> None:
    line = f"rlimits: {report}"
    if report.origin == "default" and say == log.info and not log.isEnabledFor(logging.INFO):
        # What nobody asked for must be seen, also where nobody has set up a log.
        print(line, file=sys.stderr)  # noqa: T201 - as said
    else:
        say(line)


def rlimits(
    mapping: Mapping[str, str | float] | None = None,
    /,
    *,
    defaults: bool | None = None,
    cpu_per_request: str | float | None = None,
    nice: int | None = None,
    **limits: str | float,
) -> ResourceLimits:
    """Describe limits for a worker; nothing is set yet.

    limits: each RLIMIT_ that the system has, by its name: `CPU="600:"`, `DATA="1G"`, `NOFILE=1024`.
    One value sets the soft and the hard limit; "SOFT:HARD" sets each; "SOFT:" and ":HARD" set one.
    Only soft limits change unless a hard one is asked for, since lowering a hard limit is final.
    Sizes are bytes or "512M"; times are seconds or "2m"; the rest are numbers. "unlimited" is a value
    too, and 0 means 0.
    mapping: the same, from a dictionary. GUARDRAILS_RLIMIT_CPU=120:360 in the environment stands in
    for an argument. Arguments win over the mapping, and that over the environment.
    defaults: fill in what was not asked for, soft limits only: CORE 0; CPU 600 s where the server
    starts a worker again that retires; DATA at 80 % of the cgroup's memory, shared out over the
    workers, where both are known. GUARDRAILS_RLIMIT_DEFAULTS=on stands in for it.
    cpu_per_request: whole seconds of CPU that one request may burn, in workers that serve one at a
    time: the request is then ended by an exception. It needs a throttle in front of the app.
    nice: the process's priority, from -20 to 19; only root may go down.

    At the soft limit of CPU a worker finishes its requests and retires; at the hard one the kernel
    kills it.

    Use it as a hook, `post_fork = guardrails.rlimits(DATA="1G", CORE=0)`, or call `.apply()`.
    Raises ConfigurationError for a name or a value that is wrong.
    """
    found: dict[str, Limit] = {}
    if mapping is not None and not isinstance(mapping, Mapping):
        raise ConfigurationError(
            f'rlimits: {mapping!r} is no mapping: write {{"CPU": "600:"}}, or CPU="600:"'
        )
    for origin, given in (
        ("environment", limits_from_environment()),
        ("mapping", {str(name): value for name, value in (mapping or {}).items()}),
        ("argument", limits),
    ):
        prefix = ENVIRONMENT if origin == "environment" else ""
        found |= {
            name: parse_limit(name, value, origin, prefix + name) for name, value in given.items()
        }
    if defaults is None:
        defaults = defaults_from_environment()
    elif not isinstance(defaults, bool):
        raise ConfigurationError(f"defaults: {defaults!r} is neither True nor False: write one of them")
    budget = None
    if cpu_per_request is not None:
        budget = whole_seconds(cpu_per_request, "cpu_per_request")
        if not budget:
            raise ConfigurationError(
                f"cpu_per_request: {cpu_per_request!r} is no time at all: write at least a second"
            )
    if nice is not None:
        parse_count(nice, "nice", least=-20, most=19)
    return ResourceLimits(tuple(found.values()), defaults, budget, nice)

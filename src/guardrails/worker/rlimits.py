"""Resource limits per worker. Successor of Apache::Resource, over the standard library's `resource`.

Unlike Apache::Resource, guardrails guesses no unit and refuses unknown names. 0 means 0, and no default
overrides what was requested.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self, Unpack

from guardrails.errors import ConfigurationError
from guardrails.options import check_bool
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
from guardrails.worker.limit_passed import passed_limits, refuse_passed_limits
from guardrails.worker.limit_values import (
    LimitOptions,
    LimitValue,
    defaults_from_environment,
    parse_limits,
    parse_whole_seconds,
)
from guardrails.worker.limit_warnings import warn_of_misleading, warn_without_restart
from guardrails.worker.process import WorkerProcess, current_process
from guardrails.worker.retire import remember_server
from guardrails.worker.server import (
    Server,
    is_master,
    running_server,
    server_of_hook,
    worker_of_this_fork,
)

log = logging.getLogger("guardrails")


@dataclass(frozen=True)
class ResourceLimits:
    """Limits for a process. `apply()` sets them in the process that calls it, and so does a call.

    A call takes any arguments, so that the value is a hook of a server: `post_fork =
    guardrails.rlimits(...)` for gunicorn, `postfork(guardrails.rlimits(...))` for uWSGI.
    `with limits:` sets soft limits only, and restores them at the end of the block.

    Attributes:
        limits: the requested limits.
        defaults: whether limits that were not requested get a default.
        cpu_per_request: seconds of CPU for one request; None without such a budget.
        nice: the priority of the process, from -20 to 19; None leaves the priority alone.
    """

    limits: tuple[Limit, ...]
    defaults: bool = False
    cpu_per_request: int | None = None
    nice: int | None = None

    def apply(self) -> tuple[LimitReport, ...]:
        """Set the limits in this process. A further call in the same process only reports.

        In a process that forks the workers, nothing is set: each worker sets the limits after its fork.

        A limit below what the process already has would fail each request. It is not set, and an error
        is logged with both figures: an exception would keep the worker from starting. In a process
        that forks the workers it is a ConfigurationError.

        Returns:
            A report of each limit that was set; nothing in a process that forks the workers.

        Raises:
            ConfigurationError: the system refuses a limit, this server cannot have it, or there are no
                limits on this system. All limits are as they were.
        """
        return self._apply(running_server({}), log)

    def __call__(
        self, _server: Any = None, _worker: Any = None, *more: Any, **_named: Any
    ) -> tuple[LimitReport, ...]:
        """Do what `apply()` does, with the arguments that a server passes to its hook.

        gunicorn calls the hook with its server and its worker. The reports then go to gunicorn's log.

        Returns:
            The reports of `apply()`.

        Raises:
            ConfigurationError: as `apply()`.
        """
        # gunicorn counts a hook's named arguments before it accepts the hook, so two have names.
        out = getattr(_server, "log", None)
        has_levels = hasattr(out, "info") and hasattr(out, "error")
        return self._apply(server_of_hook(_server, _worker, *more), out if has_levels else log)

    def __enter__(self) -> Self:
        permanent = self.cpu_per_request is not None or self.nice is not None or self.defaults
        if permanent or any(limit.name == "CPU" or limit.soft is None for limit in self.limits):
            raise ConfigurationError(
                "with: only soft limits other than CPU can be restored after the block: leave out CPU, "
                '":HARD", defaults, nice and cpu_per_request, or call apply() in a process of its own'
            )
        soft = [limit._replace(hard=None) for limit in self.limits]
        resource = resource_module()
        refuse_passed_limits(resource, soft)
        _entered.setdefault(self, []).append(set_all(resource, soft))
        return self

    def __exit__(self, *_error: object) -> None:
        restore(resource_module(), _entered[self].pop())

    def _apply(self, server: Server, out: Any) -> tuple[LimitReport, ...]:
        if is_master():
            self._check(server)
            _apply_after_fork(self)
            return ()
        process = current_process()
        if self in process.applied_limits:
            return process.applied_limits[self]
        resource = resource_module()
        if self.cpu_per_request is not None:
            cpu_limit.check_one_at_a_time(server)
        remember_server(server)
        requested = [*self.limits, *self._missing_defaults(server, process)]
        # Check all limits before the first is set: a refusal must change nothing.
        for limit in requested:
            check(resource, limit)
        if self.nice is not None:
            check_priority(self.nice)
        passed = passed_limits(resource, requested)
        requested = [limit for limit in requested if limit not in passed]
        self._watch_cpu(server, requested)
        nice_before = priority()
        reports = tuple(set_all(resource, requested, self.nice))
        self._report(reports, nice_before, out)
        for sentence in passed.values():
            out.error(f"rlimits: this limit is not set: {sentence}")
        warn_of_misleading(reports, server)
        if requested and not server.respawns:
            process.hooks.when_started(warn_without_restart)
        process.named_limits.update(limit.name for limit in self.limits)
        process.applied_limits[self] = reports
        return reports

    def _missing_defaults(self, server: Server, process: WorkerProcess) -> list[Limit]:
        if not self.defaults:
            return []
        defaults = default_limits(self.limits, server)
        return [limit for limit in defaults if limit.name not in process.named_limits]

    def _watch_cpu(self, server: Server, requested: list[Limit]) -> None:
        # Before the limit is set: when this process has already used more, the kernel signals at once.
        soft = next((limit.soft for limit in requested if limit.name == "CPU"), None)
        if soft == UNLIMITED:
            soft = None
        if soft is not None or self.cpu_per_request is not None:
            cpu_limit.watch(server, soft, self.cpu_per_request)

    def _report(self, reports: tuple[LimitReport, ...], nice_before: int, out: Any) -> None:
        say = out.info
        for report in reports:
            line = f"rlimits: {report}"
            if report.origin == "default" and out is log and not log.isEnabledFor(logging.INFO):
                # No configuration names this limit, so show it also where INFO is not logged.
                print(line, file=sys.stderr)  # noqa: T201 - see above
            else:
                say(line)
        if self.cpu_per_request is not None:
            say(f"rlimits: cpu_per_request {self.cpu_per_request} s (argument)")
        if self.nice is not None:
            say(f"rlimits: nice {self.nice} (was {nice_before}; argument)")

    def _check(self, server: Server) -> None:
        """Refuse in the process that forks the workers what the system would refuse the workers."""
        resource = resource_module()
        if self.cpu_per_request is not None and server.threads is not None:
            cpu_limit.check_one_at_a_time(server)
        for limit in self.limits:
            check(resource, limit)
        refuse_passed_limits(resource, self.limits)
        if self.nice is not None:
            check_priority(self.nice)


_entered: dict[ResourceLimits, list[list[LimitReport]]] = {}


def _apply_after_fork(limits: ResourceLimits) -> None:
    """Let each worker that this process forks set the limits."""
    if "uwsgi" in sys.modules:
        try:
            decorators = import_module("uwsgidecorators")
        except ImportError:
            raise ConfigurationError(
                "rlimits: uwsgidecorators is not installed, and limits in uWSGI's workers need it: "
                "install python3-uwsgidecorators, or call apply() with lazy-apps"
            ) from None
        decorators.postfork(lambda: _start_uwsgi_worker(limits))
    else:
        os.register_at_fork(after_in_child=lambda: _start_gunicorn_worker(limits))
    log.info("rlimits: this process forks the workers: the limits are set in each of them")


def _start_uwsgi_worker(limits: ResourceLimits) -> None:
    """Set the limits in a worker of uWSGI. uWSGI lets the worker serve whatever a hook raises."""
    try:
        limits.apply()
    except Exception as error:
        log.error("rlimits: this worker serves without its limits: %s", error)  # noqa: TRY400 - as below


def _start_gunicorn_worker(limits: ResourceLimits) -> None:
    """Set the limits in a forked process that becomes a worker of gunicorn.

    Python ignores exceptions of this hook. So a worker that cannot have its limits ends with the status
    that gunicorn uses after an error in post_fork.
    """
    found = worker_of_this_fork()
    if found is None:
        return
    master, worker = found
    try:
        limits(master, worker)
    except Exception as error:
        # The message names the cause, so a trace adds nothing.
        master.log.error("rlimits: this worker does not start: %s", error)  # noqa: TRY400
        os._exit(master.WORKER_BOOT_ERROR)


def rlimits(
    mapping: Mapping[str, LimitValue] | None = None,
    /,
    *,
    defaults: bool | None = None,
    cpu_per_request: str | float | None = None,
    nice: int | None = None,
    **limits: Unpack[LimitOptions],
) -> ResourceLimits:
    """Describe the resource limits of a worker. Nothing is set before the value is applied.

    Use the value as a hook, `post_fork = guardrails.rlimits(CPU="600:", CORE=0)`, or call `.apply()`
    where the app's module is loaded. At the soft limit of CPU the worker finishes its requests and
    retires. At the hard limit the kernel kills the worker.

    One value sets the soft and the hard limit; "SOFT:HARD" sets each; "SOFT:" and ":HARD" set one of
    them. A hard limit that was lowered cannot be raised again. "unlimited" is a value, and 0 means 0.

    Args:
        mapping: limits by name, as in `{"CPU": "600:"}`. Arguments override the mapping. The mapping
            overrides the environment, where GUARDRAILS_RLIMIT_CPU=600:1200 is such a limit.
        defaults: add soft limits that were not requested: CORE 0; CPU 600 s where the server replaces
            a worker that retires; DATA at 80 % of the cgroup's memory, divided by the number of
            workers, where both are known. None (the default) reads GUARDRAILS_RLIMIT_DEFAULTS from
            the environment, which is off if unset.
        cpu_per_request: whole seconds of CPU that one request may use, such as 2 or "2s". A request
            that uses more is ended by CPULimitError. This needs workers that serve one request at a
            time, and a throttle in front of the app. None (the default) sets no budget.
        nice: the priority of the process, from -20 to 19. Only root may lower the number. None (the
            default) leaves the priority alone.
        **limits: a limit by its name, as far as the system has it. In bytes, such as 1024 or "512M":
            AS, CORE, DATA, FSIZE, MEMLOCK, MSGQUEUE, PIPEBUF, RSS, SBSIZE, STACK, SWAP, VMEM. In
            whole seconds, such as 600 or "10m": CPU. In seconds: RTTIME. As a number: KQUEUES, NICE,
            NOFILE, NPROC, NPTS, NTHR, OFILE, RTPRIO, SIGPENDING, UMTXP.

    Returns:
        A value that is a hook of a server and has `apply()`.

    Raises:
        ConfigurationError: a name or a value is wrong, here or in the environment.
    """
    parsed = parse_limits(mapping, limits)
    if defaults is None:
        defaults = defaults_from_environment()
    else:
        check_bool(defaults, "defaults")
    budget = None
    if cpu_per_request is not None:
        budget = parse_whole_seconds(cpu_per_request, "cpu_per_request")
        if not budget:
            raise ConfigurationError(
                f"cpu_per_request: {cpu_per_request!r} is less than a second: write at least 1"
            )
    if nice is not None:
        parse_count(nice, "nice", least=-20, most=19)
    return ResourceLimits(parsed, defaults, budget, nice)

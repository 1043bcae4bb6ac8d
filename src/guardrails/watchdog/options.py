"""The options of the watchdog: `guardrails.watchdog()`.

Its signature and docstring are the one source. `guardrails watch` has the same options, with hyphens
for underscores, and is built from them. The hook of a server starts that command as a process.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from guardrails.errors import ConfigurationError
from guardrails.guards.option_checks import exempt_path_prefixes
from guardrails.options import check_bool, keyword_options, removed_keywords, renamed_keywords
from guardrails.paths import wsgi_text
from guardrails.store.urls import store_from_url
from guardrails.units import number_of_text, parse_count, parse_seconds
from guardrails.watchdog.command_line import (
    Metavar,
    Option,
    arguments_for,
    options_of,
)
from guardrails.watchdog.policy import Policy
from guardrails.watchdog.server_settings import defeating_settings

if TYPE_CHECKING:
    from guardrails.watchdog.events import Notify
    from guardrails.watchdog.monitor import Monitor

log = logging.getLogger("guardrails")

Duration = Annotated[str | float, Metavar("TIME")]
Size = Annotated[str | int, Metavar("SIZE")]
Count = Annotated[str | int, Metavar("N")]
Number = Annotated[str | float, Metavar("N")]
URL = Annotated[str, Metavar("URL")]
Command = Annotated[str, Metavar("COMMAND")]
PathName = Annotated[str | os.PathLike[str], Metavar("PATH")]
Remedies = Annotated[str | Sequence[str], Metavar("COMMAND")]
Process = Annotated[str | int | os.PathLike[str], Metavar("PID")]
Prefixes = Annotated[str | Iterable[str], Metavar("PREFIX")]
PathNames = Annotated[str | os.PathLike[str] | Iterable[str | os.PathLike[str]], Metavar("PATH")]
PathTimeouts = Annotated[Mapping[str, str | float] | str | Sequence[str], Metavar("PREFIX=TIME")]
Disks = Annotated[Mapping[str, str | int] | str | Sequence[str], Metavar("PATH=LEAST")]
Pressures = Annotated[
    Mapping[Literal["cpu", "memory", "io"], str | float] | str | Sequence[str],
    Metavar("KIND=PERCENT"),
]

RENAMED = {
    "between": "kill_interval",
    "step": "signal_interval",
    "probe_rest": "probe_cooldown",
    "probe_command": "on_failure",
    "probe_signal": "on_failure",
    "exempt_path": "exempt_paths",
}
"""Options by their names of version 0.1, which the next minor version no longer takes."""

_LOGROTATE = "logrotate keeps the old logs now: give logrotate, its configuration, and write there "
REMOVED = {
    "keep": _LOGROTATE + "how many (rotate 5)",
    "backups": _LOGROTATE + "how many (rotate 5)",
    "compress_after": _LOGROTATE + "compress and delaycompress",
    "swap_in": "give memory, the least that is available (10%), or pressure (memory=20)",
}
"""Options of version 0.1 that are gone, and what to write in their place."""

_SHORTEST_POLL = 0.05


@dataclass(frozen=True)
class Watchdog:
    """A watchdog whose options are checked. Call it, as a server's hook, to start it.

    `when_ready = guardrails.watchdog(...)` in gunicorn's settings: the watchdog then watches the
    workers of the process that calls it, whatever their stores, and ends with that process.

    Attributes:
        options: the value of each option, by name.
        policy: the options that concern requests, as figures.
        store_name: the store to watch; None for the only one, or those of the server's workers.
    """

    options: tuple[tuple[str, Any], ...]
    policy: Policy
    store_name: str | None

    def __call__(self, server: Any = None, *_more: Any) -> None:
        """Start the watchdog beside the process that calls.

        gunicorn may run as root and its workers as another user. The watchdog of the requests then
        runs as that user. A second process, the monitor, runs as root, since it signals gunicorn.

        Args:
            server: gunicorn's arbiter, whose settings name the user of its workers.
        """
        for warning in defeating_settings(server, self.policy):
            log.warning("watchdog: %s", warning)
        uid = getattr(getattr(server, "cfg", None), "uid", None)
        given = dict(self.options)
        if uid is None or uid == os.geteuid() or given["user"] is not None:
            _start([given], server)
            return
        no_monitor = {name: option.default for name, option in monitor_options().items()}
        wanted = [given | no_monitor | {"user": str(uid), "master": None}]
        if self.monitor(_ignore) is not None:
            # The log file belongs to the other user, so root writes to standard error instead.
            monitor_only = {"timeout": 0, "path_timeout": (), "exempt_paths": (), "log_file": None}
            wanted.append(given | monitor_only)
        _start(wanted, server)

    def arguments(self) -> list[str]:
        """The same options as arguments of `guardrails watch`, in any working directory."""
        given = dict(self.options)
        for name in ("log_file", "logrotate"):
            given[name] = given[name] and str(Path(given[name]).absolute())
        given["log"] = tuple(str(Path(path).absolute()) for path in given["log"])
        if given["master"] is not None and not str(given["master"]).strip().isdecimal():
            given["master"] = str(Path(given["master"]).absolute())
        return arguments_for(command_options(), given)

    def monitor(self, notify: Notify) -> Monitor | None:
        """Build the monitor, or return None where no option asks for one.

        Args:
            notify: is called with each event.

        Raises:
            ConfigurationError: an option of the monitor is wrong.
        """
        from guardrails.watchdog.monitor import monitor_from  # noqa: PLC0415 - keeps the import light

        given = dict(self.options)
        return monitor_from(
            notify, master=given["master"], **{name: given[name] for name in monitor_options()}
        )


@removed_keywords(REMOVED)
@renamed_keywords(RENAMED)
@keyword_options
# Keep the order of the parameters: those from `probe` on belong to the monitor.
def watchdog(
    timeout: Duration = "3m",
    *,
    poll: Duration = "5s",
    path_timeout: PathTimeouts = (),
    exempt_paths: Prefixes = (),
    interrupt: bool = False,
    grace: Duration = "30s",
    signal_interval: Duration = "3s",
    kill_interval: Duration = "10s",
    least_workers: Count = 0,
    ban: Duration | None = None,
    dry_run: bool = False,
    respawned: bool = False,
    store: URL | None = None,
    user: Annotated[str, Metavar("NAME")] | None = None,
    on_event: Command | None = None,
    log_file: PathName | None = None,
    master: Process | None = None,
    probe: URL | None = None,
    probe_every: Duration = "30s",
    probe_timeout: Duration = "10s",
    probe_failures: Count = 3,
    probe_cooldown: Duration = "2m",
    on_failure: Remedies = (),
    log: PathNames = (),
    log_max: Size = "100M",
    growth: Size = "50M",
    logrotate: PathName | None = None,
    disk: Disks = (),
    memory: Size | None = None,
    load: Number | None = None,
    pressure: Pressures = (),
) -> Watchdog:
    """Describe a watchdog for requests that take too long. Nothing is started yet.

    In gunicorn.conf.py, `when_ready = on_reload = guardrails.watchdog(timeout="3m")` runs it beside
    the server, and starts it again at HUP if it was killed or has other options.
    Under other servers run `guardrails watch start`, which takes the same options
    (docs/watchdog.md). A time is a number of seconds, or a text such as "15s" or "3m". A size is a
    number of bytes, or a text such as "100M" (powers of 1024). An option with several values takes
    one text or a list; one with pairs also takes a mapping, such as `{"/reports": "10m"}`.

    Args:
        timeout: Age at which a request is overdue; 0 means never.
        poll: Time between two looks at the scoreboard. At least 50 ms.
        path_timeout: Another time-out for the paths under a prefix. The longest prefix counts.
        exempt_paths: Paths under this prefix are never overdue.
        interrupt: First raise an exception in the thread of the request, where the worker allows
            it. That takes `throttle(interruptible=True)`.
        grace: Time that the other requests of a retiring worker have to end.
        signal_interval: Time between two signals to one worker.
        kill_interval: Time between the end of one worker and the first signal to the next.
        least_workers: Never leave fewer workers of a server alive than this.
        ban: Time for which the client of an ended request is refused the same path. None: no ban.
        dry_run: Only report; end no request and no worker.
        respawned: Also end a server of a single process: systemd or another supervisor outside starts
            the server again.
        store: The store to watch, as shm:NAME; else the only store with workers. In gunicorn's
            settings the stores of its workers are found.
        user: As root, the user of the workers, by name or number. gunicorn's own is found.
        on_event: A command that is run for each event, without a shell.
        log_file: The file to write the log to; else standard error.
        master: The server's first process, or its pid file, which the probe signals.
        probe: A URL that the monitor requests, as a visitor would.
        probe_every: Time between two probes.
        probe_timeout: Time that the complete answer to a probe may take.
        probe_failures: Failures in a row after which the monitor acts.
        probe_cooldown: Time after that in which the monitor does not act again.
        on_failure: What it does then: a command, run without a shell, or a signal for `master`, such
            as SIGHUP. Each next one is the remedy after the last did not help. Without any, `master`
            gets SIGHUP.
        log: A log file whose size and growth the monitor watches.
        log_max: The size at which a log is too large.
        growth: Growth of a log within a minute that is reported.
        logrotate: The configuration with which logrotate is run when a log is too large.
        disk: Least free space of a file system, as 10% or 2G.
        memory: Least memory that is available, as 10% or 2G.
        load: Load average per CPU above which it is reported.
        pressure: Percent of the time in which a task waits for cpu, memory or io (PSI) above which it
            is reported.

    Returns:
        A hook for gunicorn's `when_ready` and `on_reload`.

    Raises:
        ConfigurationError: an option is unknown or its value is wrong.
    """
    given = dict(locals())
    for option in command_options():
        value = given[option.name]
        if option.is_flag:
            check_bool(value, option.name)
        if option.is_repeated:
            given[option.name] = _several(value)
    if on_event is not None:
        from guardrails.watchdog.events import command_words  # noqa: PLC0415 - keeps the import light

        command_words(on_event, "on_event")
    described = Watchdog(tuple(given.items()), _policy(given), _store_name(store))
    if described.monitor(_ignore) is None and described.policy.ends_nothing:
        raise ConfigurationError(
            f"timeout: {timeout!r} means that no request is ever overdue, and nothing is to be "
            "monitored: the watchdog would do nothing, so give a time-out, or leave the watchdog out"
        )
    return described


@functools.cache
def command_options() -> tuple[Option, ...]:
    """The options of `watchdog()`, as `guardrails watch` takes them."""
    return options_of(watchdog)


@functools.cache
def monitor_options() -> dict[str, Option]:
    """Those that belong to the monitor, by name: the parameters from `probe` on."""
    options = {option.name: option for option in command_options()}
    names = list(options)
    return {name: options[name] for name in names[names.index("probe") :]}


def _start(wanted: Sequence[Mapping[str, Any]], server: Any) -> None:
    """Have these watchdogs run beside the process that calls, and end with that process."""
    from guardrails.watchdog.beside import run_beside  # noqa: PLC0415 - a worker needs none of it

    commands = []
    for given in wanted:
        master = given["master"] or (os.getpid() if given["probe"] is not None else None)
        arguments = arguments_for(command_options(), {**given, "master": master})
        commands.append([*arguments, f"--parent={os.getpid()}"])
    run_beside(commands, getattr(server, "log", None))


def _policy(given: Mapping[str, Any]) -> Policy:
    paths = dict.fromkeys(exempt_path_prefixes(given["exempt_paths"]), 0.0)
    for pair in given["path_timeout"]:
        prefix, equals, value = pair.rpartition("=")
        if not equals:
            raise ConfigurationError(
                f"path_timeout: {pair!r} is not a prefix with its time: write both, such as "
                "/reports=10m"
            )
        (prefix,) = exempt_path_prefixes([prefix])
        paths[prefix] = parse_seconds(value, "path_timeout")
    poll = parse_seconds(given["poll"], "poll")
    if poll < _SHORTEST_POLL:
        raise ConfigurationError(f'poll: {given["poll"]!r} is too often: write at least "50ms"')
    ban = given["ban"]
    return Policy(
        timeout=parse_seconds(given["timeout"], "timeout"),
        poll=poll,
        path_timeouts={wsgi_text(prefix): seconds for prefix, seconds in paths.items()},
        interrupt=given["interrupt"],
        grace=parse_seconds(given["grace"], "grace"),
        signal_interval=parse_seconds(given["signal_interval"], "signal_interval"),
        least_workers=parse_count(
            number_of_text(given["least_workers"]), "least_workers", least=0, most=10_000
        ),
        kill_interval=parse_seconds(given["kill_interval"], "kill_interval"),
        ban=0.0 if ban is None else parse_seconds(ban, "ban"),
        dry_run=given["dry_run"],
        respawned=given["respawned"],
    )


def _store_name(url: str | None) -> str | None:
    """The name of the store that the option names, or GUARDRAILS_STORE where it is not given."""
    url = url or os.environ.get("GUARDRAILS_STORE", "").strip()
    if not url or url == "shm:":
        return None
    name: str | None = getattr(store_from_url(url), "name", None)
    if name is None:
        raise ConfigurationError(
            f"store: {url!r} is in the memory of each worker, which no other process can read: "
            'watch a shared one, such as "shm:shop"'
        )
    return name


def _several(value: Any) -> tuple[str, ...]:
    """The texts of an option that may be given several times; a mapping becomes PREFIX=VALUE."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        return tuple(f"{prefix}={each}" for prefix, each in value.items())
    if isinstance(value, Iterable):
        return tuple(map(str, value))
    return (str(value),)


def _ignore(*_arguments: Any, **_facts: Any) -> None:
    """Takes the events of a monitor that is built only to check its options."""

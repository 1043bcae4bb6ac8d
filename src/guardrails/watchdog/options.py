"""What a watchdog is to do, as a user writes it: in a server's settings, or on the command line.

Both say the same: each option of `guardrails.watchdog()` is one of `guardrails watch`, with hyphens
for underscores. The hook of a server starts that command as a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from guardrails.errors import ConfigurationError
from guardrails.guards.option_checks import exempt_path_prefixes
from guardrails.paths import wsgi_text
from guardrails.store.urls import store_from_url
from guardrails.units import number_of_text, parse_count, parse_seconds
from guardrails.watchdog.policy import Policy

if TYPE_CHECKING:
    import subprocess

    from guardrails.watchdog.events import Announce
    from guardrails.watchdog.monitor import Monitor

Duration = str | float
VALUE, FLAG, MANY, PAIRS = "value", "flag", "many", "pairs"


class Option(NamedTuple):
    """One option. kind: VALUE; FLAG; MANY, which may be given again; PAIRS, as PREFIX=VALUE.

    shown: what stands for its value in the command's help.
    """

    name: str
    kind: str
    shown: str
    default: Any
    help: str

    @property
    def flag(self) -> str:
        """How it is written on the command line."""
        return "--" + self.name.replace("_", "-")


_OF_THE_WATCHDOG = (
    Option("store", VALUE, "URL", None, "the store to watch, as shm:NAME; else the only one there is"),
    Option(
        "user", VALUE, "NAME", None, "as root: the user whose workers are watched, by name or number"
    ),
    Option("timeout", VALUE, "TIME", "3m", "age at which a request is too old; 0 is never"),
    Option("poll", VALUE, "TIME", "5s", "from look to look"),
    Option("path_timeout", PAIRS, "PREFIX=TIME", (), "another time-out for paths under a prefix"),
    Option("exempt_path", MANY, "PREFIX", (), "paths under this prefix are never too old"),
    Option(
        "interrupt", FLAG, "", False, "first end the request by an exception, where workers allow it"
    ),
    Option("grace", VALUE, "TIME", "30s", "how long the other requests of a worker have to end"),
    Option("step", VALUE, "TIME", "3s", "from signal to signal"),
    Option("least_workers", VALUE, "N", 0, "never leave fewer workers alive than this"),
    Option("between", VALUE, "TIME", "10s", "from the end of one worker to the next"),
    Option(
        "ban", VALUE, "TIME", None, "how long the client of a killed request is refused the same path"
    ),
    Option("dry_run", FLAG, "", False, "only tell; end nothing"),
    Option("on_event", VALUE, "COMMAND", None, "a command that is run for each event, without a shell"),
    Option("log_file", VALUE, "PATH", None, "where to write; else to standard error"),
    Option("master", VALUE, "PID", None, "the server, whom the monitor signals, or its pid file"),
)
_OF_THE_MONITOR = (
    Option("probe", VALUE, "URL", None, "a URL that is asked for, as a visitor would"),
    Option("probe_every", VALUE, "TIME", "30s", "from request to request"),
    Option("probe_timeout", VALUE, "TIME", "10s", "how long an answer may take"),
    Option("probe_failures", VALUE, "N", 3, "failures in a row before something is done"),
    Option(
        "probe_command",
        VALUE,
        "COMMAND",
        None,
        "what to run then, without a shell; else --master is signalled",
    ),
    Option("probe_signal", VALUE, "SIGNAL", "HUP", "the signal for --master"),
    Option("probe_rest", VALUE, "TIME", "2m", "how long to do nothing after that"),
    Option("log", MANY, "PATH", (), "a log whose growth is watched, and which is rotated"),
    Option("log_max", VALUE, "SIZE", "100M", "the size at which it is"),
    Option("keep", VALUE, "N", 5, "how many old ones are kept"),
    Option(
        "compress_after",
        VALUE,
        "TIME",
        "10s",
        "how long an old one is left alone before it is compressed",
    ),
    Option("growth", VALUE, "SIZE", "50M", "growth within a minute that is reported"),
    Option("disk", MANY, "PATH=LEAST", (), "least free space, as 10%% or 2G"),
    Option("swap_in", VALUE, "N", None, "pages swapped in per second that are too many"),
    Option("load", VALUE, "N", None, "load average per CPU that is too high"),
    Option(
        "pressure",
        MANY,
        "KIND=PERCENT",
        (),
        "most of the time that somebody may wait for cpu, memory or io",
    ),
)
OPTIONS = (*_OF_THE_WATCHDOG, *_OF_THE_MONITOR)
_DEFAULTS = {option.name: option.default for option in OPTIONS}
_MONITOR = ("probe", "log", "disk", "swap_in", "load", "pressure")
"""What makes the monitor do anything."""

_MONITOR_OPTIONS = {option.name for option in _OF_THE_MONITOR}


@dataclass(frozen=True)
class Watchdog:
    """A watchdog that has been described, and checked. Called, as a hook, it is started.

    `when_ready = guardrails.watchdog(...)` in gunicorn's settings: it then watches the workers of
    the process that calls it, in whichever store they are, and ends with it.
    """

    options: tuple[tuple[str, Any], ...]
    policy: Policy
    store_name: str | None

    def __call__(self, server: Any = None, *_more: Any) -> None:
        """Start it beside the process that calls.

        Where gunicorn, as root, has its workers run as another user, what touches them runs as that
        user, and what signals the server as root.
        """
        uid = getattr(getattr(server, "cfg", None), "uid", None)
        given = dict(self.options)
        if uid is None or uid == os.geteuid() or given["user"] is not None:
            _start(given)
            return
        _start(given | {option: _DEFAULTS[option] for option in _MONITOR} | {"user": str(uid)})
        if any(given[option] != _DEFAULTS[option] for option in _MONITOR):
            # Its file is the other's, who may not share it with root: this one writes where we do.
            alone = {"timeout": 0, "path_timeout": (), "exempt_path": (), "log_file": None}
            _start(given | alone)

    def arguments(self) -> list[str]:
        """The same on a command line."""
        return _words(dict(self.options))

    def monitor(self, announce: Announce) -> Monitor | None:
        """What it looks at besides the requests; None for nothing."""
        from guardrails.watchdog.monitor import monitor_from  # noqa: PLC0415 - as above

        given = dict(self.options)
        signals = given["probe"] is not None and given["probe_command"] is None
        return monitor_from(
            announce,
            probe_signal_pid=given["master"] if signals else None,
            reopen_pid=given["master"] if given["log"] else None,
            **{name: given[name] for name in given if name in _MONITOR_OPTIONS},
        )


def _words(given: Mapping[str, Any]) -> list[str]:
    """What differs from the defaults, as words of a command line."""
    words = []
    for option in OPTIONS:
        value = given[option.name]
        if value == option.default:
            continue
        if option.kind == FLAG:
            words.append(option.flag)
        elif option.kind == VALUE:
            words.append(f"{option.flag}={value}")
        else:
            words += [f"{option.flag}={each}" for each in value]
    return words


def _start(given: Mapping[str, Any]) -> None:
    """Start the command in the background of the process that calls, to end with it."""
    import subprocess  # noqa: PLC0415 - whoever serves needs none of it

    pid = os.getpid()
    words = _words({**given, "master": given["master"] or pid})
    process = subprocess.Popen(  # noqa: S603 - this Python, this package
        # -P: an app's own queue.py, in the working directory, is not ours.
        [sys.executable, "-P", "-m", "guardrails", "watch", *words, f"--parent={pid}", "run"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    _started.append(process)


_started: list[subprocess.Popen[bytes]] = []
"""Kept, since a server reaps its children by itself."""


def watchdog(timeout: Duration = "3m", **options: Any) -> Watchdog:
    """Describe a watchdog for requests that take too long; nothing is started yet.

    In gunicorn.conf.py, `when_ready = guardrails.watchdog(timeout="3m")` runs it beside the server.
    Everywhere else run `guardrails watch start`, which takes the same options: docs/watchdog.md.

    timeout: the age at which a request is too old, 0 for never.   poll ("5s"): from look to look.
    path_timeout: another age by prefix, as `{"/reports": "10m"}`.   exempt_path: prefixes that have
    none, such as those of uploads and downloads.
    interrupt (False): end the request by an exception first, where `throttle(interruptible=True)`.
    grace ("30s"): how long the other requests of a worker have to end.   step ("3s"): from signal to
    signal.   least_workers (0): never leave fewer alive.   between ("10s"): from one worker's end to
    the next.   ban: how long the client of a killed request is refused the same path.   user: as root,
    the user whose workers are watched; gunicorn's own is known.
    dry_run (False): only tell.   on_event: a command for each event.   log_file: where to write.
    store: the URL of the store; by default those of the process that calls.   master: pid or pid file
    of the server, for the monitor.   The monitor's: probe, log, disk, swap_in, load, pressure and
    what belongs to them.

    Raises ConfigurationError for what is wrong.
    """
    from guardrails.watchdog.events import command_words  # noqa: PLC0415 - as above

    for name, value in options.items():
        if name not in _DEFAULTS:
            raise ConfigurationError(
                f"watchdog: {name}={value!r} is unknown: the options are "
                + ", ".join(sorted(_DEFAULTS))
            )
    given = _DEFAULTS | options | {"timeout": timeout}
    for option in OPTIONS:
        if option.kind == FLAG and not isinstance(given[option.name], bool):
            raise ConfigurationError(
                f"{option.name}: {given[option.name]!r} is neither True nor False: write one of them"
            )
        if option.kind in (MANY, PAIRS):
            given[option.name] = _several(given[option.name])
    if given["on_event"] is not None:
        command_words(given["on_event"], "on_event")
    watch = Watchdog(tuple(given.items()), _policy(given), _store_name(given["store"]))
    watch.monitor(_nobody)
    return watch


def _policy(given: Mapping[str, Any]) -> Policy:
    paths = dict.fromkeys(exempt_path_prefixes(given["exempt_path"]), 0.0)
    for pair in given["path_timeout"]:
        prefix, equals, value = pair.rpartition("=")
        if not equals:
            raise ConfigurationError(
                f"path_timeout: {pair!r} is no PREFIX=TIME: write such as /reports=10m"
            )
        (prefix,) = exempt_path_prefixes([prefix])
        paths[prefix] = parse_seconds(value, "path_timeout")
    poll = parse_seconds(given["poll"], "poll")
    if poll < 0.05:
        raise ConfigurationError(f'poll: {given["poll"]!r} is too often: write at least "50ms"')
    ban = given["ban"]
    return Policy(
        timeout=parse_seconds(given["timeout"], "timeout"),
        poll=poll,
        path_timeouts={wsgi_text(prefix): seconds for prefix, seconds in paths.items()},
        interrupt=bool(given["interrupt"]),
        grace=parse_seconds(given["grace"], "grace"),
        step=parse_seconds(given["step"], "step"),
        least_workers=parse_count(
            number_of_text(given["least_workers"]), "least_workers", least=0, most=10_000
        ),
        between=parse_seconds(given["between"], "between"),
        ban=0.0 if ban is None else parse_seconds(ban, "ban"),
        dry_run=bool(given["dry_run"]),
    )


def _store_name(url: str | None) -> str | None:
    """The name of the store that was meant, by the option or in the environment."""
    url = url or os.environ.get("GUARDRAILS_STORE")
    if url is None or url == "shm:":
        return None
    name: str | None = getattr(store_from_url(url), "name", None)
    if name is None:
        raise ConfigurationError(
            f"store: {url!r} is in each process's own memory, where nobody can look from outside: "
            'watch a shared one, such as "shm:shop"'
        )
    return name


def _several(value: Any) -> tuple[str, ...]:
    """One text, several, or a mapping, as PREFIX=VALUE."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        return tuple(f"{prefix}={each}" for prefix, each in value.items())
    if isinstance(value, Iterable):
        return tuple(map(str, value))
    return (str(value),)


def _nobody(*_told: Any, **_facts: Any) -> None:
    """Hears events of a monitor that is made only to see that it can be."""

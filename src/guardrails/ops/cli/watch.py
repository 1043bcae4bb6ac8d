"""The command `guardrails watch`, built from the signature of `guardrails.watchdog()`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from guardrails.errors import GuardrailsError
from guardrails.watchdog import process
from guardrails.watchdog.background import report_problem
from guardrails.watchdog.command_line import Option, flag_of
from guardrails.watchdog.lock import Lock
from guardrails.watchdog.options import REMOVED, RENAMED, Watchdog, command_options, watchdog
from guardrails.watchdog.user import become


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the commands of `guardrails`."""
    parser = commands.add_parser(
        "watch",
        help="the watchdog for requests that take too long",
        description="Report requests that take too long, with the stack of their thread, and have "
        "their workers replaced. The same process can monitor the site, its logs and its host.",
        epilog="Exit status: 0 done, or running; 1 failed; 2 wrong usage; 3 not running; 4 running, "
        "but there is nothing to watch.",
    )
    options = {option.name: option for option in command_options()}
    for option in options.values():
        _add_option(parser, option)
    for old, new in RENAMED.items():
        parser.add_argument(
            flag_of(old),
            action=_Renamed,
            dest=new,
            repeated=options[new].is_repeated,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
    for name in REMOVED:
        parser.add_argument(flag_of(name), action=_Removed, dest=name, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "action",
        choices=sorted(["run", *process.ACTIONS]),
        help="run: in the foreground; start, stop: in the background; restart: stop, and start with "
        "the options of before and those given now; status: what is watched",
    )
    parser.set_defaults(run=_run, parser=parser)


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    """Add an option. One that is not given has no value, so that `restart` knows those that are."""
    text = option.help.replace("%", "%%")
    if option.is_flag:
        parser.add_argument(
            option.flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
        )
    elif option.is_repeated:
        parser.add_argument(
            option.flag,
            action="append",
            default=argparse.SUPPRESS,
            metavar=option.metavar,
            help=f"{text}; may be given several times".removeprefix("; "),
        )
    else:
        default = "" if option.default is None else f" (default: {option.default})"
        parser.add_argument(
            option.flag, default=argparse.SUPPRESS, metavar=option.metavar, help=text + default
        )


class _Renamed(argparse.Action):
    """Takes an option by its name of an earlier version, and says so on standard error."""

    def __init__(self, *arguments: Any, repeated: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._repeated = repeated

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(  # noqa: T201 - output of a command
            f"guardrails: {option_string} is now {flag_of(self.dest)}; the next minor version no "
            "longer takes it",
            file=sys.stderr,
        )
        if self._repeated:
            values = [*getattr(namespace, self.dest, ()), values]
        setattr(namespace, self.dest, values)


class _Removed(argparse.Action):
    """Refuses an option of an earlier version, and says what to write in its place."""

    def __call__(self, parser: argparse.ArgumentParser, *_more: Any) -> None:
        name = flag_of(self.dest)
        parser.exit(2, f"guardrails: {name} is no longer an option: {REMOVED[self.dest]}\n")


def _run(parsed: argparse.Namespace) -> int:
    try:
        return _run_action(parsed)
    except (GuardrailsError, OSError) as error:
        report_problem(parsed.ready_fd, error)
        raise


def _run_action(parsed: argparse.Namespace) -> int:
    given = _given(parsed)
    described = watchdog(**given)
    if "user" in given:
        become(given["user"])
    if parsed.action == "run":
        return process.run(described, parsed.parent, parsed.ready_fd)
    if parsed.action == "restart":
        described = watchdog(**{**_remembered(described, parsed), **given})
    return process.ACTIONS[parsed.action](described, parsed.parent)


def _given(parsed: argparse.Namespace) -> dict[str, Any]:
    """The options that are on the command line, by name."""
    words = vars(parsed)
    return {option.name: words[option.name] for option in command_options() if option.name in words}


def _remembered(described: Watchdog, parsed: argparse.Namespace) -> dict[str, Any]:
    """The options of the watchdog that runs, or was killed."""
    note = Lock(process.lock_name(described, parsed.parent)).note()
    if note is None:
        return {}
    return _given(parsed.parser.parse_args([*note.arguments, "restart"]))

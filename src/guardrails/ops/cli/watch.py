"""The command `guardrails watch`, built from the signature of `guardrails.watchdog()`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from guardrails.watchdog import process
from guardrails.watchdog.command_line import Option, flag_of
from guardrails.watchdog.options import RENAMED, command_options, watchdog


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the commands of `guardrails`."""
    parser = commands.add_parser(
        "watch",
        help="the watchdog for requests that take too long",
        description="Report requests that take too long, with the stack of their thread, and have "
        "their workers replaced. The same process can monitor the site, its logs and its host.",
        epilog="Exit status: 0 done, or running; 1 failed; 2 wrong usage; 3 not running.",
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
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "action",
        choices=sorted(process.ACTIONS),
        help="run: in the foreground; start, stop, restart: in the background; status: whether it runs",
    )
    parser.set_defaults(run=_run)


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    text = option.help.replace("%", "%%")
    if option.is_flag:
        parser.add_argument(option.flag, action="store_true", help=text)
    elif option.is_repeated:
        parser.add_argument(
            option.flag,
            action="append",
            default=[],
            metavar=option.metavar,
            help=f"{text}; may be given several times".removeprefix("; "),
        )
    else:
        default = "" if option.default is None else f" (default: {option.default})"
        parser.add_argument(
            option.flag, default=option.default, metavar=option.metavar, help=text + default
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
            values = [*getattr(namespace, self.dest), values]
        setattr(namespace, self.dest, values)


def _run(parsed: argparse.Namespace) -> int:
    given = {option.name: getattr(parsed, option.name) for option in command_options()}
    described = watchdog(**given)
    if given["user"] is not None:
        process.become(given["user"])
    return process.ACTIONS[parsed.action](described, parsed.parent)

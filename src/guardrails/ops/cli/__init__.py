"""The command `guardrails`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guardrails.errors import GuardrailsError
from guardrails.watchdog import process
from guardrails.watchdog.options import FLAG, OPTIONS, VALUE, watchdog


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status. What is wrong is one sentence on standard error, and 2."""
    parsed = _parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except GuardrailsError as error:
        print(f"guardrails: {error}", file=sys.stderr)  # noqa: T201 - a command speaks
        return 2
    except OSError as error:
        print(f"guardrails: the system refuses: {error}", file=sys.stderr)  # noqa: T201 - as above
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="guardrails", description="Look after a site that guardrails protects."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    watching = commands.add_parser(
        "watch",
        help="the watchdog for requests that take too long",
        description="Tell of requests that take too long, with the stack of their thread, and replace "
        "their workers. Beside it, a monitor of the site, its logs and its host.",
        epilog="Exit status: 0 done, or running; 1 failed; 2 wrong usage; 3 not running.",
    )
    for option in OPTIONS:
        if option.kind == FLAG:
            watching.add_argument(option.flag, action="store_true", help=option.help)
        elif option.kind == VALUE:
            default = "" if option.default is None else f" (default: {option.default})"
            watching.add_argument(
                option.flag, default=option.default, metavar=option.shown, help=option.help + default
            )
        else:
            watching.add_argument(
                option.flag,
                action="append",
                default=[],
                metavar=option.shown,
                help=f"{option.help}; may be given again",
            )
    watching.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    watching.add_argument(
        "action",
        choices=sorted(process.ACTIONS),
        help="run: in the foreground; start, stop, restart: in the background; status: whether it runs",
    )
    watching.set_defaults(run=_watch)
    return parser


def _watch(parsed: argparse.Namespace) -> int:
    given = {option.name: getattr(parsed, option.name) for option in OPTIONS}
    described = watchdog(given.pop("timeout"), **given)
    if given["user"] is not None:
        process.become(given["user"])
    return process.ACTIONS[parsed.action](described, parsed.parent)

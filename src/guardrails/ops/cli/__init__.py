"""The command `guardrails`. Each of its commands has a file of its own here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guardrails.errors import GuardrailsError
from guardrails.ops.cli import watch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the words after `guardrails`; None takes those of the process.

    Returns:
        The exit status. Wrong usage is one sentence on standard error, and status 2.
    """
    parsed = parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except GuardrailsError as error:
        print(f"guardrails: {error}", file=sys.stderr)  # noqa: T201 - output of a command
        return 2
    except OSError as error:
        print(f"guardrails: the system refuses: {error}", file=sys.stderr)  # noqa: T201 - as above
        return 1
    return status


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; what it parses has the command's function as `run`."""
    whole = argparse.ArgumentParser(
        prog="guardrails", description="Look after a site that guardrails protects."
    )
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    watch.add_to(commands)
    return whole

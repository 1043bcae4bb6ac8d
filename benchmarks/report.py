"""The tables of measurements, on the screen and in docs/benchmarks.md."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

import guardrails

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
COLUMNS = ("what", "measured", "against", "ratio", "to reach", "reached?")
PACKAGES = ("Flask", "Flask-Limiter", "limits", "gunicorn", "Werkzeug", "pyperf")
NOTES = "## What stands in the way"
"""The heading of the notes, which are written by hand and kept."""

HEAD = """# Benchmarks

`make bench` writes this page, except for the notes at the end.

- taken on {machine}
- guardrails {own}, {versions}
- {date}

All figures that are compared were taken side by side in one run. The programs take turns of a few
milliseconds. Other work on the machine can make a turn longer, but not shorter. So a figure is the
tenth percentile of all turns. Requests per second under gunicorn are taken in turns of 0.3 s; their
figure is the median of each round's comparison. The ratios mean more than the times. "Without any
lock" is the same code on a file of its own, whose lock is replaced by a call that does nothing.
"""


class Row(NamedTuple):
    """One figure to reach, and what was measured. reached: None if there is no figure to reach."""

    what: str
    measured: str
    against: str
    ratio: str
    to_reach: str
    reached: bool | None


class Part(NamedTuple):
    """A table with its title."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def cells(rows):
    answers = {True: "yes", False: "no", None: ""}
    return [(*row[:-1], answers[row.reached]) for row in rows]


def microseconds(seconds):
    return f"{seconds * 1e6:.1f} µs"


def megabytes(size):
    return f"{size / 1e6:.1f} MB"


def show(title, columns, rows):
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)


def write(tables):
    """Write the page, and keep the notes."""
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    notes = old[old.index(NOTES) :] if NOTES in old else f"{NOTES}\n"
    head = HEAD.format(
        machine=machine(),
        own=guardrails.__version__,
        versions=", ".join(f"{name} {version(name)}" for name in PACKAGES),
        date=datetime.now(UTC).date().isoformat(),
    )
    shown = [f"## {table.title}\n\n{_markdown(table.columns, table.rows)}\n" for table in tables]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join((head, *shown, notes)), encoding="utf-8")


def machine():
    """Return the machine of the run, without names."""
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{cores} core{'s' * (cores != 1)} of {_processor()}, {system}, {python}"


def _processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _markdown(columns, rows):
    align = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, align, *rows))

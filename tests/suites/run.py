"""Runs the test suites of other projects with and without guardrails, and compares: `run.py SOURCES`.

SOURCES has the unpacked source distributions. A test that passes without guardrails has to pass with
guardrails before every app, in each of several ways.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SECONDS = 900
"""How long one suite may take in one way."""
MOST_NAMED = 20
"""How many new failures of a suite are named, and tried once more."""

SUITES = {
    "flask": ["tests"],
    # Its development server runs in a process of its own, where no app is wrapped.
    "werkzeug": ["tests", "-m", "not dev_server"],
    "falcon": ["tests"],
    "bottle": ["test"],
    "webob": ["tests"],
    "webtest": ["tests"],
    "whitenoise": ["tests"],
}
"""By project: which tests are run."""

WAYS = {
    "memory": "bare",
    "shm": "bare",
    "nested": "bare",
    "validators": "validators alone",
}
"""Each way in which apps are wrapped, and the one to compare with."""


class Results(NamedTuple):
    """What a suite did in one way."""

    outcomes: dict[str, str]
    requests: int
    trouble: str

    def count(self, outcome):
        return list(self.outcomes.values()).count(outcome)


def run(folder, way, *tests):
    """Run a suite, or some of its tests, in one way."""
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch, "results.json")
        left_out = ("GUARDRAILS", "PYTHON")
        environ = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
        environ |= {"SUITES_WAY": way, "SUITES_RESULTS": str(results)}
        environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE / "left_out")])
        try:
            done = subprocess.run(
                [
                    *(
                        sys.executable,
                        "-m",
                        "pytest",
                        "-q",
                        "-p",
                        "wrap_apps",
                        "-p",
                        "no:cacheprovider",
                    ),
                    *("--basetemp", str(Path(scratch, "tests")), "--tb=short"),
                    # Not every file can be read with every version of what the suites need.
                    *("--continue-on-collection-errors", *tests),
                ],
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
            )
            found = json.loads(results.read_text())
        except subprocess.TimeoutExpired:
            return Results({}, 0, f"was not done in {SECONDS} s")
        except FileNotFoundError:
            return Results({}, 0, f"ended without results:\n{done.stdout[-2000:]}")
    requests = found["seen"].get("requests", 0)
    trouble = ""
    if found["seen"].get("refused") or found["errors"]:
        trouble = f"guardrails refused or failed: {found['seen']}, {found['errors']}"
    elif not requests and way in WAYS:
        trouble = "no request went through guardrails"
    return Results(found["outcomes"], requests, trouble)


def new_failures(folder, way, results, expected):
    """The tests that guardrails makes fail: each is tried once more, also without guardrails."""
    passed = {test for test, outcome in expected.outcomes.items() if outcome == "passed"}
    failed = sorted(test for test in passed if results.outcomes.get(test) != "passed")
    if not failed or len(failed) > MOST_NAMED:
        return failed
    again, without = run(folder, way, *failed).outcomes, run(folder, WAYS[way], *failed).outcomes
    return [test for test in failed if again.get(test) != "passed" and without.get(test) == "passed"]


def compare(project, folder):
    """The rows of the table about one suite, and its troubles."""
    tests = SUITES[project]
    bases = {way: run(folder, way, *tests) for way in dict.fromkeys(WAYS.values())}
    rows, troubles = [], []
    for way, base in WAYS.items():
        expected, results = bases[base], run(folder, way, *tests)
        failures = new_failures(folder, way, results, expected)
        say(
            f"{folder.name}, {way}: {results.count('passed')} tests pass, "
            f"{expected.count('passed')} without guardrails"
        )
        told = [one for one in (expected.trouble, results.trouble) if one]
        if not expected.count("passed"):
            told.append(f"no test passes even in the way {base!r}")
        rows.append(
            (
                *(folder.name, way, results.requests, expected.count("passed")),
                *(results.count("passed"), len(failures)),
            )
        )
        troubles += [f"{folder.name}, {way}: {one}" for one in told]
        troubles += [f"{folder.name}, {way}: new failure: {test}" for test in failures[:MOST_NAMED]]
    return rows, troubles


def say(what):
    print(what, file=sys.stderr, flush=True)


def show(rows):
    heads = ("suite", "way", "requests", "passed without", "passed with", "new failures")
    table = [heads, *(tuple(map(str, row)) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    for row in table:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def main():
    sources = Path(sys.argv[1])
    chosen = sys.argv[2:] or list(SUITES)
    folders = {project: next(iter(sorted(sources.glob(f"{project}-*/")))) for project in chosen}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compared = list(pool.map(compare, folders, folders.values()))
    show([row for rows, _troubles in compared for row in rows])
    troubles = [one for _rows, troubles in compared for one in troubles]
    print(*troubles, sep="\n")
    sys.exit(1 if troubles else 0)


if __name__ == "__main__":
    main()

"""`make bench`: measure, print the table with its ratios, and write docs/benchmarks.md.

--quick: only what a request costs, and where; nothing is written.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import figures
import micro
import parts
import pyperf
import report

HERE = Path(__file__).parent
WORKERS = 3
MICRO_SECONDS, THREADS_SECONDS, CLIENTS_SECONDS, SERVER_SECONDS = 15, 9, 10, 60
QUICK_SECONDS = 12


def quick():
    taken = micro.measure(QUICK_SECONDS)
    report.show("What a request costs", report.COLUMNS, report.cells(figures.costs(taken)))
    report.show("Besides", figures.BESIDES, figures.besides(taken))
    report.show("Where it goes", figures.PARTS, figures.parts(parts.profile(4)))


def everything():
    taken = _in_workers()
    say("threads")
    threads = _figures_of("threads.py", THREADS_SECONDS)
    say("a million clients")
    clients = _figures_of("clients.py", CLIENTS_SECONDS)
    say("gunicorn")
    servers = _figures_of("server.py", SERVER_SECONDS)
    say("parts")
    rows = [
        *figures.costs(taken),
        *figures.losses(servers),
        *figures.beside_threads(threads),
        *figures.calls(*micro.calls_per_request()),
        *figures.memory(clients["memory"]),
        *figures.growth(clients["growth"]),
    ]
    tables = [
        report.Part("Figures to reach", report.COLUMNS, report.cells(rows)),
        report.Part("Where the time of a request goes", figures.PARTS, figures.parts(parts.profile())),
        report.Part("Besides", figures.BESIDES, figures.besides(taken)),
        report.Part("Under gunicorn", figures.SERVERS, figures.servers(servers)),
        report.Part("By the number of clients", figures.CLIENTS, figures.by_clients(clients)),
    ]
    for table in tables:
        report.show(*table)
    report.write(tables)


def _in_workers():
    """Some processes one after another, each with its own luck in memory; their rounds together."""
    suite = None
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, WORKERS + 1):
            say(f"requests, process {number} of {WORKERS}")
            path = str(Path(folder, f"{number}.json"))
            subprocess.run([sys.executable, HERE / "micro.py", path, str(MICRO_SECONDS)], check=True)
            found = pyperf.BenchmarkSuite.load(path)
            if suite is None:
                suite = found
            else:
                suite.add_runs(found)
    return {name: suite.get_benchmark(name).get_values() for name in suite.get_benchmark_names()}


def _figures_of(script, seconds):
    done = subprocess.run(
        [sys.executable, HERE / script, str(seconds)], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def say(what):
    print(f"measuring: {what}", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less than 25 seconds, writes nothing")
    if parser.parse_args().quick:
        quick()
    else:
        everything()


if __name__ == "__main__":
    main()

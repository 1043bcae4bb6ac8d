"""The demo: two gunicorn workers with one shared state, and the visitors of an access log.

Run    make demo

In under a minute, the demo floods /morphing/ without guardrails. Then it does so with guardrails, while
it replays the log over HTTP, sends requests of a blocked agent, and kills a worker within a request. In
the end it prints which clients were admitted or refused, by which guard and for how long. The exit
status is 0 only if everything that the demo claims was observed.
"""

# ruff: noqa: E402 - the demo leaves no file behind, so the switch must come before its own modules
import sys

sys.dont_write_bytecode = True

import os
import secrets
import signal
import tempfile
import threading
import time
from pathlib import Path

import claims
import report
from clients import Activity, Answer, Crowd
from observer import Observer
from replay import Order, read_log
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from server import Server

QUIET_SECONDS = 2.0
BARE_FLOOD_SECONDS = 4.0
FLOOD_SECONDS = 9.0
KILL_AFTER_SECONDS = 3.0
AFTER_SECONDS = 3.0
HURRY_SECONDS = 7.0
PLANNED_SECONDS = 47.0

READERS = [f"198.51.100.{number}" for number in range(1, 101)]
READER_EVERY = 0.1
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
GREEDY = Order("greedy client", 0, "203.0.113.7", "GET", "/morphing/", BROWSER)
GREEDY_BUT_PATIENT = GREEDY._replace(source="greedy client, patient")
BLOCKED = Order("blocked agent", 0, "192.0.2.66", "GET", "/news/", "EmailSiphon")
KNOCK = Order("demo", 0, "192.0.2.1", "GET", "/static/logo.txt", "demo")
GREEDY_CONNECTIONS = 12
GREEDY_EVERY = 0.1
WIDTH_WITHOUT_TERMINAL = 100


class InterruptedDemoError(Exception):
    """Ctrl-C, or a SIGTERM."""


class Demo:
    """Starts everything, waits, and notes what happened."""

    def __init__(self, folder: Path, progress: Progress, interrupted: threading.Event) -> None:
        self.began = time.monotonic()
        self.folder = folder
        self.store_url = f"shm:demo-three-services-{os.getpid()}-{secrets.token_hex(4)}?private"
        self.interrupted = interrupted
        self.progress = progress
        self.bar = progress.add_task("starting", total=PLANNED_SECONDS)
        self.log = read_log(HURRY_SECONDS)

    def run(self) -> claims.Evidence:
        evidence = claims.Evidence(log=self.log)
        self.without_guardrails(evidence)
        self.with_guardrails(evidence)
        evidence.seconds = time.monotonic() - self.began
        return evidence

    def pause(self, seconds: float) -> None:
        """Wait, keep the bar moving, and stop at once when interrupted."""
        until = time.monotonic() + seconds
        while True:
            elapsed = time.monotonic() - self.began
            self.progress.update(self.bar, completed=min(elapsed, PLANNED_SECONDS))
            left = until - time.monotonic()
            if self.interrupted.wait(max(0.0, min(left, 0.1))):
                raise InterruptedDemoError
            if left <= 0:
                return

    def say(self, what: str) -> None:
        self.progress.update(self.bar, description=what)

    def server(self, app: str) -> Server:
        environ = {
            "GUARDRAILS": "on",
            "GUARDRAILS_STORE": self.store_url,
            "DEMO_DESKS": str(self.desks(app)),
        }
        return Server(f"app:{app}", self.folder, environ, self.pause)

    def desks(self, app: str) -> Path:
        folder = self.folder / app
        folder.mkdir(exist_ok=True)
        return folder

    def without_guardrails(self, evidence: claims.Evidence) -> None:
        self.say("without guardrails: quiet")
        crowd = evidence.bare.crowd
        with crowd, self.server("services") as server:
            self.open_doors(crowd, server)
            readers = crowd.keep_to(reader_orders())
            self.pause(QUIET_SECONDS)
            self.say("without guardrails: /morphing/ is flooded")
            flood = self.flood(crowd)
            self.pause(BARE_FLOOD_SECONDS)
            self.finish(flood)
            self.say("without guardrails: after the flood")
            self.pause(QUIET_SECONDS)
            self.finish(readers)
            evidence.bare.flood = (flood.began, flood.ended)
            evidence.bare.desks = len(list(self.desks("services").iterdir()))
        evidence.left_processes += server.processes()

    def with_guardrails(self, evidence: claims.Evidence) -> None:
        self.say("with guardrails: quiet")
        crowd = evidence.guarded.crowd
        observer = Observer(self.store_url, self.pause)
        with observer, crowd, self.server("application") as server:
            self.open_doors(crowd, server)
            observer.requests()
            readers = crowd.keep_to(reader_orders())
            self.pause(QUIET_SECONDS)
            self.say("the log's busiest minutes at true speed, a flood, a blocked agent")
            busiest = crowd.keep_to(self.log.true_speed)
            flood = self.flood(crowd)
            blocked = crowd.insist(BLOCKED, every=0.25, connections=1)
            self.pause(KILL_AFTER_SECONDS)
            evidence.kill = observer.kill_a_worker_in_mid_request(GREEDY.target)
            self.say("the same, and a worker was just killed in mid-request")
            self.pause(flood.began + FLOOD_SECONDS - time.monotonic())
            self.finish(flood)
            evidence.guarded.flood = (flood.began, flood.ended)
            self.say("the greedy client waits for as long as it is told")
            evidence.patience = self.wait_as_told(crowd)
            self.say("the log's busiest minutes at true speed")
            self.wait_for(busiest)
            self.pause(flood.ended + AFTER_SECONDS - time.monotonic())
            self.finish(blocked)
            self.finish(readers)
            self.say("the rest of the log, in a hurry")
            self.wait_for(crowd.keep_to(self.log.in_a_hurry))
            self.say("looking at what is left")
            server.wait_for_workers(2)
            evidence.slots_held = observer.slots_held_at_the_end()
            evidence.counters = dict(observer.store.counters())
            evidence.alarms = dict(observer.store.alarms())
            evidence.guarded.desks = len(list(self.desks("application").iterdir()))
            evidence.server_log = server.log.read_text(errors="replace")
        evidence.left_processes += server.processes()
        evidence.left_files += observer.left_files()

    def open_doors(self, crowd: Crowd, server: Server) -> None:
        """Wait until the server answers. A connection made too early waits in the socket's queue."""
        crowd.port = server.port
        server.wait_for_workers(2)
        self.wait_for(crowd.keep_to([KNOCK]))
        if crowd.of(KNOCK.source)[-1].status != 200:
            raise RuntimeError(f"gunicorn did not answer:\n{server.log.read_text()}")

    def flood(self, crowd: Crowd) -> Activity:
        return crowd.insist(GREEDY, every=GREEDY_EVERY, connections=GREEDY_CONNECTIONS)

    def finish(self, activity: Activity) -> None:
        """Let nobody ask again, and wait for the answers that are still to come."""
        activity.finished.set()
        self.wait_for(activity)

    def wait_for(self, activity: Activity) -> None:
        """Wait for an activity's end, without being deaf to Ctrl-C."""
        while activity.running():
            self.pause(0.05)
        activity.finish()

    def wait_as_told(self, crowd: Crowd) -> list[Answer]:
        """Ask until refused, wait for Retry-After, and ask again."""
        answers = []
        for _ in range(20):
            answers.append(crowd.ask(GREEDY_BUT_PATIENT))
            if answers[-1].retry_after is not None:
                break
            self.pause(0.05)
        refused = answers[-1]
        self.pause(refused.done + (refused.retry_after or 0) - time.monotonic())
        answers.append(crowd.ask(GREEDY_BUT_PATIENT))
        return answers[-2:]


def reader_orders() -> list[Order]:
    """A reader of /news/ every tenth of a second, for longer than the demo takes."""
    return [
        Order("reader", READER_EVERY * number, READERS[number % len(READERS)], "GET", "/news/", BROWSER)
        for number in range(round(PLANNED_SECONDS * 4 / READER_EVERY))
    ]


def main() -> int:
    # The handler only sets a flag, which every wait looks at: nothing is ever torn in the middle.
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: interrupted.set())
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console) as progress,
        tempfile.TemporaryDirectory(prefix="guardrails-demo-") as folder,
    ):
        demo = Demo(Path(folder), progress, interrupted)
        try:
            evidence = demo.run()
        except InterruptedDemoError:
            demo.say("interrupted, and everything ended")
            return 130
    if Path(folder).exists():
        evidence.left_files.append(Path(folder))
    found = claims.check(evidence)
    report.show(console, evidence, found)
    return int(any(claim.fails for claim in found))


if __name__ == "__main__":
    sys.exit(main())

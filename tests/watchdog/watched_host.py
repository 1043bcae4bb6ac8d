"""A host as the watchdog sees it. Time, processes and scoreboards are the test's own."""

import signal
from pathlib import Path

from guardrails.errors import StoreError
from guardrails.store.records import Death, InFlight, Penalty, Records, Worker
from guardrails.watchdog.loop import WatchdogLoop
from guardrails.watchdog.overdue import WatchedStore
from guardrails.watchdog.policy import Policy

TERM, ABRT, KILL, HUP = signal.SIGTERM, signal.SIGABRT, signal.SIGKILL, signal.SIGHUP


class Board:
    """What the scoreboard of one of such a host's stores shows."""

    def __init__(self, host):
        self.host = host
        self.in_flight = {}
        self.fails = None
        self.busy = False
        self.shows = None
        self.dead = []

    def requests(self):
        if self.fails:
            raise StoreError(self.fails)
        return Records(
            request._replace(age_seconds=self.host.now - began)
            for request, began in self.in_flight.values()
            if request.pid in self.host.workers
        )

    def workers(self):
        return Records(
            worker
            for worker in (self.host.on_the_board() if self.host.on_board else [])
            if self.shows is None or worker.pid in self.shows
        )

    def deaths(self, after=0):
        return Records(death for death in self.dead if death.number > after)

    def mark_retiring(self, worker):
        if self.busy:
            raise StoreError("busy")
        self.host.retiring.append(worker.pid)

    def penalize(self, request, microseconds, ban_for):
        if self.busy:
            raise StoreError("busy")
        self.host.penalized.append((request.client, microseconds / 1e6, ban_for / 1e6))
        if request.generation not in self.in_flight:
            return None
        return Penalty(self.host.meters, bool(ban_for))


class Extra:
    """One more worker of a server, and what the server was told."""

    def __init__(self, host):
        self.host = host
        self.asked_at = host.now

    def is_ready(self, serving, now):
        return self.has_come() and now >= self.asked_at + self.host.starts_in

    def has_come(self):
        return self.host.starts_in is not None

    def hand_back(self):
        self.host.handed_back += [] if self.host.handed_back else [self.host.now]


class Host:
    """Workers with requests, as a scoreboard and the system show them, and a watchdog that looks."""

    def __init__(self, scope=None, **policy):
        scope = scope or {}
        self.now = 1000.0
        self.workers = {}
        self.boards = {"shm:test": Board(self)}
        self.parents = {}
        self.sent = []
        self.events = []
        self.told_at = {}
        self.penalized = []
        self.asked = []
        self.sent_before_asking = {}
        self.retiring = []
        self.interrupted = []
        self.takes_commands = True
        self.deadly = {KILL}
        self.immortal = set()
        self.untouchable = set()
        self.broken = set()
        self.meters = 1
        self.cpu_used = 0.0
        self.on_board = True
        self.has_idle_worker = "least_workers" not in policy
        self.can_add = True
        self.killed_by_kernel = 3
        self.starts_in = 0.0
        self.added = []
        self.handed_back = []
        self.dumps = {}
        options = {
            "timeout": 60.0,
            "poll": 5.0,
            "grace": 30.0,
            "signal_interval": 2.0,
            "kill_interval": 10.0,
        } | policy
        self.watchdog = WatchdogLoop(
            Policy(**options),
            lambda: [WatchedStore(board, name) for name, board in self.boards.items()],
            self.announce,
            self,
            lambda: self.now,
            **scope,
        )

    # What happens to processes.
    def send(self, owner, number):
        if owner.pid in self.broken:
            raise RuntimeError("out of luck")
        if owner.pid in self.untouchable:
            raise PermissionError(1, "Operation not permitted")
        self.sent.append((self.now, owner.pid, number))
        if number in self.deadly and owner.pid not in self.immortal:
            self.workers.pop(owner.pid, None)
        return True

    def is_there(self, owner):
        return owner.pid in self.workers and self.workers[owner.pid].process_start == owner.start

    def parent(self, pid):
        return self.parents.get(pid, 1)

    def cpu_seconds(self, pid):
        return self.cpu_used

    def namespace(self):
        return 1

    def dump(self, worker, thread):
        self.asked.append(worker.pid)
        self.sent_before_asking[worker.pid] = self.signals()
        return self.dumps.get(worker.pid)

    def interrupt(self, worker, request):
        self.interrupted.append((worker.pid, request.generation))
        return self.takes_commands

    def add_worker(self, worker):
        if not self.can_add:
            return None
        self.added.append((self.now, worker.pid))
        return Extra(self)

    def oom_file(self, pid):
        return Path("memory.events")

    def oom_kills(self, file):
        return self.killed_by_kernel

    def announce(self, event, message, level=30, **facts):
        self.events.append((event, message, facts))
        self.told_at.setdefault(event, self.now)

    def on_the_board(self):
        idle = [new_worker(999, state="idle")] if self.has_idle_worker else []
        return [*self.workers.values(), *idle]

    # What tests say.
    def alone(self):
        """No idle worker is beside those of the test."""
        self.has_idle_worker = False
        return self

    def worker(self, pid, **changes):
        self.workers[pid] = new_worker(pid, **changes)
        return self

    def request(
        self, number, pid, age=0.0, path="/slow", client="192.0.2.1", store="shm:test", **changes
    ):
        request = InFlight(
            pid=pid,
            generation=number,
            age_seconds=0.0,
            client=client,
            method="GET",
            host="example.org",
            path=path,
            slots=0,
            thread=0x7F00 + number,
            process_start=pid * 10,
            row=number,
            namespace=1,
        )._replace(**changes)
        self.boards.setdefault(store, Board(self)).in_flight[number] = (request, self.now - age)
        return self

    def dies(self, pid, *paths, store="shm:test", **changes):
        """A worker dies with requests in flight, and a store has recorded that."""
        worker = self.workers.pop(pid, None)
        board = self.boards.setdefault(store, Board(self))
        for path in paths or [""]:
            death = Death(
                number=max((death.number for death in board.dead), default=0) + 1,
                pid=pid,
                process_start=pid * 10,
                namespace=1,
                parent=worker.parent if worker else 1,
                seconds_ago=0.0,
                in_flight=len(paths),
                age_seconds=12.0 if paths else None,
                client="192.0.2.1" if paths else "",
                method="GET" if paths else "",
                host="example.org" if paths else "",
                path=path,
            )
            board.dead.append(death._replace(**changes))
        return self

    def ends(self, number):
        for board in self.boards.values():
            board.in_flight.pop(number, None)

    def passes(self, seconds):
        """Let time pass, in the watchdog's own steps."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + self.watchdog.pause())
            self.look()

    def look(self):
        self.watchdog.look()
        return self

    def told(self, event):
        return [message for name, message, _ in self.events if name == event]

    def signals(self):
        return [(pid, number) for _, pid, number in self.sent]


def new_worker(pid, **changes):
    return Worker(
        pid=pid,
        namespace=1,
        process_start=pid * 10,
        parent=1,
        server="gunicorn (gthread)",
        state="serving",
        requests=0,
        in_flight=0,
        age_seconds=1.0,
        last_seen_seconds=1.0,
        cpu_seconds=0.0,
        resident_bytes=0,
        threads=4,
        respawns=True,
        retire_signal=TERM,
        dump_signal=45,
        asked_by_signal=False,
        interruptible=False,
        limits={},
    )._replace(**changes)

"""What a store shows of its state: requests in flight, workers, counters."""

import json
from typing import NamedTuple, TypeVar

from guardrails.store.processes import Owner


class InFlight(NamedTuple):
    """A request that is being served, as the scoreboard shows it.

    Attributes:
        pid: the process that serves it.
        generation: its number. No other request of the same store ever has that number.
        age_seconds: the time since its admission, in seconds.
        client: the client's address.
        method: the request's method.
        host: the request's host.
        path: its path, cut at 128 bytes.
        slots: how many slots it holds.
        thread: the thread that serves it, as numbered by `threading.get_ident()`.
        process_start: when its process was started, in clock ticks since boot. It tells the process
            from a later one with the same pid.
        row: the offset of its row from the first row, in words; -1 in a store without rows.
        namespace: the pid namespace in which `pid` is meant.
        usual_path: whether the whole path, the part that was cut off included, is in its
            canonical spelling.
    """

    pid: int
    generation: int
    age_seconds: float
    client: str
    method: str
    host: str
    path: str
    slots: int
    thread: int = 0
    process_start: int = 0
    row: int = -1
    namespace: int = 0
    usual_path: bool = True

    @property
    def owner(self) -> Owner:
        """The process that serves it, told apart from every other."""
        return Owner(self.pid, self.process_start, self.namespace)


class WorkerFacts(NamedTuple):
    """What a worker reports about itself when it registers with a store.

    Attributes:
        server: the server that runs the worker.
        threads: how many requests it serves at once; 0 where unknown.
        respawns: whether a supervisor starts another worker when this one ends.
        retire_signal: the signal on which it finishes its requests and ends; 0 if there is none.
        dump_signal: the signal on which it writes the stacks of its threads to a file; 0 if there is
            none.
        interruptible: whether a single request of it can be ended by an exception.
        asked_by_signal: True if a watchdog asks for the stacks with a signal of its own; False if it
            sends a command to the worker's control pipe.
    """

    server: str = "unknown"
    threads: int = 0
    respawns: bool = False
    retire_signal: int = 0
    dump_signal: int = 0
    interruptible: bool = False
    asked_by_signal: bool = False


class Worker(NamedTuple):
    """A process that serves requests, as the scoreboard shows it.

    Attributes:
        pid: its process id.
        namespace: the pid namespace in which `pid` is meant.
        process_start: when it was started, in clock ticks since boot.
        parent: the process id of its parent.
        server: see `WorkerFacts`, as for `threads`, `respawns`, `retire_signal`, `dump_signal`,
            `interruptible` and `asked_by_signal`.
        state: "idle", "serving" or "retiring".
        requests: how many requests it has finished.
        in_flight: how many requests it is serving.
        age_seconds: the time since its start, in seconds.
        last_seen_seconds: the time since it last began or finished a request, in seconds.
        cpu_seconds: the CPU time that it has used, in seconds, read from the system by this call;
            None where the system does not tell.
        resident_bytes: its resident memory, in bytes; None likewise.
        limits: its resource limits, as name -> (soft, hard), -1 for unlimited; empty where the system
            does not tell.
    """

    pid: int
    namespace: int
    process_start: int
    parent: int
    server: str
    state: str
    requests: int
    in_flight: int
    age_seconds: float
    last_seen_seconds: float
    cpu_seconds: float | None
    resident_bytes: int | None
    threads: int
    respawns: bool
    retire_signal: int
    dump_signal: int
    interruptible: bool
    asked_by_signal: bool
    limits: dict[str, tuple[int, int]]

    @property
    def owner(self) -> Owner:
        """The process, told apart from every other."""
        return Owner(self.pid, self.process_start, self.namespace)


class Death(NamedTuple):
    """A worker that died, with one request that it had in flight then.

    A worker with several requests in flight has a record for each, up to 16.

    Attributes:
        number: the number of the record; later ones have higher numbers.
        pid: the process that died.
        process_start: when it was started, in clock ticks since boot.
        namespace: the pid namespace in which `pid` is meant.
        parent: the process id of its parent; 0 where that is not known.
        seconds_ago: the time since its death was found, in seconds.
        in_flight: how many requests it had in flight; 0 where it had none.
        age_seconds: how long before that the request had begun, in seconds; None without a request.
        client: the client's address.
        method: the request's method.
        host: the request's host.
        path: its path, cut at 128 bytes.
    """

    number: int
    pid: int
    process_start: int
    namespace: int
    parent: int
    seconds_ago: float
    in_flight: int
    age_seconds: float | None
    client: str
    method: str
    host: str
    path: str

    @property
    def owner(self) -> Owner:
        """The process, told apart from every other."""
        return Owner(self.pid, self.process_start, self.namespace)


Record = TypeVar("Record", InFlight, Worker, Death)


class Records(list[Record]):
    """A list of requests, workers or deaths that can be written as JSON."""

    def to_json(self) -> str:
        """Return a JSON array with one object for each record, its fields by name."""
        return json.dumps([record._asdict() for record in self])


class GuardCounters(NamedTuple):
    """How often a guard did what since the store was made, over all workers.

    Attributes:
        admitted: requests that it admitted.
        refused: requests that it refused.
        delayed: admitted requests that it held back first.
        dry_run_refused: requests that it would have refused, had it not been in a dry run.
    """

    admitted: int = 0
    refused: int = 0
    delayed: int = 0
    dry_run_refused: int = 0


class Penalty(NamedTuple):
    """What was done to the client of a request that a watchdog ends.

    Attributes:
        meters: how many CPU meters were charged.
        banned: whether the client is refused the same resource from now on.
    """

    meters: int = 0
    banned: bool = False

"""A Flask app under gunicorn: how many requests per second are lost. Prints one JSON object.

`python benchmarks/server.py SECONDS`

Three servers run at once, two workers each: bare, behind guardrails, behind Flask-Limiter. Each gets
short turns of load in rotation. Beside the requests per second, which depend on who else wants the
cores, the CPU time that the workers used for a request is taken from the kernel.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter

from subjects import own_store

APPS = ("bare", "behind_guardrails", "behind_flask_limiter")
KINDS = {"sync": [], "gthread": ["--worker-class", "gthread", "--threads", "4"]}
CONNECTIONS = 8
TURN_SECONDS = 0.3
START_SECONDS = 20.0
REQUEST = (
    "GET /articles/2026/throttling HTTP/1.1\r\nHost: www.example.org\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\nConnection: {}\r\n\r\n"
)


def measure(seconds):
    """{kind: {app: {"rate": [requests per second], "cpu": [seconds per request]}}}"""
    return {kind: _measure_kind(kind, seconds / len(KINDS)) for kind in KINDS}


def _measure_kind(kind, seconds):
    with ExitStack() as stack:
        name = f"bench-{os.getpid()}-{kind}"
        # Whoever closes a private store last removes it, and that is us.
        stack.enter_context(own_store(name=name)).switch()
        servers = {app: stack.enter_context(_gunicorn(app, kind, name)) for app in APPS}
        loads = {app: Load(port, keep=kind == "gthread") for app, (port, _) in servers.items()}
        taken = {app: {"rate": [], "cpu": []} for app in APPS}
        for load in loads.values():
            load.run(TURN_SECONDS)
        until = perf_counter() + seconds
        order = list(APPS)
        while perf_counter() < until:
            for app in order:
                pids = _workers(servers[app][1])
                before = _cpu_seconds(pids)
                answered, lasted = loads[app].run(TURN_SECONDS)
                taken[app]["rate"].append(answered / lasted)
                taken[app]["cpu"].append((_cpu_seconds(pids) - before) / answered)
            order.reverse()
        return taken


@contextmanager
def _gunicorn(app, kind, name):
    """A server on a loopback port, and gone afterwards."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", f"app:{app}()", "--workers", "2", *KINDS[kind]]
        command += [
            "--bind",
            f"fd://{listener.fileno()}",
            "--log-level",
            "error",
            "--no-control-socket",
        ]
        server = subprocess.Popen(
            command,
            cwd=Path(__file__).parent,
            pass_fds=[listener.fileno()],
            env=os.environ | {"BENCHMARK_STORE": f"shm:{name}?private"},
        )
        try:
            _await(server, port)
            yield port, server.pid
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _await(server, port):
    """The listener takes connections before anybody answers, so ask for an answer."""
    deadline = time.monotonic() + START_SECONDS
    with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as connection:
        connection.sendall(REQUEST.format("close").encode())
        if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
            raise SystemExit("benchmark: the server does not answer as it should")
    while len(_workers(server.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)


def _workers(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _cpu_seconds(pids):
    """What all threads of these processes have used."""
    nanoseconds = 0
    for pid in pids:
        for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            nanoseconds += int(stat.read_text().split()[0])
    return nanoseconds / 1e9


class Load:
    """Asks for a page over so many connections, each waiting for its answer."""

    def __init__(self, port, *, keep):
        self.port = port
        self.keep = keep
        self.request = REQUEST.format("keep-alive" if keep else "close").encode()

    def run(self, seconds):
        """How many answers came, in how many seconds."""
        with selectors.EpollSelector() as ready:
            started = perf_counter()
            for _ in range(CONNECTIONS):
                self._ask(ready)
            answered = 0
            until = started + seconds
            while perf_counter() < until:
                for key, _ in ready.select(1.0):
                    answered += self._read(ready, key)
            lasted = perf_counter() - started
            self._finish(ready)
        return max(1, answered), lasted

    def _ask(self, ready):
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.sendall(self.request)
        ready.register(connection, selectors.EVENT_READ, bytearray())

    def _read(self, ready, key):
        """1 when that completed an answer."""
        connection, answer = key.fileobj, key.data
        chunk = connection.recv(4096)
        answer += chunk
        if chunk and not _complete(answer):
            return 0
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"benchmark: the server answered {bytes(answer[:40])}")
        if self.keep and chunk:
            answer.clear()
            connection.sendall(self.request)
        else:
            ready.unregister(connection)
            connection.close()
            self._ask(ready)
        return 1

    def _finish(self, ready):
        """Read what is still to come, so that the server is idle when the next has its turn."""
        for key in list(ready.get_map().values()):
            key.fileobj.settimeout(START_SECONDS)
            while (chunk := key.fileobj.recv(4096)) and not _complete(key.data):
                key.data.extend(chunk)
                if _complete(key.data):
                    break
            key.fileobj.close()


def _complete(answer):
    head, end, body = bytes(answer).partition(b"\r\n\r\n")
    if not end:
        return False
    length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
    return len(body) >= int(length)


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]))))

"""A running server with a site, as the tests see it: started for real, and asked over the wire."""

import json
import os
import pwd
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from figures import START_SECONDS, STOP_SECONDS
from setups import BIN, HERE
from wire import ask, free_port

from guardrails import open_store

LONGEST_SECONDS = 60
"""A busy machine may need many times what a quiet one does; only a test that fails waits so long."""


class Site:
    """A running server with the site."""

    stop_seconds = STOP_SECONDS

    def __init__(self, setup, folder):
        self.setup = setup
        self.folder = folder
        self.port = free_port()
        self.store_url = f"shm:matrix-{setup.slug}-{os.getpid()}"
        self.process = None
        self.clients = 0
        self.environ = {
            "SITE_STORE": self.store_url,
            "SITE_FOLDER": str(self.folder),
            "SITE_HOOK": self.setup.hook,
        }

    def command(self):
        return self.setup.command(self.port, self.folder)

    def start(self):
        environ = {key: value for key, value in os.environ.items() if not key.startswith("GUARDRAILS")}
        environ |= self.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(HERE),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.until(self.answers, "the server answers", START_SECONDS)

    def stop(self):
        """End what was started: its group, by the pid of its first process."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def answers(self):
        assert self.process.poll() is None, f"the server has ended:\n{self.log()}"
        try:
            return ask(self.port, "/open/ready", seconds=2).status == 200
        except OSError:
            return False

    def log(self):
        return self.whole_log()[-4000:]

    def whole_log(self):
        return (self.folder / "server.log").read_text(errors="replace")

    def ask(self, target, method="GET", *, client=None, headers=(), **options):
        """A request through the proxy in front; each client has an address of its own."""
        pairs = [*dict(headers).items(), ("ClientAddress", client or self.new_client())]
        return ask(self.port, target, method, pairs, **options)

    def new_client(self):
        """Return an address that no other client has."""
        self.clients += 1
        return f"198.18.{self.clients // 250}.{self.clients % 250 + 1}"

    def facts(self, **options):
        return json.loads(self.ask("/open/facts", **options).body)

    def journal(self, event=None):
        """What the site noted, in order."""
        try:
            lines = (self.folder / "journal").read_text().splitlines()
        except FileNotFoundError:
            return []
        noted = [json.loads(line) for line in lines]
        return [one for one in noted if event in (None, one["event"])]

    @contextmanager
    def store(self):
        """Open the store as the user of the server."""
        user = self.setup.user
        if user is not None:
            os.seteuid(pwd.getpwnam(user).pw_uid)
        try:
            yield open_store(self.store_url)
        finally:
            if user is not None:
                os.seteuid(0)

    def held(self):
        """Slots that are held, by guard."""
        with self.store() as store:
            return {guard: count for guard, count in store.slots_held().items() if count}

    def in_flight(self):
        with self.store() as store:
            return store.requests()

    def is_free(self):
        return not self.held() and not self.in_flight()

    def until(self, condition, what, seconds=LONGEST_SECONDS):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"never in {seconds} s: {what}\n{self.log()}"
            time.sleep(0.02)


def remove_stores(site):
    """Remove the shared files of this run alone, by their names."""
    uid = pwd.getpwnam(site.setup.user).pw_uid if site.setup.user else os.geteuid()
    name = site.store_url.removeprefix("shm:")
    for folder in (Path("/dev/shm"), Path(tempfile.gettempdir())):  # noqa: S108 - where stores lie
        for file in folder.glob(f"guardrails-{uid}/{name}*"):
            file.unlink()

"""gunicorn on a free loopback port: started in a session of its own, and ended with all its workers."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

HERE = Path(__file__).parent
GRACE_SECONDS = 8


class Server:
    """One gunicorn with two workers. `pause` waits, and raises when the demo was interrupted."""

    def __init__(
        self, app: str, folder: Path, environ: dict[str, str], pause: Callable[[float], None]
    ) -> None:
        self.log = folder / f"{app.partition(':')[2]}.log"
        self._app, self._environ, self._pause = app, environ, pause
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # The port is taken before gunicorn starts, so nobody else can take it in between.
        with socket.create_server(("127.0.0.1", 0)) as listener, self.log.open("wb") as log:
            self.port = listener.getsockname()[1]
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", self._app),
                    *("--config", str(HERE / "gunicorn.conf.py"), "--chdir", str(HERE)),
                    *("--bind", f"fd://{listener.fileno()}"),
                ],
                env={**os.environ, **self._environ, "PYTHONDONTWRITEBYTECODE": "1"},
                pass_fds=[listener.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def workers(self) -> list[int]:
        return [pid for pid in self.processes() if pid != self._process.pid]

    def processes(self) -> list[int]:
        """Who is left of the server's session, zombies aside."""
        session = str(self._process.pid).encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                # The command's name may hold spaces and brackets: fields count from its last bracket.
                state, _parent, _group, of = (
                    (folder / "stat").read_bytes().rpartition(b") ")[2].split()[:4]
                )
            except (OSError, ValueError):
                continue
            if of == session and state != b"Z":
                found.append(int(folder.name))
        return sorted(found)

    def wait_for_workers(self, count: int, seconds: float = 20) -> None:
        """Wait until so many workers have been forked."""
        deadline = time.monotonic() + seconds
        while len(self.workers()) < count:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"gunicorn did not start:\n{self.log.read_text()}")
            self._pause(0.05)

    def stop(self) -> None:
        """End it gracefully, and after a while by force; its workers too."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        deadline = time.monotonic() + GRACE_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

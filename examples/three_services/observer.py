"""What an operator sees of the store while the server runs, and how the demo kills a worker."""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

from app import CPU_SECONDS_PER_IMAGE

import guardrails
from guardrails.store.process_files import is_used
from guardrails.store.records import InFlight

LOOK_EVERY = 0.04
KILL_DEADLINE_SECONDS = 20
RELEASE_DEADLINE_SECONDS = 15


class Kill(NamedTuple):
    """A worker that was killed, and the request that it was in the middle of."""

    pid: int
    at: float
    path: str
    slots: int


class Observer:
    """Looks into a private store from outside, and is the last to close it, which removes it."""

    def __init__(self, url: str, pause: Callable[[float], None]) -> None:
        self.url, self.pause = url, pause
        self.files_before = files_of_guardrails()
        self.store = guardrails.open_store(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        # A process that reads the store has it open, so it can be the last to close it.
        self.requests()
        self.store.close()

    def requests(self) -> list[InFlight]:
        """Everything in flight; nothing, when the store is busy or not there yet."""
        try:
            return self.store.requests()
        except guardrails.StoreError:
            return []

    def kill_a_worker_in_mid_request(self, path: str) -> Kill | None:
        """Kill (-9) a worker that has just begun to draw: it has used less CPU than an image takes."""
        deadline = time.monotonic() + KILL_DEADLINE_SECONDS
        while time.monotonic() < deadline:
            looked = time.monotonic()
            for request in self.requests():
                age = request.age_seconds + time.monotonic() - looked
                if request.path == path and request.slots and age < CPU_SECONDS_PER_IMAGE / 2:
                    os.kill(request.pid, signal.SIGKILL)
                    return Kill(request.pid, time.monotonic(), request.path, request.slots)
            self.pause(LOOK_EVERY)
        return None

    def slots_held_at_the_end(self) -> int:
        """Return how many slots are held when all requests have had time to release theirs."""
        deadline = time.monotonic() + RELEASE_DEADLINE_SECONDS
        while (held := sum(self.store.slots_held().values())) and time.monotonic() < deadline:
            self.pause(0.1)
        return held

    def left_files(self) -> list[Path]:
        """The files of guardrails that the demo has made and that still exist."""
        deadline = time.monotonic() + RELEASE_DEADLINE_SECONDS
        while (left := self.new_files()) and time.monotonic() < deadline:
            self.pause(0.1)
        return sorted(left)

    def new_files(self) -> set[Path]:
        """What has come since the beginning, but for the files of other programs that still run."""
        return {path for path in files_of_guardrails() - self.files_before if not is_used(path)}


def files_of_guardrails() -> set[Path]:
    """All files in the folders where guardrails puts the files of this user, but the folder's lock."""
    folders = [Path("/dev/shm"), Path(tempfile.gettempdir())]  # noqa: S108 - looked at only
    return {path for folder in folders for path in folder.glob(f"guardrails-{os.geteuid()}/[!.]*")}

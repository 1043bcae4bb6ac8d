"""A run of the tests leaves the folders of shared memory as it found them, but for the folder's lock.

What lies there is noted when a run begins. What is new when it ends was left by a test, or by
guardrails, unless a living process has it: another run may be under way on the same machine. What
tests have killed leaves files behind. The next worker that starts removes these, so one starts here.
"""

import os
import tempfile
import time
from pathlib import Path

from guardrails.store import directory
from guardrails.store.process_files import is_used
from guardrails.store.shared import SharedStore
from guardrails.watchdog.lock import remove_abandoned

FOLDERS = [
    Path(parent, f"guardrails-{os.geteuid()}")
    for parent in ("/dev/shm", tempfile.gettempdir())  # noqa: S108 - where guardrails puts its files
]
LONGEST_SECONDS = 10


def files():
    """What this version of guardrails has put into the folders of this user.

    A folder's lock stays there. Another version may be at work on this machine: its stores have
    another suffix.
    """
    patterns = (f"*.{directory.file_suffix()}*", ".new-*", "stack-*", "control-*", "watch-*")
    return {path for folder in FOLDERS for pattern in patterns for path in folder.glob(pattern)}


def left_since(before, seconds=LONGEST_SECONDS):
    """What is new and nobody's; processes that are about to end have some seconds to remove it."""
    deadline = time.monotonic() + seconds
    while True:
        start_a_worker()
        left = sorted(path for path in files() - before if not is_used(path))
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def start_a_worker():
    """Make a store and look at its workers, as a worker does: both remove what killed ones left.

    The files of killed watchdogs, which are kept for a while, are removed too.
    """
    remove_abandoned(0)
    store = SharedStore(f"test-leftovers-{os.getpid()}", private=True, clients=16, rows=16)
    try:
        store.workers()
    finally:
        store.close()

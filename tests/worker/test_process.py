"""What a process has: renewed after a fork, and its files go with it."""

import os
import subprocess
import sys

from guardrails.store.process_files import remove_files_of_dead
from guardrails.store.processes import this_process


def test_what_dead_processes_left_is_removed(tmp_path):
    tmp_path.chmod(0o700)
    me = this_process()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for kind in ("stack", "control"):
        (tmp_path / f"{kind}-{me.namespace}-{dead.pid}-1").touch()
        (tmp_path / f"{kind}-{me.namespace}-{os.getpid()}-{me.start}").touch()
        (tmp_path / f"{kind}-1-{dead.pid}-1").touch()  # of another container
    (tmp_path / "stack-of-cards-2").touch()

    remove_files_of_dead(tmp_path)

    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"stack-of-cards-2"} | {
        name
        for kind in ("stack", "control")
        for name in (f"{kind}-{me.namespace}-{os.getpid()}-{me.start}", f"{kind}-1-{dead.pid}-1")
    }

"""Files of single processes in the user's folder of stores: stacks and control pipes.

A file is named after what it is and after its process. The process removes its files when it ends. What
a killed process left is removed by the next look at the workers, and by the next process that starts.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from guardrails.errors import StoreError
from guardrails.store.processes import Owner, is_dead, pid_namespace

STACKS, CONTROL = "stack", "control"
_KINDS = (STACKS, CONTROL)
_NUMBER = re.compile(r"-(\d+)")


def file_name(kind: str, owner: Owner) -> str:
    """Return the name of a process's file of a kind."""
    return f"{kind}-{owner.namespace}-{owner.pid}-{owner.start}"


def remove_files_of_dead(folder: Path | None = None) -> None:
    """Remove the files of processes that have ended. Never raises.

    Args:
        folder: where to look; the folders of this user by default.
    """
    from guardrails.store import directory  # noqa: PLC0415 - needs POSIX

    namespace = pid_namespace()
    for each in directory.folders() if folder is None else (folder,):
        with suppress(OSError):
            for path in each.glob("*-*-*-*"):
                owner = _owner(path.name)
                if owner is not None and owner.namespace == namespace and is_dead(owner, namespace):
                    with suppress(OSError):
                        path.unlink()


def open_file_of(kind: str, owner: Owner, flags: int) -> int | None:
    """Open the file of another process, also after a cleaner of /dev/shm has removed its name.

    Args:
        kind: STACKS or CONTROL.
        owner: the process.
        flags: as for `os.open`.

    Returns:
        A descriptor; None where the process has no such file, or another user could have made it.
    """
    from guardrails.store import directory  # noqa: PLC0415 - needs POSIX

    name = file_name(kind, owner)
    flags |= os.O_CLOEXEC
    for folder in directory.folders():
        with suppress(OSError, StoreError):
            directory.verify_folder(folder)
            return os.open(folder / name, flags | os.O_NOFOLLOW)
    if owner.namespace != pid_namespace():
        return None
    with suppress(OSError):
        # The process still has it open, by the name that it had in a folder of this user.
        for path in Path(f"/proc/{owner.pid}/fd").iterdir():
            with suppress(OSError):
                if str(path.readlink()).endswith(f"/{name} (deleted)") and not is_dead(
                    owner, owner.namespace
                ):
                    return os.open(path, flags)
    return None


def is_used(path: Path) -> bool:
    """Return whether a living process is named in a file's name, or has the file locked."""
    import fcntl  # noqa: PLC0415 - needs POSIX

    if any(int(number) > 1 and Path("/proc", number).exists() for number in _NUMBER.findall(path.name)):
        return True
    try:
        # A pipe without a writer would hold up a plain open().
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return not path.exists()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _owner(name: str) -> Owner | None:
    """Return the process that a file belongs to; None for any other file."""
    kind, *numbers = name.split("-")
    if kind not in _KINDS or len(numbers) != 3 or not all(map(str.isdecimal, numbers)):
        return None
    namespace, pid, start = map(int, numbers)
    return Owner(pid, start, namespace)

"""Where a shared store's file lies, and whether it may be trusted.

It lies in a folder of the user's own (mode 0700) under /dev/shm, else under the temporary folder. The
file's name has a hash of what its content depends on: the boot and the time namespace (they determine
the monotonic clock), the C library (it determines the mutex), and the layout. A process for which
these differ uses another file.
"""

import errno
import fcntl
import hashlib
import os
import platform
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from guardrails.errors import StoreBusyError, StoreError
from guardrails.store.layout import LAYOUT

PREFERRED = "/dev/shm"  # noqa: S108 - shared memory is the point; the folder below is verified
_DIRECTORY_LOCK_SECONDS = 1.0


def fingerprint() -> tuple[int, int, int]:
    """Return boot, time namespace and platform as 64-bit numbers; 0 where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        boot = b""
    return (
        _hash_number(boot) if boot else 0,
        _inode("/proc/self/ns/time"),
        _hash_number(repr((platform.libc_ver(), platform.machine(), os.name)).encode()),
    )


def file_suffix() -> str:
    """Return the part of a file's name that stands for its clock, mutex and layout."""
    return hashlib.blake2b(repr((fingerprint(), LAYOUT)).encode(), digest_size=4).hexdigest()


def folders() -> Iterator[Path]:
    """Yield the folders to try, best first. They need not exist."""
    name = f"guardrails-{os.geteuid()}"
    yield Path(PREFERRED, name)
    yield Path(tempfile.gettempdir(), name)


def prepare_folder(folder: Path) -> None:
    """Make the folder, or verify one that exists.

    Raises:
        OSError: it cannot be made.
        StoreError: it is not for this user alone.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    verify_folder(folder)


def verify_folder(folder: Path) -> None:
    """Verify that a folder is for this user alone.

    Raises:
        OSError: it cannot be examined.
        StoreError: it has another owner or mode, or is no folder.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StoreError(
            f"store: {folder} is not a folder of uid {os.geteuid()} with mode 0700, so its content "
            "cannot be trusted: remove it, or set TMPDIR to another folder"
        )


def own_folder() -> Path:
    """Return the first folder that can be used, and make it if need be.

    Raises:
        StoreError: none can be used; the message has the reason for each.
    """
    problems = []
    for folder in folders():
        try:
            prepare_folder(folder)
        except (OSError, StoreError) as error:
            problems.append(str(error))
        else:
            return folder
    raise StoreError("; ".join(problems))


def verify_file(descriptor: int, path: Path) -> os.stat_result:
    """Verify that only this user can have written a file, and return its status.

    Raises:
        StoreError: it has another owner or mode, or is no regular file.
    """
    found = os.fstat(descriptor)
    if (
        not stat.S_ISREG(found.st_mode)
        or found.st_uid != os.geteuid()
        or stat.S_IMODE(found.st_mode) & 0o077
    ):
        raise StoreError(
            f"store: {path} is not a regular file of uid {os.geteuid()} with mode 0600, so it is "
            "not used: remove it"
        )
    return found


def open_existing(path: Path) -> int | None:
    """Open a file for reading and writing, and return its descriptor; None if there is no file.

    Raises:
        StoreError: it is a symbolic link.
        OSError: it cannot be opened.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError(f"store: {path} is a symbolic link: remove it") from None
        raise


def create_file(folder: Path, size: int) -> tuple[int, Path]:
    """Make a file under a temporary name, and return its descriptor and path.

    All of it is allocated at once. Otherwise a later write could kill the process by SIGBUS.

    Args:
        folder: where.
        size: how large, in bytes.

    Raises:
        StoreError: there is no room.
    """
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=folder)
    path = Path(name)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.ftruncate(descriptor, size)
    except OSError as error:
        os.close(descriptor)
        path.unlink()
        raise StoreError(
            f"store: no room for {size / 1e6:.1f} MB in {folder} ({error.strerror}): make room "
            "there (a container's /dev/shm is 64 MB by default), or ask for less, "
            'as in store="shm:NAME?clients=10000"'
        ) from error
    return descriptor, path


@contextmanager
def directory_lock(folder: Path) -> Iterator[None]:
    """Hold the lock under which files in a folder are made and replaced.

    The kernel releases it when the process dies.

    Raises:
        StoreBusyError: another process has held it for a second.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + _DIRECTORY_LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreBusyError(
                        f"store: another process has been making a file in {folder} for "
                        f"{_DIRECTORY_LOCK_SECONDS:g} s"
                    ) from None
                time.sleep(0.002)
        yield
    finally:
        os.close(descriptor)


def _hash_number(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0

"""Where a shared store's file lies, and whether it may be trusted.

A folder of the user's own (0700) under /dev/shm, else under the temporary folder. The file's name
carries what its content depends on: the boot and the time namespace (another monotonic clock), the
C library (another mutex) and the layout. So who could not read a file never meets it.
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
    """The boot, the time namespace and the platform, as 64-bit numbers; 0 where unknown."""
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
    """The part of a file's name that says whose clock, mutex and layout it has."""
    return hashlib.blake2b(repr((fingerprint(), LAYOUT)).encode(), digest_size=4).hexdigest()


def folders() -> Iterator[Path]:
    """The places to try, best first. None of them needs to exist."""
    name = f"guardrails-{os.geteuid()}"
    yield Path(PREFERRED, name)
    yield Path(tempfile.gettempdir(), name)


def prepare_folder(folder: Path) -> None:
    """Make the folder, or verify that it is ours alone. Raises OSError or StoreError."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    verify_folder(folder)


def verify_folder(folder: Path) -> None:
    """Verify that a folder is ours alone. Raises OSError or StoreError."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StoreError(
            f"store: {folder} is not a folder of uid {os.geteuid()} with mode 0700, so its content "
            "cannot be trusted: remove it, or name another place with TMPDIR"
        )


def own_folder() -> Path:
    """The first of the places that will have a file of ours. Raises StoreError."""
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
    """Refuse a file that somebody else could have written."""
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
    """A descriptor of an existing file, or None when there is none. Never follows a link."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError(f"store: {path} is a symbolic link: remove it") from None
        raise


def create_file(folder: Path, size: int) -> tuple[int, Path]:
    """A new file under a temporary name, all of it allocated, so that no write can fault later."""
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
    """Exclude everybody else who makes or replaces files here; gone with whoever dies holding it."""
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
                        f"store: somebody else has been making a file in {folder} for "
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

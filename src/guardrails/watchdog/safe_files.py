"""Operations on files of an open folder, by name within it (openat(2) and its relatives).

So another user who renames folders or makes links cannot lead them to other files. No symbolic link
is followed, and no rename replaces a file.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Identity = tuple[int, int]

HIDDEN_SUFFIX = ".guardrails-partial"
"""The end of the names that files have until they are complete."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH_ONLY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC if hasattr(os, "O_PATH") else 0
_MOST_LINKS = 40
_NO_REPLACE = 1


def rename(old: str, new: str, folder: int) -> None:
    """Rename within an open folder, but never replace a file.

    Raises:
        FileExistsError: the new name exists.
        OSError: the system refuses.
    """
    if _renameat2 is not None:
        if not _renameat2(folder, os.fsencode(old), folder, os.fsencode(new), _NO_REPLACE):
            return
        error = ctypes.get_errno()
        if error not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(error, os.strerror(error), old, None, new)
    # Not atomic, since this system or file system cannot do it: another monitor, or a server that
    # creates its log just now, could create the new name in between.
    if look_up(new, folder) is not None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)


def _rename_of_libc() -> Any:
    with suppress(OSError, AttributeError):
        function = ctypes.CDLL(None, use_errno=True).renameat2
        function.argtypes = (*(ctypes.c_int, ctypes.c_char_p) * 2, ctypes.c_uint)
        return function
    return None


_renameat2 = _rename_of_libc()


def open_folder(path: Path) -> int:
    """Open the folder at an absolute path, and return its descriptor. Raises OSError.

    Root follows only links of its own: the owner of a folder on the path could lead it anywhere.
    """
    if os.geteuid() != 0 or not _PATH_ONLY:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    names = list(reversed(path.parts[1:]))
    links = 0
    folder = os.open("/", _PATH_ONLY)
    try:
        while names:
            name = names.pop()
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if found.st_uid != 0 or links > _MOST_LINKS:
                    raise OSError(
                        f"{path}: {name} in it is a symbolic link of another user: not followed"
                    )
                target = Path(os.readlink(name, dir_fd=folder))
                names += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                name = "/" if target.is_absolute() else "."
            folder, before = os.open(name, _PATH_ONLY, dir_fd=folder), folder
            os.close(before)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)


@contextmanager
def opened(name: str, folder: int) -> Iterator[int]:
    """Open a regular file for reading, but not by a symbolic link. Raises OSError."""
    file = os.open(name, _READ, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(f"{name} is not a regular file")
        yield file
    finally:
        os.close(file)


@contextmanager
def hidden(name: str, folder: int) -> Iterator[tuple[str, int]]:
    """Create a file that only this user can read, under a hidden name, and remove that name at the end.

    Yields:
        The hidden name, and the descriptor. A file that was renamed meanwhile stays.
    """
    partial = f".{name}.{secrets.token_hex(4)}{HIDDEN_SUFFIX}"
    target = os.open(partial, _CREATE, 0o600, dir_fd=folder)
    try:
        yield partial, target
    finally:
        remove(partial, folder)
        os.close(target)


def is_hidden_for(name: str, partial: str) -> bool:
    """Return whether a name is one that `hidden` gives to files of `name`."""
    middle = partial.removeprefix(f".{name}.").removesuffix(HIDDEN_SUFFIX)
    return partial == f".{name}.{middle}{HIDDEN_SUFFIX}" and "." not in middle


@contextmanager
def successor(name: str, log: os.stat_result, folder: int) -> Iterator[Callable[[], None]]:
    """Create an empty file like a log, and give a function that puts it in the log's place.

    The file has the log's owner, group and mode. A log that the server has created meanwhile stays.
    Where this user may not give a file to the log's owner, the function does nothing, and the server
    creates its log. Raises OSError.
    """
    with hidden(name, folder) as (partial, target):
        is_alike = resemble(target, log)

        def put_in_place() -> None:
            if is_alike:
                with suppress(FileExistsError):
                    rename(partial, name, folder)

        yield put_in_place


def resemble(target: int, log: os.stat_result) -> bool:
    """Give a file the owner, group and mode of a log, and never more readers than the log has.

    Returns:
        Whether the file has the log's owner and group.
    """
    mode = stat.S_IMODE(log.st_mode) & 0o777
    is_alike = False
    try:
        os.fchown(target, log.st_uid, log.st_gid)
        is_alike = True
    except PermissionError:
        try:
            os.fchown(target, -1, log.st_gid)
        except PermissionError:
            mode &= 0o700
    os.fchmod(target, mode)
    return is_alike


def has_writer(file: int) -> bool | None:
    """Return whether a process has the file open for writing; None where that is not known.

    The system grants a read lease only for a file without writers. If a process opens the file while
    the lease is held, this process gets SIGURG, which does nothing by default.
    """
    try:
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except AttributeError:
        return None
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    return False


def look_up(name: str, folder: int) -> os.stat_result | None:
    """Return the status of a name, of a link itself; None where there is none."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def identity(found: os.stat_result) -> Identity:
    """Return what identifies a file, whatever its name."""
    return (found.st_dev, found.st_ino)


def content(found: os.stat_result) -> tuple[int, int]:
    """Return what changes when a file is written to."""
    return (found.st_size, found.st_mtime_ns)


def remove(name: str, folder: int) -> None:
    """Remove a name, if it exists and this user may."""
    with suppress(OSError):
        os.unlink(name, dir_fd=folder)

"""How a shared store's file is found, made, made larger, condemned and removed.

Files are made and replaced under the folder's lock. Of all requests, only the first one in a process
opens the file; later ones do so if the file has been replaced.
"""

import fcntl
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from guardrails.errors import StoreBusyError, StoreError
from guardrails.once import Once
from guardrails.store import directory, layout
from guardrails.store.contract import monotonic_microseconds
from guardrails.store.engine.file import StoreFile
from guardrails.store.gcra import MARK_BITS
from guardrails.store.layout import (
    H_BOOT,
    H_BYTES,
    H_CONDEMNED,
    H_LAYOUT,
    H_LOCK_KIND,
    H_MAGIC,
    H_NUMBER,
    H_OWNER,
    H_PENALIZED_UNTIL,
    H_PLATFORM,
    H_RETIRED,
    H_SECRET,
    H_SWITCH,
    H_SWITCH_NEWS,
    H_SWITCHED,
    H_TIME_NAMESPACE,
    H_UNDER_WAY,
    LOCK_FLOCK,
    LOCK_MUTEX,
    RETIRED_CONDEMNED,
    RETIRED_MOVED,
    SECRET_BYTES,
)
from guardrails.store.processes import Owner

log = logging.getLogger("guardrails")

DEFAULT_CLIENTS = 50_000
DEFAULT_ROWS = 4096
_PRIVATE = ".private"
_RESIZE_ATTEMPTS = 2_000
_MOST_NAMES = 10


class FileSpec(NamedTuple):
    """Which file is wanted. The arguments of `SharedStore` explain the fields."""

    name: str
    clients: int | None = None
    rows: int | None = None
    private: bool = False
    lock: str = "mutex"
    clock: Callable[[], int] = monotonic_microseconds

    def path(self, folder: Path) -> Path:
        """Return the file's path in a folder."""
        return folder / f"{self.name}.{directory.file_suffix()}{_PRIVATE if self.private else ''}"


def open_store_file(spec: FileSpec, *, create: bool = True) -> StoreFile:
    """Open the file in the first folder that can be used.

    Args:
        spec: which file.
        create: whether to make the folder and the file if they do not exist (True).

    Raises:
        StoreBusyError: another process is making or removing a file there.
        StoreError: the file can be opened nowhere; the message has the reason for each folder.
    """
    problems = []
    for folder in directory.folders():
        try:
            if create:
                directory.prepare_folder(folder)
            file = _open_in(folder, spec, create=create)
        except StoreBusyError:
            raise
        except (OSError, StoreError) as error:
            problems.append(str(error))
            continue
        if file is not None:
            if problems:
                _warn_once(f"the state is kept in {folder}: {'; '.join(problems)}")
            return file
    raise StoreError(
        "; ".join(problems)
        or f"store: there is no store {spec.name!r} of uid {os.geteuid()}, which has {_names()}: "
        "only the user that made a store can open it, so correct the name, or run this as that user"
    )


def _names() -> str:
    """Return the names of this user's stores, for a message."""
    names = sorted({name for folder in directory.folders() for name in stores_in(folder)})
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (", ".join(names[:_MOST_NAMES]) or "none") + more


def condemn(file: StoreFile) -> StoreFile | None:
    """Copy the state of a file whose lock cannot be taken any more to a new file.

    The holder of the lock was stopped, or it ended in a way that made the mutex unusable. Only the
    holder can still write to the old file. What its unfinished acquisition of the lock has written is
    left out of the copy. If it continues, it repeats its call on the new file.

    Returns:
        The new file; None if another process has done this already.
    """
    with directory.directory_lock(file.path.parent):
        words = file.words
        if words[H_RETIRED] or not is_current(file):
            return None
        number = words[H_UNDER_WAY] or words[H_NUMBER] + 1
        words[H_CONDEMNED] = number
        words[H_RETIRED] = RETIRED_CONDEMNED
        log.error(
            "store %s: process %d was stopped, or ended, while it held the lock; the state is copied "
            "to a new file, which that process will use if it continues",
            file.path,
            words[H_OWNER],
        )
        clients = (file.cells.mask + 1) // 4
        spec = FileSpec(file.path.name, clients, file.rows.records, clock=file.clock)
        new, path = _build(file.path.parent, spec, file.words[H_LOCK_KIND])
        _copy(file, new, without=number)
        _put_in_place(new, path, file.path)
        _remove_lock(file)
        return new


def is_current(file: StoreFile) -> bool:
    """Return whether the file's name still means this file."""
    try:
        found = os.stat(file.path)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == file.identity


def release(file: StoreFile) -> None:
    """Close a file. The last process that closes a private file removes it."""
    if file.path.name.endswith(_PRIVATE):
        with suppress(OSError):
            fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_current(file):
                file.path.unlink()
                _remove_lock(file)
    file.close()


def stores_in(folder: Path) -> dict[str, Path]:
    """Return the files of the stores in a folder that this version can read, by the store's name."""
    suffix = f".{directory.file_suffix()}"
    found = {}
    for path in sorted(folder.glob(f"*{suffix}*")):
        name = path.name.removesuffix(_PRIVATE)
        if name.endswith(suffix):
            found[name.removesuffix(suffix)] = path
    return found


def is_private(path: Path) -> bool:
    """Return whether the last process that closes a store's file removes the file."""
    return path.name.endswith(_PRIVATE)


def registered_in(path: Path) -> list[tuple[Owner, int]]:
    """Return the processes in a store's table of workers, dead ones too, each with its parent.

    The store is not opened: nothing is mapped, locked, written or logged.

    Args:
        path: the file of the store.

    Returns:
        The processes; none where there is no such file, or none that this version can read.
    """
    with suppress(OSError, StoreError):
        descriptor = directory.open_existing(path)
        if descriptor is None:
            return []
        try:
            size = directory.verify_file(descriptor, path).st_size
            header = os.pread(descriptor, layout.HEADER_BYTES, 0)
            if _problem(header, size) is not None:
                return []
            sections = layout.read_directory(memoryview(header))
            if layout.fits(sections, size):
                table = sections["workers"]
                content = os.pread(descriptor, table.stride * table.records, table.offset)
                words = memoryview(content).cast("Q")
                return [
                    (Owner(*words[at : at + 3]), words[at + layout.W_PARENT])
                    for at in range(0, len(words), layout.WORKER_WORDS)
                    if words[at + layout.W_PID]
                ]
        finally:
            os.close(descriptor)
    return []


def _open_in(folder: Path, spec: FileSpec, *, create: bool) -> StoreFile | None:
    path = spec.path(folder)
    # With create=False it takes no lock on a private file, so it does not keep it from being removed.
    file = _existing(path, spec if create else spec._replace(private=False))
    if file is not None and _is_wanted(file, spec):
        return file
    if not create:
        return None
    with directory.directory_lock(folder):
        file = _existing(path, spec, warn=True)
        if file is not None and _is_wanted(file, spec):
            return file
        _sweep(folder)
        kind = LOCK_FLOCK if spec.lock == "flock" else LOCK_MUTEX
        if file is None:
            new, temporary = _build(folder, spec, kind)
        else:
            spec = spec._replace(
                clients=spec.clients or (file.cells.mask + 1) // 4,
                rows=max(spec.rows or 0, file.rows.records),
            )
            new, temporary = _build(folder, spec, kind)
            _move(file, new)
            _remove_lock(file)
        _put_in_place(new, temporary, path)
    return _existing(path, spec)


def _existing(path: Path, spec: FileSpec, *, warn: bool = False) -> StoreFile | None:
    """The file at that path, if there is one that can be used. No other file is written to."""
    descriptor = directory.open_existing(path)
    if descriptor is None:
        return None
    try:
        size = directory.verify_file(descriptor, path).st_size
        problem = _problem(os.pread(descriptor, layout.HEADER_BYTES, 0), size)
        if problem is None:
            if spec.private:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            file = StoreFile(descriptor, path, spec.clock)
            descriptor = -1
            if layout.fits(layout.read_directory(file.buffer), size):
                return file.ready()
            problem = "its directory is damaged"
        if warn:
            log.warning("store %s: %s, so it is replaced by a new one", path, problem)
        return None
    except BlockingIOError:
        raise StoreBusyError(
            f"store: {path} is being removed by the last process that used it"
        ) from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _problem(header: bytes, size: int) -> str | None:
    """Why a file cannot be used, or None."""
    if len(header) < layout.HEADER_BYTES:
        return "it is cut short"
    words = memoryview(header).cast("Q")
    if words[H_MAGIC] != layout.MAGIC:
        return "it is not a store of guardrails, or was never finished"
    if words[H_LAYOUT] != layout.LAYOUT:
        return f"it has layout {words[H_LAYOUT]} and this version has {layout.LAYOUT}"
    if words[H_BYTES] != size:
        return f"it is {size} bytes long and should be {words[H_BYTES]}"
    if (words[H_BOOT], words[H_TIME_NAMESPACE], words[H_PLATFORM]) != directory.fingerprint():
        return "it is of another boot, another clock or another C library"
    return None


def _is_wanted(file: StoreFile, spec: FileSpec) -> bool:
    if file.words[H_RETIRED]:
        return False
    planned = layout.plan(spec.clients or DEFAULT_CLIENTS, spec.rows or DEFAULT_ROWS)
    same_cells = spec.clients is None or (
        planned.sections["cells"].records == file.sections["cells"].records
    )
    return same_cells and (spec.rows is None or spec.rows <= file.rows.records)


def _build(folder: Path, spec: FileSpec, kind: int) -> tuple[StoreFile, Path]:
    """Make a new file under a temporary name, complete but for its magic."""
    plan = layout.plan(spec.clients or DEFAULT_CLIENTS, spec.rows or DEFAULT_ROWS)
    descriptor, temporary = directory.create_file(folder, plan.size)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        file = StoreFile(descriptor, temporary, spec.clock)
    except BaseException:
        os.close(descriptor)
        temporary.unlink()
        raise
    words = file.words
    layout.write_directory(file.buffer, plan.sections)
    words[H_LAYOUT], words[H_BYTES] = layout.LAYOUT, plan.size
    words[H_BOOT], words[H_TIME_NAMESPACE], words[H_PLATFORM] = directory.fingerprint()
    file.buffer[H_SECRET * 8 : H_SECRET * 8 + SECRET_BYTES] = secrets.token_bytes(SECRET_BYTES)
    # Numbers start at random, so that an admission in an earlier file fits no row of this one.
    words[H_NUMBER] = secrets.randbits(60) + 1
    if kind == LOCK_MUTEX and not file.mutex_in_place().initialize():
        kind = LOCK_FLOCK
        _warn_once("this system's pthread mutexes are not robust: flock is used, which is slower")
    words[H_LOCK_KIND] = kind
    return file.ready(), temporary


def _move(old: StoreFile, new: StoreFile) -> None:
    """Copy a file that is in use, under its lock, and retire it."""
    if old.words[H_RETIRED]:
        _copy(old, new, without=old.words[H_CONDEMNED])
        return
    for attempt in range(_RESIZE_ATTEMPTS):
        try:
            old.attempt(_copy_and_retire, new, None)
        except StoreBusyError:
            if attempt == _RESIZE_ATTEMPTS - 1:
                raise
            if hasattr(os, "sched_yield"):
                os.sched_yield()
        else:
            return


def _copy_and_retire(old: StoreFile, new: StoreFile, _second: None, _number: int) -> None:
    _copy(old, new, without=0)
    old.words[H_RETIRED] = RETIRED_MOVED


def _copy(old: StoreFile, new: StoreFile, *, without: int) -> None:
    """Copy secret, switch, records, rows and cells. The slot counts are derived from the rows."""
    secret = H_SECRET * 8
    new.buffer[secret : secret + SECRET_BYTES] = old.buffer[secret : secret + SECRET_BYTES]
    for word in (H_SWITCH, H_SWITCHED, H_SWITCH_NEWS, *range(layout.H_ALARMS, layout.H_ALARMS + 8)):
        new.words[word] = old.words[word]
    new.words[H_NUMBER] = max(old.words[H_NUMBER], old.words[H_UNDER_WAY], without) + 1
    new.words[H_PENALIZED_UNTIL] = old.words[H_PENALIZED_UNTIL]
    for name in ("guards", "slots", "rows", "workers", "deaths"):
        source, target = old.sections[name], new.sections[name]
        length = min(source.records, target.records) * source.stride
        new.buffer[target.offset : target.offset + length] = old.buffer[
            source.offset : source.offset + length
        ]
    shift = new.rows.word - old.rows.word
    for row in old.live_rows():
        if old.words[row] == without:
            new.words[row + shift] = 0
        _shift_records(old, new, row + shift)
    new.recount()
    _copy_cells(old, new)


def _shift_records(old: StoreFile, new: StoreFile, row: int) -> None:
    """Correct the word numbers of slot records, which differ between files of two sizes."""
    shift = new.sections["slots"].word - old.sections["slots"].word
    if shift:
        for slot in new.held_slots(row):
            new.words[slot + layout.S_RECORD] += shift


def _copy_cells(old: StoreFile, new: StoreFile) -> None:
    source, target = old.sections["cells"], new.sections["cells"]
    if source.records == target.records:
        length = source.records * source.stride
        new.buffer[target.offset : target.offset + length] = old.buffer[
            source.offset : source.offset + length
        ]
        return
    now = new.clock()
    content = old.words[source.word : source.word + 2 * source.records].tolist()
    for key, word in zip(content[::2], content[1::2], strict=True):
        if word >> MARK_BITS > now:
            found, _evicted = new.cells.take(key, now)
            new.words[found + 1] = word


def _put_in_place(new: StoreFile, temporary: Path, path: Path) -> None:
    """Write the magic, then give the file its name, so that no process opens an unfinished file."""
    new.words[H_MAGIC] = layout.MAGIC
    temporary.rename(path)


def _remove_lock(file: StoreFile) -> None:
    """Remove the lock file of a retired file. A process that has it open may keep it open."""
    Path(file.lock_path()).unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left: unfinished files, private files that no process has open."""
    for path in folder.glob(".new-*"):
        path.unlink(missing_ok=True)
    for path in folder.glob(f"*{_PRIVATE}"):
        descriptor = directory.open_existing(path)
        if descriptor is not None:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                for lock in folder.glob(f"{path.name}.*.lock"):
                    lock.unlink(missing_ok=True)
            os.close(descriptor)


_first_time = Once()


def _warn_once(message: str) -> None:
    if _first_time(message):
        log.warning("store: %s", message)

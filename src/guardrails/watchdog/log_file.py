"""The watchdog's own log: a file, or standard error. A log that fails never stops the watchdog."""

from __future__ import annotations

import logging
import logging.handlers
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from guardrails.errors import GuardrailsError
from guardrails.store import directory
from guardrails.watchdog.standard_error import StandardErrorHandler, write_line

_LOG_BYTES = 4 << 20


@contextmanager
def appended(path: str) -> Iterator[int]:
    """Open a log file for appending, with mode 0600, and yield its descriptor.

    Raises:
        GuardrailsError: it cannot be opened.
    """
    try:
        descriptor = _open_log(path)
    except OSError as error:
        raise GuardrailsError(f"log_file: {path!r} cannot be opened: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_log(path: str) -> int:
    # O_NONBLOCK: opening a FIFO without a reader must not wait for one.
    how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(path, how, 0o600)


class _FileHandler(logging.handlers.WatchedFileHandler):
    """Writes to a log file, and to standard error where the file was moved, removed or is full."""

    def _open(self) -> TextIOWrapper:
        # As at the start: no file of another user, and no symbolic link.
        return open(
            self.baseFilename, "a", encoding=self.encoding, opener=lambda path, _flags: _open_log(path)
        )

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        with suppress(Exception):
            write_line(self.format(record))


class _MemoryFileHandler(logging.handlers.RotatingFileHandler):
    """Writes to a log file in shared memory, which no logrotate looks after."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - as above
        """A full disk does not stop the watchdog."""


def log_to(path: str | None) -> None:
    """Send the log to a file, or to standard error; a log that fails never stops the watchdog."""
    handler: logging.Handler = StandardErrorHandler()
    logging.raiseExceptions = False
    if path is not None:
        with appended(path):  # creates it with mode 0600
            in_memory = Path(path).parent == directory.own_folder()
            handler = (
                _MemoryFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
                if in_memory
                else _FileHandler(path, encoding="utf-8")
            )
    handler.setFormatter(
        logging.Formatter("%(asctime)s guardrails watch %(process)d %(levelname)s %(message)s")
    )
    logging.getLogger().addHandler(handler)
    logging.getLogger("guardrails.watch").setLevel(logging.INFO)

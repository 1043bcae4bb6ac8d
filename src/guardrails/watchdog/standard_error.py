"""The watchdog's lines on standard error, which may be a pipe that nobody reads from."""

from __future__ import annotations

import logging
import os
import select
from contextlib import suppress

_STANDARD_ERROR = 2


class StandardErrorHandler(logging.Handler):
    """Writes the log to standard error, and drops the lines for which it would have to wait.

    Standard error is often the server's, and a pipe. If its reader stops, workers hang when they write
    to it. The watchdog ends workers that hang, so it must not hang with them.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        with suppress(Exception):  # a record that cannot be formatted does not stop the watchdog
            write_line(self.format(record))


def write_line(text: str, descriptor: int = _STANDARD_ERROR) -> None:
    """Write a line to standard error, unless that would have to wait. Never raises.

    Args:
        text: the line. It is cut where a pipe might not take it at once.
        descriptor: where it is written.
    """
    with suppress(OSError):
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if poll.poll(0):
            line = text.encode("utf-8", "replace")[: select.PIPE_BUF - 1]
            os.write(descriptor, line + b"\n")

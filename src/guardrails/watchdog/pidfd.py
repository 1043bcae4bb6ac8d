"""Signals for one process, and for no later process with the same pid: Linux' pidfd_open(2)."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial


@contextmanager
def open_process(pid: int) -> Iterator[Callable[[int], None]]:
    """Open the process that has a pid now, and give a function that sends it a signal.

    What the caller finds out about the pid within the context is true of the process that gets the
    signal. On a system without pidfds, the signal goes to the pid.

    Args:
        pid: the pid.

    Yields:
        A function of the signal's number; 0 sends none, and checks that one could be sent.

    Raises:
        ProcessLookupError: there is no such process, also when sending.
        PermissionError: it belongs to another user, when sending.
        OSError: the system refuses.
    """
    descriptor = _open(pid)
    try:
        yield partial(_send, descriptor, pid)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):  # an old kernel, or a container that forbids it
            return None
        raise OSError(f"process {pid}: {error.strerror}") from None


def _send(descriptor: int | None, pid: int, number: int) -> None:
    try:
        if descriptor is None:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    except PermissionError:
        raise PermissionError(
            f"process {pid} belongs to another user and cannot be signalled"
        ) from None

"""Runs of logrotate, which rotates the logs that one of its configuration files names."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from contextlib import suppress

from guardrails.errors import ConfigurationError
from guardrails.watchdog.events import brief, printable
from guardrails.watchdog.option_values import absolute_path

LONGEST_ROTATION = 600.0
"""Seconds after which logrotate is killed: it may compress a large log."""

_MOST_SAID = 4096


class Logrotate:
    """logrotate with one configuration file. One run at a time, for all logs that the file names.

    Args:
        configuration: the path of the file.

    Raises:
        ConfigurationError: this is not the path of a file.
    """

    def __init__(self, configuration: str | os.PathLike[str]) -> None:
        self._configuration = absolute_path(configuration, "logrotate")
        self._running: Rotation | None = None
        self._lock = threading.Lock()  # each log is looked at in a thread of its own

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigurationError: there is no logrotate, or its configuration cannot be read.
        """
        try:
            with self._configuration.open("rb"):
                pass
        except OSError as error:
            raise ConfigurationError(
                f"logrotate: {printable(str(self._configuration))} cannot be read: {error.strerror}"
            ) from None
        if _program() is None:
            raise ConfigurationError(
                "logrotate: there is no program logrotate: install it, as by apt install logrotate"
            )

    def begin(self, now: float) -> Rotation | None:
        """Begin a run; None while another one is under way.

        Args:
            now: monotonic seconds.

        Raises:
            OSError: it cannot be run.
        """
        with self._lock:
            if self._running is not None and self._running.error(now) is None:
                return None
            # Without a state file, which --force does not need: the usual one belongs to root, and
            # another logrotate may have it locked.
            words = [_program() or "logrotate", "--state", "/dev/null", "--force"]
            self._running = Rotation([*words, str(self._configuration)], now)
            return self._running


class Rotation:
    """One run of logrotate. It holds up nobody.

    Args:
        words: the command.
        now: monotonic seconds.

    Raises:
        OSError: it cannot be run.
    """

    def __init__(self, words: list[str], now: float) -> None:
        self._configuration = words[-1]
        self._until = now + LONGEST_ROTATION
        self._said = b""
        self._error: str | None = None
        self._lock = threading.Lock()  # other logs ask whether it is over
        self._process = subprocess.Popen(  # noqa: S603 - the operator's own configuration, and no shell
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stderr is not None  # noqa: S101 - for the type checker
        self._stderr = self._process.stderr
        os.set_blocking(self._stderr.fileno(), False)

    def __str__(self) -> str:
        return printable(self._configuration)

    def error(self, now: float) -> str | None:
        """Return what went wrong, an empty text if nothing did, and None while it runs.

        Args:
            now: monotonic seconds.
        """
        with self._lock:
            if self._error is None:
                status = self._process.poll()
                self._read()
                if status is None and now >= self._until:
                    with suppress(OSError):
                        os.killpg(self._process.pid, signal.SIGKILL)
                    with suppress(subprocess.TimeoutExpired):
                        self._process.wait(1)
                    self._end(
                        f"logrotate was killed, since it ran for more than {LONGEST_ROTATION:g} s"
                    )
                elif status is not None:
                    said = brief(self._said.decode(errors="replace").strip().replace("\n", "; "))
                    self._end(f"logrotate ended with status {status}: {said}" if status else "")
            return self._error

    def _read(self) -> None:
        """Read what it says, so that it does not wait for a reader. The end of that is kept."""
        with suppress(OSError):
            while piece := self._stderr.read(_MOST_SAID):
                self._said = (self._said + piece)[-_MOST_SAID:]

    def _end(self, error: str) -> None:
        self._error = error
        self._stderr.close()


def _program() -> str | None:
    # A user's PATH may lack the folders of such programs.
    return shutil.which("logrotate", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")

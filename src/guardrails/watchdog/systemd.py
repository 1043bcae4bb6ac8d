"""Notifications for systemd: ready, alive, and what is watched. The protocol is sd_notify(3)."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, MutableMapping

log = logging.getLogger("guardrails.watch")


class ServiceManager:
    """Notifies systemd where NOTIFY_SOCKET is set; elsewhere it does nothing. Never raises.

    The variables are taken out of the environment, so that no command that this process runs speaks
    in its name.

    Args:
        environ: the environment: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID count.
        monotonic: returns the time in seconds.
    """

    def __init__(
        self,
        environ: MutableMapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        is_ours = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.alive_every = self._alive_due = math.inf
        if self._address and is_ours and microseconds.isdecimal() and int(microseconds):
            self.alive_every, self._alive_due = int(microseconds) / 2e6, -math.inf
        self._monotonic = monotonic
        self._status = ""
        self._has_failed = False

    def ready(self) -> None:
        """The watchdog watches."""
        self._send("READY=1")
        self.alive()

    def alive(self) -> None:
        """The watchdog is alive; sent at half of the time after which systemd restarts it."""
        if self._monotonic() >= self._alive_due:
            self._alive_due = self._monotonic() + self.alive_every
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Send a sentence for `systemctl status`, where it has changed."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """The watchdog is about to end."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                log.warning("watchdog: systemd cannot be notified at NOTIFY_SOCKET: %s", error)


def without_notifications(environ: MutableMapping[str, str]) -> MutableMapping[str, str]:
    """Take out of an environment what lets a process notify systemd, and return the environment."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        environ.pop(name, None)
    return environ

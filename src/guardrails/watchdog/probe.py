"""A probe: a request as a visitor would send it, and remedies when the server does not answer."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Sequence

from guardrails.errors import ConfigurationError
from guardrails.units import number_of_text, parse_count, parse_seconds
from guardrails.watchdog.events import Commands, Notify, brief, command_words
from guardrails.watchdog.option_values import check_program, positive_seconds
from guardrails.watchdog.probe_request import ProbeRequest, checked_url
from guardrails.watchdog.process_signal import ProcessSignal

MOST_FAILURES = 1000

Remedy = ProcessSignal | tuple[str, ...]


class Probe:
    """Requests a page of a server, and acts when the server does not answer.

    Status 2xx and 3xx is a success; redirects are not followed. Any other status is a failure, and
    so is a response that is not complete in time. At most 64 KB of a body are read.

    Failures in a row are event "probe-failed". The probe then applies its first remedy. After that it
    counts from 0 again. If no request has succeeded since, the next time is the turn of the next
    remedy; the last one is repeated. A success is event "probe-recovered", at level INFO, and begins
    with the first remedy again.

    Args:
        url: an http or https URL.
        notify: is called with each event.
        every: time between two requests.
        timeout: time that the complete response may take.
        failures: how many failures in a row make the probe act.
        cooldown: time after a remedy in which the probe does not act again.
        on_failure: the remedies: commands that are run without a shell, and names of signals.
        master: the process that is signalled: its pid or a pid file. Without any remedy it gets SIGHUP.
        commands: runs the commands.

    Raises:
        ConfigurationError: an argument is wrong. Nothing is raised later.
    """

    def __init__(
        self,
        url: str,
        notify: Notify,
        *,
        every: float | str = "30s",
        timeout: float | str = "10s",
        failures: int | str = 3,
        cooldown: float | str = "2m",
        on_failure: Sequence[str] = (),
        master: int | str | os.PathLike[str] | None = None,
        commands: Commands | None = None,
    ) -> None:
        self._url = checked_url(url)
        self._notify = notify
        self._every = positive_seconds(every, "probe_every")
        self._timeout = positive_seconds(timeout, "probe_timeout")
        self._failures = parse_count(number_of_text(failures), "probe_failures", most=MOST_FAILURES)
        self._cooldown = parse_seconds(cooldown, "probe_cooldown")
        words = on_failure or (("SIGHUP",) if master is not None else ())
        self._remedies = [parsed_remedy(each, master) for each in words]
        self._commands = commands or Commands()
        self._due = self._act_again_at = -math.inf
        self._failures_in_row = 0
        self._tried = 0
        self._is_down = False
        self._request: ProbeRequest | None = None

    def check(self) -> list[str]:
        """Return warnings about what the remedies need. Raises ConfigurationError."""
        warnings = []
        for remedy in self._remedies:
            if isinstance(remedy, ProcessSignal):
                warnings.append(remedy.check())
            else:
                check_program(remedy, "on_failure")
        return [warning for warning in warnings if warning]

    def look(self, now: float) -> None:
        """Send the request, when it is due. Never raises.

        Args:
            now: monotonic seconds.
        """
        self._commands.tidy()
        if now < self._due:
            return
        self._due = now + self._every
        error = self._problem()
        if error is None:
            self._recover()
            return
        self._failures_in_row += 1
        if self._failures_in_row >= self._failures and now >= self._act_again_at:
            self._act(error)
            self._failures_in_row = 0
            self._act_again_at = now + self._cooldown

    def _problem(self) -> str | None:
        if self._request is not None and self._request.is_alive():
            return "the previous request has not ended yet"
        self._request = ProbeRequest(self._url, self._timeout)
        return self._request.problem()

    def _recover(self) -> None:
        tried, self._tried, self._failures_in_row = self._tried, 0, 0
        if self._is_down:
            self._is_down = False
            message = f"{self._url}: it answers again" + (f", after remedy {tried}" if tried else "")
            self._notify("probe-recovered", message, logging.INFO, url=self._url, remedy=tried)

    def _act(self, error: str) -> None:
        self._is_down = True
        remedy = self._remedies[min(self._tried, len(self._remedies) - 1)] if self._remedies else None
        self._tried += remedy is not None
        shown = " ".join(remedy) if isinstance(remedy, tuple) else str(remedy or "nothing")
        facts = {"url": self._url, "failures": self._failures_in_row, "error": error}
        message = f"{self._url}: {self._failures_in_row} failures in a row, the last of them: {error}"
        if remedy is not None:
            message += f"; remedy {self._tried}: {shown}"
        self._notify("probe-failed", message, logging.WARNING, **facts, remedy=self._tried)
        if isinstance(remedy, tuple):
            texts = {name: str(value) for name, value in facts.items()}
            self._commands.run(remedy, {"event": "probe-failed", "remedy": str(self._tried), **texts})
        elif remedy is not None:
            try:
                remedy.send()
            except OSError as trouble:
                text = brief(str(trouble))
                message = f"{self._url}: {remedy} was not sent: {text}"
                self._notify("probe-not-signalled", message, logging.ERROR, url=self._url, error=text)


def parsed_remedy(text: str, master: int | str | os.PathLike[str] | None) -> Remedy:
    """Return what `on_failure` names: a signal for `master`, such as SIGHUP, or a command.

    Raises:
        ConfigurationError: it is neither.
    """
    name = text.strip() if isinstance(text, str) else ""
    number = getattr(signal.Signals, name if name.startswith("SIG") else f"SIG{name}", None)
    if number is None and not (name.startswith("SIG") and name.isalnum()):
        return command_words(text, "on_failure")
    if number is None:
        raise ConfigurationError(
            f"on_failure: {text!r} is not the name of a signal: write one, such as SIGHUP, or a command"
        )
    return ProcessSignal(master, number)

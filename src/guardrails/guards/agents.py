"""BlockAgents: no service for user agents on a list. Successor of Apache::BlockAgent."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from guardrails.client.keys import LONGEST_AGENT
from guardrails.errors import ConfigurationError
from guardrails.guards.base import Guard
from guardrails.guards.bound import BoundGuard
from guardrails.store.contract import Requirement

log = logging.getLogger("guardrails")

_MEMO_SIZE = 8192
_LOOK_INTERVAL_SECONDS = 1.0


class _AgentList:
    """Compiled patterns with a bounded memo of verdicts; re-read from its file when that changes."""

    def __init__(self, patterns: tuple[str, ...], file: Path | None) -> None:
        self.file = file
        self._look_at = 0.0
        self._looking = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._memo: OrderedDict[str, bool]
        if file is None:
            self._take(patterns, "patterns")
        else:
            self._stamp = self._stat()
            self._take(self._read(), str(file))

    def blocks(self, agent: str) -> bool:
        """Whether a pattern is found in the agent, which is cut at 512 characters first."""
        if self.file is not None and (now := time.monotonic()) >= self._look_at:
            self._look_again(now)
        agent = agent[:LONGEST_AGENT]
        memo = self._memo
        verdict = memo.get(agent)
        if verdict is None:
            verdict = self._search is not None and self._search(agent) is not None
            if len(memo) >= _MEMO_SIZE:
                memo.popitem(last=False)
            memo[agent] = verdict
        return verdict

    def _take(self, patterns: tuple[str, ...], source: str) -> None:
        for number, pattern in enumerate(patterns, 1):
            try:
                re.compile(pattern, re.IGNORECASE)
            except re.error as error:
                raise ConfigurationError(
                    f"patterns: {pattern!r}, number {number} of {source}, is not a regular "
                    f"expression ({error}): correct it, or escape what is meant as it stands"
                ) from None
        self._search: Callable[[str], object] | None = None
        if patterns:
            joined = "|".join(f"(?:{pattern})" for pattern in patterns)
            try:
                self._search = re.compile(joined, re.IGNORECASE).search
            except re.error:
                # Patterns with groups or flags of their own cannot always be joined.
                each = [re.compile(pattern, re.IGNORECASE).search for pattern in patterns]
                self._search = lambda agent: next(filter(None, (s(agent) for s in each)), None)
        # A new memo, so that a verdict of the old list cannot be stored into it by another thread.
        self._memo = OrderedDict()

    def _look_again(self, now: float) -> None:
        """At most once a second, and by one thread."""
        if not self._looking.acquire(blocking=False):
            return
        try:
            self._look_at = now + _LOOK_INTERVAL_SECONDS
            stamp = self._stat()
            if stamp != self._stamp:
                self._stamp = stamp
                self._take(self._read(), str(self.file))
                log.info("block-agents: %s has changed and was read again", self.file)
        except ConfigurationError as error:
            log.error("block-agents: the last good list is kept: %s", error)  # noqa: TRY400
        finally:
            self._looking.release()

    def _stat(self) -> tuple[int, int, int]:
        assert self.file is not None  # noqa: S101 - asked only for lists with a file
        try:
            found = self.file.stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_size, found.st_ino)

    def _read(self) -> tuple[str, ...]:
        assert self.file is not None  # noqa: S101 - as above
        try:
            lines = self.file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(self.file, error) from None
        stripped = (line.strip() for line in lines)
        return tuple(line for line in stripped if line and not line.startswith("#"))


@dataclass(frozen=True, repr=False, init=False)
class BlockAgents(Guard):
    """Refuses with 403 every user agent in which one of the patterns is found, in any case.

    patterns: regular expressions, unanchored.
    missing: "allow" or "refuse" for a request that names no agent.

    `BlockAgents.from_file(path)` reads one pattern a line; blank lines and lines that start with #
    are skipped. The file is read again when it changes, and the last good list is kept when it does
    not parse.
    """

    patterns: tuple[str, ...] = ()
    missing: str = "allow"
    file: str | None = None
    _list: _AgentList = field(default=None, init=False, repr=False, compare=False)  # type: ignore[assignment]

    kind: ClassVar[str] = "block-agents"
    default_status: ClassVar[int] = 403

    def __init__(
        self, *patterns: str, missing: str = "allow", _file: Path | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        if missing not in ("allow", "refuse"):
            raise ConfigurationError(
                f'missing: {missing!r} is neither "allow" nor "refuse": write one of them'
            )
        if not patterns and _file is None and missing == "allow":
            raise ConfigurationError(
                "patterns: none is given, so nobody would be refused: give regular expressions, or "
                "use BlockAgents.from_file(path)"
            )
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise ConfigurationError(
                    f"patterns: {pattern!r} is not a text: give regular expressions as texts, one "
                    "argument each"
                )
            if not pattern:
                raise ConfigurationError(
                    "patterns: '' is empty and would be found in every agent: leave it out"
                )
        self._set("patterns", patterns)
        self._set("missing", missing)
        self._set("file", None if _file is None else str(_file))
        self._set("_list", _AgentList(patterns, _file))

    @classmethod
    def from_file(cls, file: str | Path, /, **options: Any) -> Self:
        """The same, with the patterns of a file."""
        return cls(_file=Path(file), **options)

    def usual_requirement(self, bound: BoundGuard) -> Requirement | None:
        return bound.nothing

    def varies(self) -> bool:
        return True

    def requirement(self, bound: BoundGuard, environ: dict[str, Any]) -> Requirement | None:
        agent = environ.get("HTTP_USER_AGENT")
        refused = self._list.blocks(agent) if agent else self.missing == "refuse"
        return bound.refusal if refused else bound.nothing

    def counts_by_client(self) -> bool:
        return False

    def fixed_key(self) -> bytes | None:
        return b""


def _unreadable(path: Path, error: Exception) -> ConfigurationError:
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigurationError(
        f"file: {str(path)!r} cannot be read ({reason}): name a readable text file in UTF-8 with "
        "one regular expression a line"
    )

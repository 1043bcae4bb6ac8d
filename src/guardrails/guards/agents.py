"""BlockAgents refuses user agents that are on a list. It is the successor of Apache::BlockAgent."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, Unpack

from guardrails.client.keys import LONGEST_AGENT
from guardrails.errors import ConfigurationError
from guardrails.guards.base import Guard, GuardOptions, checked_keywords, guard_keywords
from guardrails.guards.bound import BoundGuard
from guardrails.options import check_word
from guardrails.store.contract import Requirement

log = logging.getLogger("guardrails")

Missing = Literal["allow", "refuse"]
"""What BlockAgents does with a request that names no agent."""

_FILE_NAME = re.compile(r"(?<!\\)\.(?:txt|list|lst|conf|cfg|csv|dat|json|ya?ml)\Z", re.IGNORECASE)
_MEMO_SIZE = 8192
_CHECK_INTERVAL_SECONDS = 1.0


class _AgentList:
    """Compiled patterns, reloaded when their file changes.

    Args:
        patterns: regular expressions, if there is no file.
        file: a file with one pattern a line.
    """

    def __init__(self, patterns: tuple[str, ...], file: Path | None) -> None:
        self.file = file
        self._next_check = 0.0
        self._checking = threading.Lock()
        self._file_version: tuple[int, int, int] | None = None
        self._memo: OrderedDict[str, bool]
        if file is None:
            self._compile(patterns, "patterns")
        else:
            self._file_version = _file_version(file)
            self._compile(_read_patterns(file), str(file))

    def blocks(self, agent: str) -> bool:
        """Whether a pattern is found in the first 512 characters of an agent."""
        if self.file is not None and (now := time.monotonic()) >= self._next_check:
            self._reload_if_changed(self.file, now)
        agent = agent[:LONGEST_AGENT]
        # A plain OrderedDict, the oldest entry gives way: this runs for every request, and a lookup
        # in a cache of cachetools is several times slower.
        memo = self._memo
        verdict = memo.get(agent)
        if verdict is None:
            verdict = self._search is not None and self._search(agent) is not None
            if len(memo) >= _MEMO_SIZE:
                memo.popitem(last=False)
            memo[agent] = verdict
        return verdict

    def is_empty(self) -> bool:
        """Whether there is no pattern."""
        return self._search is None

    def _compile(self, patterns: tuple[str, ...], source: str) -> None:
        for number, pattern in enumerate(patterns, 1):
            try:
                re.compile(pattern, re.IGNORECASE)
            except re.error as error:
                raise ConfigurationError(
                    f"patterns: {pattern!r}, number {number} of {source}, is not a regular "
                    f"expression ({error}): correct it, or escape the characters that are meant "
                    "literally"
                ) from None
        search: Callable[[str], object] | None = None
        if patterns:
            joined = "|".join(f"(?:{pattern})" for pattern in patterns)
            try:
                search = re.compile(joined, re.IGNORECASE).search
            except re.error:
                # Patterns with groups or flags of their own cannot always be joined.
                each = [re.compile(pattern, re.IGNORECASE).search for pattern in patterns]
                search = lambda agent: next(filter(None, (s(agent) for s in each)), None)  # noqa: E731 - one of two forms
        # Other threads use the old list until here.
        self._search = search
        # A new memo: another thread may still store a verdict of the old list in the old one.
        self._memo = OrderedDict()

    def _reload_if_changed(self, file: Path, now: float) -> None:
        """Check the file, at most once a second and in one thread at a time."""
        if not self._checking.acquire(blocking=False):
            return
        try:
            self._next_check = now + _CHECK_INTERVAL_SECONDS
            version = _file_version(file)
            if version != self._file_version:
                self._file_version = version
                self._compile(_read_patterns(file), str(file))
                log.info("block-agents: %s has changed and was reloaded", file)
        except ConfigurationError as error:
            log.error("block-agents: the last good list is kept: %s", error)  # noqa: TRY400
        finally:
            self._checking.release()


@checked_keywords
@dataclass(frozen=True, repr=False, init=False)
class BlockAgents(Guard):
    """Refuses requests of user agents in which a pattern is found, with status 403.

    It keeps no state, and a refusal has no Retry-After. It is the successor of Apache::BlockAgent.

    Args:
        *patterns: regular expressions, found anywhere in the first 512 characters of the agent, in
            upper or lower case. A request without an agent has an empty one: "^$" is found in it.
        missing: what it does with a request that names no agent, and in which no pattern is found:
            "allow" or "refuse".
        **options: the options of every guard: see `Guard`.

    Raises:
        ConfigurationError: no pattern is given, a pattern is wrong, or an option is wrong.
    """

    patterns: tuple[str, ...] = ()
    missing: Missing = "allow"
    file: str | None = None
    _list: _AgentList = field(default=None, init=False, repr=False, compare=False)  # type: ignore[assignment]

    kind: ClassVar[str] = "block-agents"
    default_status: ClassVar[int] = 403

    def __init__(
        self, *patterns: str, missing: Missing = "allow", **options: Unpack[GuardOptions]
    ) -> None:
        if not patterns and missing == "allow":
            raise ConfigurationError(
                "patterns: none is given, so nothing would be refused: give regular expressions, or "
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
            if _FILE_NAME.search(pattern) or (os.sep in pattern and Path(pattern).is_file()):
                raise ConfigurationError(
                    f"patterns: {pattern!r} looks like the name of a file: write "
                    f"BlockAgents.from_file({pattern!r}), or escape the dot if it is a pattern"
                )
        self._build(patterns, None, missing, options)

    @classmethod
    @guard_keywords
    def from_file(
        cls, file: str | Path, /, *, missing: Missing = "allow", **options: Unpack[GuardOptions]
    ) -> Self:
        """Return a guard with the patterns of a file, one a line.

        Blank lines and lines that start with # are skipped. The file is checked once a second at
        most, and reloaded when it has changed. A file that cannot be read or compiled then leaves
        the last good list in use, and the log says so.

        Args:
            file: the path of the file, in UTF-8.
            missing: what it does with a request that names no agent: "allow" or "refuse".
            **options: the options of every guard: see `Guard`.

        Raises:
            ConfigurationError: the file cannot be read, a pattern is wrong, or an option is wrong.
        """
        guard = cls.__new__(cls)
        guard._build((), Path(file), missing, options)  # noqa: SLF001 - of this class
        if missing == "allow" and guard._list.is_empty():  # noqa: SLF001 - as above
            log.warning("block-agents: %s has no pattern, so it refuses nothing until it has one", file)
        return guard

    def _build(
        self,
        patterns: tuple[str, ...],
        file: Path | None,
        missing: Missing,
        options: GuardOptions,
    ) -> None:
        super().__init__(**options)
        self._set("missing", check_word(missing, Missing, "missing"))
        self._set("patterns", patterns)
        self._set("file", None if file is None else str(file))
        self._set("_list", _AgentList(patterns, file))

    def __reduce__(self) -> tuple[Any, ...]:
        # The compiled list is made again, of the patterns or of the file as it is then.
        options = {item.name: getattr(self, item.name) for item in fields(Guard)}
        options["missing"] = self.missing
        return build, (type(self), self.patterns, self.file, options)

    def usual_requirement(self, bound: BoundGuard) -> Requirement | None:
        return bound.admit

    def varies(self) -> bool:
        return True

    def requirement(self, bound: BoundGuard, environ: dict[str, Any]) -> Requirement | None:
        agent = environ.get("HTTP_USER_AGENT", "")
        refused = self._list.blocks(agent) or (not agent and self.missing == "refuse")
        return bound.refuse if refused else bound.admit

    def counts_by_client(self) -> bool:
        return False

    def fixed_key(self) -> bytes | None:
        return b""


def _file_version(file: Path) -> tuple[int, int, int]:
    """Return what changes with the file: its time, size and inode; zeros if it is not there."""
    try:
        found = file.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file, and nothing that a request would wait for, such as a pipe."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return descriptor


def _read_patterns(file: Path) -> tuple[str, ...]:
    try:
        with open(file, encoding="utf-8", opener=_open_regular) as opened:
            lines = opened.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            f"file: {str(file)!r} cannot be read ({reason}): name a readable text file in UTF-8 with "
            "one regular expression a line"
        ) from None
    stripped = (line.strip() for line in lines)
    return tuple(line for line in stripped if line and not line.startswith("#"))


def build(
    guard_class: type[BlockAgents],
    patterns: tuple[str, ...],
    file: str | None,
    options: dict[str, Any],
) -> BlockAgents:
    """Make a pickled guard again."""
    if file is not None:
        return guard_class.from_file(file, **options)
    return guard_class(*patterns, **options)

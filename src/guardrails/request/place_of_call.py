"""Where `throttle()` is called: the place that names an unnamed store, and mistakes about it."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from guardrails.store.contract import Store
from guardrails.store.urls import is_unnamed

MOST_IN_REQUESTS = 10
"""The throttle of one line, built within requests, that is warned of. A dispatcher builds a few."""

_OWN_MODULES = ("guardrails.request.middleware", "guardrails.guards.base", "guardrails.options")
_FOLDERS_OF_RELEASES = ("releases", "versions", "revisions", "deployments", "builds")
_RELEASE = re.compile(
    r"(?:release|version|build|revision|deploy)[-_.]?v?\d.*"  # release-8
    r"|20\d\d([-_.]?)[01]\d\1[0-3]\d.*"  # 20261128093000
    r"|v?\d+\.\d+(?:\.\d+)*"  # v1.4.2
    r"|(?=.*\d)(?=.*[a-f])[0-9a-f]{7,40}",  # the hash of a commit
    re.IGNORECASE,
)
_LINKS_TO_A_RELEASE = ("current", "latest", "live")

Warn = Callable[..., object]
"""Says a check, as `SetupChecks.warn` does."""


class PlaceOfCall(NamedTuple):
    """Where `throttle()` was called.

    Attributes:
        file: the file of the caller.
        line: the line of the call.
        in_request: whether a WSGI app was being called.
    """

    file: str
    line: int
    in_request: bool


def place_of_call() -> PlaceOfCall:
    """Return the nearest place outside of guardrails that has called."""
    frame = sys._getframe(1)  # noqa: SLF001 - the place of the call is not an argument
    while frame.f_back is not None and str(frame.f_globals.get("__name__")) in _OWN_MODULES:
        frame = frame.f_back
    return PlaceOfCall(frame.f_code.co_filename, frame.f_lineno, _is_in_request(frame))


def warn_of_built_in_a_request(warn: Warn, place: PlaceOfCall) -> None:
    """Warn of a line that builds throttles within requests, once it has built many."""
    if not place.in_request:
        return
    _built_in_requests[place] += 1
    if _built_in_requests[place] == MOST_IN_REQUESTS:
        warn(
            "built-in-a-request",
            place,
            "%s, line %d: throttle() has been called %d times within requests: a throttle that is "
            "made for each request takes time, and forgets what the one before it counted in memory: "
            "call it once, where the app is made",
            place.file,
            place.line,
            MOST_IN_REQUESTS,
        )


def warn_of_moving_store(warn: Warn, place: PlaceOfCall, store: Store) -> None:
    """Warn of an unnamed store whose name comes from a folder that the next release does not have."""
    folder = _folder_of_release(place.file) if is_unnamed(store) else None
    if folder is not None:
        warn(
            "unnamed-store-moves",
            "",
            "the store has no name, so it is named after %s, in a folder of one release (%r): the next "
            'release begins with empty counts and no bans: name the store, as in store="shm:shop", or '
            "with GUARDRAILS_STORE in the environment",
            place.file,
            folder,
        )


_built_in_requests: Counter[PlaceOfCall] = Counter()


def _is_in_request(frame: FrameType | None) -> bool:
    """Return whether a function that takes `start_response` is on the call stack."""
    while frame is not None:
        code = frame.f_code
        if "start_response" in code.co_varnames[: code.co_argcount]:
            return True
        frame = frame.f_back
    return False


def _folder_of_release(file: str) -> str | None:
    """Return the part of a file's path that looks like that of one release; None if none does."""
    for parent in Path(os.path.abspath(file)).parents:  # noqa: PTH100 - links must stay
        if parent.name in _LINKS_TO_A_RELEASE and parent.is_symlink():
            return parent.name
    resolved = Path(file).resolve()
    if resolved.is_relative_to(sys.base_prefix):
        return None  # Python's own folder has its version in its name
    before = ""
    for name in resolved.parts[:-1]:
        if before in _FOLDERS_OF_RELEASES or _RELEASE.fullmatch(name):
            return name
        before = name
    return None

"""Stores by URL: "memory:", "shm:" and "shm:NAME?clients=50000&private"."""

import hashlib
import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import parse_qsl

from guardrails.errors import ConfigurationError
from guardrails.store.contract import Store
from guardrails.store.memory import MemoryStore
from guardrails.units import number_of_text, parse_count

_UNNAMED = "app-"
"""What the name of a store begins with that the user has not named."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_FLAGS = {"", "1", "yes", "true"}
_MOST_CLIENTS = 50_000_000
_MOST_ROWS = 65_536
_HANDLED = '"memory:", "shm:" or "shm:NAME?clients=50000"'


def store_from_url(url: str) -> Store:
    """Return the store that a URL names, without opening it.

    Args:
        url: "memory:", or "shm:NAME" with the options of docs/store.md.

    Raises:
        ConfigurationError: the URL names no store, or an option of it is wrong.
    """
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if scheme == "memory" and colon and not rest:
        return MemoryStore()
    if scheme == "shm" and colon:
        return _shared_store(url, rest)
    remedy = f"use {_HANDLED}"
    if not colon and _NAME.fullmatch(url):
        remedy += f'; the store of that name is "shm:{url}"'
    if scheme in ("redis", "rediss", "valkey", "valkeys", "unix"):
        remedy = (
            f"this version has no store for Redis or Valkey yet, which comes as the extra [redis]: "
            f"{remedy}"
        )
    raise ConfigurationError(f"store: nothing handles {url!r}: {remedy}")


def unnamed_store(file: str, line: int) -> Store:
    """Return the store of a call of `throttle()` that names none: the same in every worker.

    Its name is a hash of the file, and of whether this is the first, second or n-th line of that file
    that calls. The name therefore stays the same when lines are added above. GUARDRAILS_STORE in the
    environment is used instead if it is set.

    Args:
        file: the file that calls `throttle()`.
        line: the number of the line that calls.

    Raises:
        ConfigurationError: GUARDRAILS_STORE names no store.
    """
    url = os.environ.get("GUARDRAILS_STORE", "").strip()
    if url and url != "shm:":
        return store_from_url(url)
    if not _has_shared_memory():
        return MemoryStore()
    from guardrails.store.shared import SharedStore  # noqa: PLC0415 - needs POSIX

    lines = _calling_lines.setdefault(file, [])
    if line not in lines:
        lines.append(line)
    call = f"{Path(file).resolve()}\0{lines.index(line)}"
    return SharedStore(_UNNAMED + hashlib.blake2b(call.encode(), digest_size=8).hexdigest())


def is_unnamed(store: Store) -> bool:
    """Return whether a store has its name from `unnamed_store`."""
    return str(getattr(store, "name", "")).startswith(_UNNAMED)


def open_store(url: str | None = None) -> Store:
    """Open an existing store, to read or to switch it: `guardrails.open_store("shm:NAME")`.

    The file is opened by the first call of a method, and is never made. Run it as the user of the
    workers, since no other user can open their file.

    Args:
        url: the store's URL. None (the default) means GUARDRAILS_STORE from the environment, or else
            the only store that this user has on this host.

    Returns:
        The store. Its methods raise StoreError if there is no such store.

    Raises:
        ConfigurationError: the URL names no store; or none is given, and the user has no store or
            several.
    """
    url = url or os.environ.get("GUARDRAILS_STORE", "").strip()
    if url and url != "shm:":
        return _only_existing(store_from_url(url))
    from guardrails.store import directory, lifecycle  # noqa: PLC0415 - needs POSIX
    from guardrails.store.shared import SharedStore  # noqa: PLC0415 - as above

    names = sorted({name for folder in directory.folders() for name in lifecycle.stores_in(folder)})
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise ConfigurationError(
            f"store: no store is named, and this user has {found}: name one, as in "
            'guardrails.open_store("shm:NAME")'
        )
    return SharedStore(names[0], create=False)


_calling_lines: dict[str, list[int]] = {}


def _only_existing(store: Store) -> Store:
    """Keep a store from making its file."""
    if not isinstance(store, MemoryStore):
        store.create = False  # type: ignore[attr-defined]
    return store


def _has_shared_memory() -> bool:
    return sys.platform != "win32"


def _shared_store(url: str, rest: str) -> Store:
    if not _has_shared_memory():
        raise ConfigurationError(
            f"store: {url!r} needs POSIX shared memory, which this system does not have: use "
            '"memory:", which counts in each process separately'
        )
    from guardrails.store.shared import SharedStore  # noqa: PLC0415 - needs POSIX

    name, _, query = rest.partition("?")
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"store: {name!r} in {url!r} is not a name: use up to 64 letters, digits, '_', '.' and "
            "'-', not starting with '.' or '-'"
        )
    clients = rows = None
    private, lock = False, "mutex"
    for option, value in parse_qsl(query, keep_blank_values=True):
        if option == "clients":
            clients = parse_count(number_of_text(value), "store clients", least=16, most=_MOST_CLIENTS)
        elif option == "rows":
            rows = parse_count(number_of_text(value), "store rows", least=16, most=_MOST_ROWS)
        elif option == "private" and value in _FLAGS:
            private = True
        elif option == "lock" and value in ("mutex", "flock"):
            lock = value
        else:
            nearest = get_close_matches(option, ("clients", "rows", "private", "lock"), n=1)
            remedy = f"write {nearest[0]}; " if nearest and nearest[0] != option else ""
            raise ConfigurationError(
                f"store: {option}={value} in {url!r} is unknown: {remedy}the options are "
                "clients=NUMBER, rows=NUMBER, private and lock=flock"
            )
    return SharedStore(name, clients=clients, rows=rows, private=private, lock=lock)

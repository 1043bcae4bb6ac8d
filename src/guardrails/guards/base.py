"""What a guard is: a frozen value that says which requests it covers and what it demands for them.

All guards share the options below; `CountingGuard` adds whom it counts by. A `BoundGuard` is a guard on
duty in one throttle, with its final name, and everything computed that can be computed once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from guardrails.client.exemptions import Exempt, Exemptions
from guardrails.client.keys import By, Request, key_function
from guardrails.client.networks import listed
from guardrails.errors import ConfigurationError
from guardrails.guards.option_checks import (
    check_status,
    check_wsgi_app,
    exempt_path_prefixes,
    method_names,
    path_prefixes,
    text_tuple,
)
from guardrails.store.contract import Requirement
from guardrails.units import parse_duration

if TYPE_CHECKING:
    from guardrails.guards.bound import BoundGuard
    from guardrails.request.middleware import Throttle


@dataclass(frozen=True)
class Guard:
    """The options of every guard.

    name: what logs, counters and the state call it; made of kind, path and `by` if not given.
    path: one or several prefixes on segment borders, or a compiled pattern tried with `match`.
    methods: which methods it covers; GET implies HEAD. None is all.
    host: one or several hosts; case, port and a last dot do not count. None is all.
    exempt: whom it leaves alone: networks, addresses, "loopback", "private", or callables of the
    environ.   exempt_paths: prefixes that it leaves alone.
    status: the HTTP status of a refusal.   dry_run: only say what it would do.
    ban: bans the client of a refused request from everything for so long, such as "20m".
    on_error: "allow" or "deny" when a callable of yours raises.
    """

    _: KW_ONLY
    name: str | None = None
    path: str | Iterable[str] | re.Pattern[str] | None = None
    methods: str | Iterable[str] | None = None
    host: str | Iterable[str] | None = None
    exempt: Exempt = ()
    exempt_paths: str | Iterable[str] = ()
    status: int = 0
    dry_run: bool = False
    ban: str | float | None = None
    on_error: str = "allow"

    kind: ClassVar[str] = "guard"
    default_status: ClassVar[int] = 429

    def __post_init__(self) -> None:
        self._set("path", path_prefixes(self.path, "path"))
        self._set("methods", method_names(self.methods))
        self._set("host", None if self.host is None else text_tuple(self.host, "host"))
        self._set("exempt", listed(self.exempt, "exempt"))
        Exemptions(self.exempt)
        self._set("exempt_paths", exempt_path_prefixes(self.exempt_paths))
        self._set("status", check_status(self.status or self.default_status))
        if self.name is not None and (not isinstance(self.name, str) or not self.name.strip()):
            raise ConfigurationError(
                f"name: {self.name!r} is not a name: give a text that is not empty, or leave it out"
            )
        if self.ban is not None and parse_duration(self.ban, "ban") == 0:
            raise ConfigurationError(
                f'ban: {self.ban!r} bans for no time: write how long, such as "20m", or leave it out'
            )
        if self.on_error not in ("allow", "deny"):
            raise ConfigurationError(
                f'on_error: {self.on_error!r} is neither "allow" nor "deny": write one of them'
            )

    def _set(self, attribute: str, value: object) -> None:
        object.__setattr__(self, attribute, value)

    def default_name(self) -> str:
        """Kind, path and by: never the figures, so that tuning keeps the state."""
        path = self.path
        if isinstance(path, re.Pattern):
            path = (path.pattern,)
        return " ".join((self.kind, *(path or ()), *self._name_parts()))

    def _name_parts(self) -> tuple[str, ...]:
        return ()

    def usual_requirement(self, bound: BoundGuard) -> Requirement | None:
        """What it demands for most requests; None when there is no such thing."""
        raise NotImplementedError

    def varies(self) -> bool:
        """Whether `requirement` has to be asked for each request, and may say something else."""
        return False

    def requirement(self, bound: BoundGuard, environ: dict[str, Any]) -> Requirement | None:
        """What it demands for one request; None when it does not apply."""
        return bound.usual_requirement

    def fixed_key(self) -> bytes | None:
        """The key where it is the same for all requests."""
        return None

    def counts_by_client(self) -> bool:
        """Whether the client's address is the key, or part of it."""
        return True

    def key(self, request: Request) -> bytes | None:
        """Whom the demand is for; None when the guard does not apply."""
        return request.client.key if request.client is not None else None

    def __call__(self, app: Any, **throttle_options: Any) -> Throttle:
        """Return throttle(app, this guard, **throttle_options)."""
        # The request path imports the guards, so it is imported here when it is needed.
        from guardrails.request.middleware import throttle  # noqa: PLC0415

        return throttle(check_wsgi_app(app, type(self).__name__), self, **throttle_options)

    def __repr__(self) -> str:
        shown = [
            f"{item.name}={getattr(self, item.name)!r}"
            for item in fields(self)
            if item.repr
            and getattr(self, item.name) != item.default
            and not (item.name == "status" and self.status == self.default_status)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class CountingGuard(Guard):
    """The options of guards that count.

    by: whom it counts by: "client", "client+agent", "all", "host", "path", "user" (REMOTE_USER),
    "header:NAME", "cookie:NAME", or a callable environ -> str | None, None meaning that the guard
    does not apply. A missing header or cookie falls back to the client.
    wait: for how long a request may be held back before it is refused.
    """

    _: KW_ONLY
    by: By = "client"
    wait: str | float = 0
    _key: Callable[[Request], bytes | None] = field(
        default=lambda _request: None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_duration(self.wait, "wait")
        self._set("_key", key_function(self.by))

    def _name_parts(self) -> tuple[str, ...]:
        by = self.by
        return (by if isinstance(by, str) else getattr(by, "__name__", "callable"),)

    def fixed_key(self) -> bytes | None:
        return b"" if self.by == "all" else None

    def counts_by_client(self) -> bool:
        return isinstance(self.by, str) and self.by.startswith(("client", "header:", "cookie:"))

    def key(self, request: Request) -> bytes | None:
        return self._key(request)

"""What a guard is: a frozen value that says which requests it covers and what it demands for them.

All guards share the options below; `StatefulGuard` adds whom it counts by. A `BoundGuard` is a guard on
duty in one throttle, with its final name, and everything computed that can be computed once.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from http import HTTPMethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from guardrails.client.exemptions import Exempt, Exemptions
from guardrails.client.keys import By, Request, key_function
from guardrails.client.networks import listed
from guardrails.errors import ConfigurationError
from guardrails.paths import Readings, falls_under, normal_host, plain_text, wsgi_text
from guardrails.store.contract import Meter, Requirement
from guardrails.units import parse_duration

if TYPE_CHECKING:
    from guardrails.request.middleware import Throttle

log = logging.getLogger("guardrails")


_MOST_TIERS = 256


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
        self._set("path", _paths(self.path, "path"))
        self._set("methods", _methods(self.methods))
        self._set("host", None if self.host is None else _texts(self.host, "host"))
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
class StatefulGuard(Guard):
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


class BoundGuard:
    """A guard on duty: its final name, which requests it covers, what it demands.

    met: whether a request that it covers has come.
    """

    __slots__ = (
        "ban",
        "ban_for",
        "ban_only",
        "by_client",
        "exempt",
        "exempt_paths",
        "failure",
        "fixed_key",
        "guard",
        "hosts",
        "met",
        "methods",
        "name",
        "nothing",
        "number",
        "own_key",
        "path",
        "refusal",
        "shadow_ban",
        "tiers",
        "usual_requirement",
        "varies",
        "wait",
    )

    def __init__(self, guard: Guard, name: str, number: int) -> None:
        self.guard = guard
        self.name = name
        self.number = number
        path: Any = guard.path
        self.path = tuple(map(wsgi_text, path)) if isinstance(path, tuple) else path
        self.methods = guard.methods
        self.hosts = guard.host and tuple(map(normal_host, guard.host))
        self.exempt = Exemptions(guard.exempt)
        self.exempt_paths = tuple(map(wsgi_text, guard.exempt_paths))
        self.met = False
        self.wait = parse_duration(getattr(guard, "wait", 0), "wait")
        self.ban_for = parse_duration(guard.ban, "ban") if guard.ban is not None else 0
        self.ban = self.shadow_ban = None
        if self.ban_for:
            self.ban = _ban_meter(f"{name} ban", self.ban_for)
            self.shadow_ban = _ban_meter(f"{name} ban dry-run", self.ban_for)
        self.ban_only = self.make_requirement(ban_only=True)
        self.nothing = self.make_requirement()
        self.refusal = self.make_requirement(refused=True)
        # A callable that fails is no fault of the client's, so nobody is banned for it.
        self.failure = Requirement(name, refused=True)
        self.tiers: OrderedDict[object, Requirement] = OrderedDict()
        self.by_client = guard.counts_by_client()
        self.own_key = getattr(guard, "by", None) == "client"
        self.fixed_key = guard.fixed_key()
        self.varies = guard.varies()
        self.usual_requirement = guard.usual_requirement(self)

    def make_requirement(self, **parts: Any) -> Requirement:
        """A demand in this post's name, with its ban."""
        return Requirement(
            guard=self.name,
            ban=self.ban,
            shadow_ban=self.shadow_ban,
            ban_for=self.ban_for,
            wait=self.wait,
            **parts,
        )

    def tier(self, figures: object, make: Callable[[], Requirement]) -> Requirement:
        """The demand with these figures of a callable's, made once; the last 256 are kept."""
        requirement = self.tiers.get(figures)
        if requirement is None:
            requirement = make()
            if len(self.tiers) >= _MOST_TIERS:
                self.tiers.popitem(last=False)
            self.tiers[figures] = requirement
        return requirement

    def covers(self, method: str, host: str, readings: Readings) -> bool:
        """Whether the guard is about such a request, by any reading of its path."""
        if self.methods is not None and method.upper() not in self.methods:
            return False
        if self.hosts is not None and normal_host(host) not in self.hosts:
            return False
        if readings.all_under(self.exempt_paths):
            return False
        path = self.path
        if path is None:
            return True
        if isinstance(path, re.Pattern):
            return readings.any(lambda reading: path.match(plain_text(reading)))
        return readings.any(lambda reading: falls_under(reading, path))


def check_wsgi_app(app: Any, guard: str, caller: str = "") -> Any:
    """Refuse what is not a WSGI app: most often a guard was put on a view function."""
    remedy = (
        f"{caller or guard}: {getattr(app, '__name__', app)!r} is not a WSGI app, which takes "
        f"(environ, start_response): wrap the app and name the view by its path, as in "
        f'app.wsgi_app = guardrails.throttle(app.wsgi_app, {guard}(..., path="/that/view"))'
    )
    if not callable(app):
        raise ConfigurationError(remedy)
    if inspect.isfunction(app):
        try:
            bound = inspect.signature(app).bind(None, None)
        except TypeError:
            raise ConfigurationError(remedy) from None
        if next(iter(bound.arguments), "") == "request":
            raise ConfigurationError(remedy)
    return app


def check_status(status: object) -> int:
    """Refuse a status that is no refusal."""
    if isinstance(status, bool) or not isinstance(status, int) or not 400 <= status <= 599:
        raise ConfigurationError(
            f"status: {status!r} is not an HTTP status of a refusal: write one from 400 to 599, "
            "such as 429 or 503"
        )
    return status


def unique_names(
    guards: Iterable[Guard], taken: Mapping[str, Guard] = MappingProxyType({})
) -> list[str]:
    """A name for each guard: given ones must differ, made ones get a number when alike.

    taken: names that outer throttles have; only an equal guard may have the same.
    """
    guards = list(guards)
    given = [guard.name for guard in guards if guard.name is not None]
    for name in given:
        if given.count(name) > 1:
            raise ConfigurationError(
                f"name: {name!r} is given to {given.count(name)} guards, and each keeps its state "
                "under its name: give each its own, or leave the names out"
            )
    used = {name for name in given if name not in taken}
    names = []
    for guard in guards:
        base = guard.name or guard.default_name()
        name, number = base, 1
        while (name in used and name != guard.name) or taken.get(name, guard) != guard:
            number += 1
            name = f"{base} {number}"
        used.add(name)
        names.append(name)
    return names


def _ban_meter(name: str, ban_for: int) -> Meter:
    return Meter(name, need=0, cost=0, limit=0, resume=0, horizon=ban_for)


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def _texts(value: Any, argument: str) -> tuple[str, ...]:
    texts = _listed(value)
    for text in texts:
        if not isinstance(text, str):
            raise ConfigurationError(
                f"{argument}: {text!r} is not a text: give one text, or a list of texts"
            )
    return texts


def _paths(value: Any, argument: str) -> tuple[str, ...] | re.Pattern[str] | None:
    if value is None:
        return None
    if isinstance(value, re.Pattern):
        return value
    prefixes = []
    for prefix in _texts(value, argument):
        if not prefix.startswith("/"):
            raise ConfigurationError(
                f"{argument}: {prefix!r} does not start with a slash: write the path as the client "
                f'asks for it, such as "/{prefix}"'
            )
        prefixes.append(prefix.rstrip("/") or "/")
    return tuple(prefixes)


def exempt_path_prefixes(value: Any) -> tuple[str, ...]:
    """The prefixes of `exempt_paths`."""
    paths = _paths(value, "exempt_paths")
    if isinstance(paths, re.Pattern):
        raise ConfigurationError(
            f"exempt_paths: {paths.pattern!r} is a pattern: give prefixes, such as "
            '["/static/", "/healthz"]'
        )
    return paths or ()


def _methods(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    methods = []
    for method in _listed(value):
        known = method.upper() if isinstance(method, str) else method
        if known not in HTTPMethod.__members__ and known not in _WEBDAV:
            raise ConfigurationError(
                f"methods: {method!r} is not an HTTP method: use "
                + ", ".join(HTTPMethod.__members__)
                + " or a WebDAV method"
            )
        methods.append(known)
    if "GET" in methods and "HEAD" not in methods:
        methods.append("HEAD")
    return tuple(methods)


_WEBDAV = frozenset(
    [
        "PROPFIND",
        "PROPPATCH",
        "MKCOL",
        "COPY",
        "MOVE",
        "LOCK",
        "UNLOCK",
        "REPORT",
        "SEARCH",
        "MKCALENDAR",
        "PURGE",
    ]
)

"""What a guard is: a frozen value that says which requests it covers and what it requires of them.

`Guard` has the options of every guard, `CountingGuard` those of guards that count. A `BoundGuard`
(bound.py) is a guard in one throttle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, ParamSpec, Self, TypedDict, TypeVar, Unpack
from wsgiref.types import WSGIApplication

from guardrails.client.exemptions import Exempt, Exemptions
from guardrails.client.keys import By, Request, by_name, checked_by, counts_by_client, key_function
from guardrails.client.networks import listed
from guardrails.errors import ConfigurationError
from guardrails.guards.apps import check_wsgi_app
from guardrails.guards.option_checks import (
    check_status,
    exempt_path_prefixes,
    host_names,
    method_names,
    path_prefixes,
)
from guardrails.options import check_bool, check_word, keyword_options, renamed_word
from guardrails.store.contract import Requirement
from guardrails.units import parse_duration

if TYPE_CHECKING:
    from guardrails.guards.bound import BoundGuard
    from guardrails.request.middleware import Throttle
    from guardrails.request.options import ThrottleOptions

OnError = Literal["allow", "refuse"]
"""What a guard does when a callable of the user's raises, other than one of `exempt`."""

_RENAMED_ON_ERROR = {"deny": "refuse"}

AnyGuard = TypeVar("AnyGuard", bound="Guard")
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class GuardOptions(TypedDict, total=False):
    """The options of every guard, for signatures with `**options: Unpack[GuardOptions]`."""

    name: str | None
    path: str | Iterable[str] | re.Pattern[str] | None
    methods: str | Iterable[str] | None
    host: str | Iterable[str] | None
    exempt: Exempt
    exempt_paths: str | Iterable[str]
    status: int
    dry_run: bool
    ban: str | float | None
    on_error: OnError


@dataclass(frozen=True)
class Guard:
    """The options of every guard.

    Args:
        name: what logs, counters and the store call it. By default kind, path and `by`.
        path: one or several prefixes on segment borders, or a compiled pattern that is tried with
            `match`. By default all paths.
        methods: the methods that it covers; GET includes HEAD. By default all.
        host: one or several hosts; case, port and a last dot do not count. By default all.
        exempt: clients that it never refuses: networks, addresses, "loopback", "private", or
            callables of the environ.
        exempt_paths: prefixes that it does not cover.
        status: the HTTP status of its refusals, 400 to 599. The default depends on the guard.
        dry_run: log what it would refuse, and refuse nothing.
        ban: for how long the client of a refused request is refused everything, in seconds or as a
            text such as "20m". A request that a page of another site made the browser send bans nobody.
            By default no request does.
        on_error: what it does with a request when a callable for `rate`, `limit`, `percent`, `cost`
            or `by` raises: "allow" (the guard does not apply) or "refuse". A callable of `exempt`
            that raises exempts no request.

    Raises:
        ConfigurationError: an option is wrong.
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
    on_error: OnError = "allow"

    kind: ClassVar[str] = "guard"
    default_status: ClassVar[int] = 429

    def __post_init__(self) -> None:
        self._set("path", path_prefixes(self.path, "path"))
        self._set("methods", method_names(self.methods))
        self._set("host", host_names(self.host))
        self._set("exempt", listed(self.exempt, "exempt"))
        Exemptions(self.exempt)
        self._set("exempt_paths", exempt_path_prefixes(self.exempt_paths))
        check_bool(self.dry_run, "dry_run")
        self._set("status", check_status(self.status or self.default_status))
        if self.name is not None and (not isinstance(self.name, str) or not self.name.strip()):
            raise ConfigurationError(
                f"name: {self.name!r} is not a name: give a text that is not empty, or leave it out"
            )
        if self.ban is not None and parse_duration(self.ban, "ban") == 0:
            raise ConfigurationError(
                f'ban: {self.ban!r} bans for no time: write how long, such as "20m", or leave it out'
            )
        on_error = renamed_word(self.on_error, _RENAMED_ON_ERROR, "on_error")
        self._set("on_error", check_word(on_error, OnError, "on_error"))

    def _set(self, attribute: str, value: object) -> None:
        """Set an attribute of this frozen value while it is built."""
        object.__setattr__(self, attribute, value)

    def default_name(self) -> str:
        """Return kind, path and `by`. Figures are left out, so that changing them keeps the state."""
        path = self.path
        if isinstance(path, re.Pattern):
            path = (path.pattern,)
        return " ".join((self.kind, *(path or ()), *self._name_parts()))

    def _name_parts(self) -> tuple[str, ...]:
        return ()

    def usual_requirement(self, bound: BoundGuard) -> Requirement | None:
        """Return what it requires of most requests; None if that differs from request to request."""
        raise NotImplementedError

    def varies(self) -> bool:
        """Whether `requirement` has to be called for each request."""
        return False

    def requirement(self, bound: BoundGuard, environ: dict[str, Any]) -> Requirement | None:
        """Return what it requires of one request; None if it does not apply."""
        return bound.usual_requirement

    def fixed_key(self) -> bytes | None:
        """Return the key, if all requests have the same one."""
        return None

    def counts_by_client(self) -> bool:
        """Whether the client's address is the key, or a part of the key."""
        return True

    def caps_by_client(self) -> bool:
        """Whether it limits how many requests a client has open at once."""
        return False

    def key(self, request: Request) -> bytes | None:
        """Return the key that a request is counted under; None if the guard does not apply."""
        return request.client.key if request.client is not None else None

    def __call__(self, app: WSGIApplication, **throttle_options: Unpack[ThrottleOptions]) -> Throttle:
        """Return `throttle(app, this guard, **throttle_options)`.

        Args:
            app: the WSGI app to guard.
            throttle_options: the keywords of `throttle()`.

        Raises:
            ConfigurationError: an argument is wrong.
        """
        # guardrails.request imports the guards, so a guard imports it only when it is called.
        from guardrails.request.middleware import throttle  # noqa: PLC0415

        return throttle(check_wsgi_app(app, type(self).__name__), self, **throttle_options)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Python cannot pickle every attribute that __post_init__ computes, so `restore` computes them.
        computed = {item.name for item in fields(self) if not item.init}
        state = {name: value for name, value in vars(self).items() if name not in computed}
        return restore, (type(self), state)

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
    """The options of guards that count, besides those of every guard.

    Args:
        by: what requests are counted by: "client", "client+agent", "all", "host", "path", "user"
            (REMOTE_USER), "header:NAME", "cookie:NAME", a callable environ -> str | None, or a list
            of these. Of a list, the first that has a value counts, as in ["user", "client"]. The
            guard does not apply to a request for which nothing has a value. A request without the
            header or the cookie is counted by its client.
        wait: how long a request may be delayed before it is refused, in seconds or as a text such
            as "2s". By default 0.
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
        self._set("by", checked_by(self.by))
        self._set("_key", key_function(self.by))

    def _name_parts(self) -> tuple[str, ...]:
        return (by_name(self.by),)

    def fixed_key(self) -> bytes | None:
        return b"" if self.by == "all" else None

    def counts_by_client(self) -> bool:
        return counts_by_client(self.by)

    def counts_clients_apart(self) -> bool:
        """Whether different clients are meant to have different keys."""
        return self.by not in ("all", "host", "path")

    def key(self, request: Request) -> bytes | None:
        return self._key(request)


def guard_keywords(
    function: Callable[Parameters, Result], caller: str = ""
) -> Callable[Parameters, Result]:
    """Let a function refuse unknown keywords in a sentence that names the nearest known one.

    `help()` shows its `**options` as the options of `Guard`.
    """
    return keyword_options(function, caller=caller, options_of=Guard.__init__)


def checked_keywords(guard: type[AnyGuard]) -> type[AnyGuard]:
    """Let a class of guards refuse unknown keywords as `guard_keywords` does."""
    guard.__init__ = guard_keywords(guard.__init__, guard.__name__)  # type: ignore[method-assign]
    return guard


def restore(guard_class: type[AnyGuard], state: dict[str, Any]) -> AnyGuard:
    """Make a guard of its pickled attributes."""
    guard = object.__new__(guard_class)
    vars(guard).update(state)
    guard.__post_init__()
    return guard

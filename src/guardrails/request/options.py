"""The options of `throttle()`: `throttle()` takes them, and so does a guard that is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypedDict

from guardrails.client.exemptions import Exempt
from guardrails.decision import Decision
from guardrails.store.contract import Store

OnStoreError = Literal["fallback", "allow", "refuse"]
"""What happens while the store fails."""

OnDecision = Callable[[Decision, dict[str, Any]], object]
"""Called with a decision and the environ."""

ClientCallable = Callable[[dict[str, Any]], str | None]
"""Returns the client's address for an environ, or None if it is unknown."""


class ThrottleOptions(TypedDict, total=False):
    """The keywords of `throttle()`; its docstring says what each of them does."""

    store: str | Store | None
    trusted_proxies: str | Iterable[str] | None
    proxy_hops: int | None
    forwarded: str
    client: ClientCallable | None
    ipv6_prefix: int
    exempt: Exempt
    exempt_paths: str | Iterable[str]
    silence: str | Iterable[str]
    interruptible: bool
    enabled: bool
    dry_run: bool
    on_decision: OnDecision | None
    on_store_error: OnStoreError

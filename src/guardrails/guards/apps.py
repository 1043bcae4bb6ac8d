"""The app that a guard or `throttle()` wraps: whether it is a WSGI app."""

from __future__ import annotations

import inspect
from typing import Any

from guardrails.errors import ConfigurationError

_ASGI_ARGUMENTS = ("scope", "receive", "send")


def check_wsgi_app(app: Any, guard: str, caller: str = "") -> Any:
    """Return a WSGI app. The usual mistakes are a guard that decorates a view, and an ASGI app.

    Args:
        app: what is to be wrapped.
        guard: the class of guard that the remedy shows.
        caller: what was called, as the message names it; the guard by default.

    Raises:
        ConfigurationError: it is no WSGI app.
    """
    caller = caller or guard
    shown = getattr(app, "__name__", app)
    remedy = (
        f"{caller}: {shown!r} is not a WSGI app, which takes "
        f"(environ, start_response): wrap the app and name the view by its path, as in "
        f'app.wsgi_app = guardrails.throttle(app.wsgi_app, {guard}(..., path="/that/view"))'
    )
    if not callable(app):
        raise ConfigurationError(remedy)
    if _is_asgi(app):
        raise ConfigurationError(
            f"{caller}: {shown!r} is an ASGI app, as those of Starlette and FastAPI are, and "
            "guardrails guards WSGI apps: limit it in its proxy, or make a WSGI app of it, as "
            "a2wsgi.ASGIMiddleware does"
        )
    if inspect.isfunction(app):
        try:
            bound = inspect.signature(app).bind(None, None)
        except TypeError:
            raise ConfigurationError(remedy) from None
        if next(iter(bound.arguments), "") == "request":
            raise ConfigurationError(remedy)
    return app


def _is_asgi(app: Any) -> bool:
    """Whether an app is a coroutine function, or takes the arguments of ASGI."""
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__):
        return True
    try:
        names = tuple(inspect.signature(app).parameters)
    except Exception:  # a callable of C code has no signature, and a proxy may not be ready yet
        return False
    return names[:3] == _ASGI_ARGUMENTS

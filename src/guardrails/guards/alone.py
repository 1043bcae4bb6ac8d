"""A guard on its own is a WSGI middleware and a decorator."""

from __future__ import annotations

from typing import Any

from guardrails.guard import Guard, check_wsgi_app
from guardrails.middleware import Throttle, throttle


class StandsAlone(Guard):
    """Lets a guard be put in front of an app by itself: `SpeedLimit("10/second")(app)`."""

    def __call__(self, app: Any, **throttle_options: Any) -> Throttle:
        """Return throttle(app, this guard, **throttle_options)."""
        return throttle(check_wsgi_app(app, type(self).__name__), self, **throttle_options)

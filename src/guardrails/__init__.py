"""guardrails: WSGI middleware that refuses what the server cannot afford.

app.wsgi_app = guardrails.throttle(app.wsgi_app, guardrails.SpeedLimit("120/minute"))
"""

from guardrails.decision import Decision
from guardrails.errors import (
    ConfigurationError,
    CPULimitError,
    GuardrailsError,
    RequestInterruptedError,
    StoreError,
)
from guardrails.guards.agents import BlockAgents
from guardrails.guards.concurrency import MaxConcurrentReqs
from guardrails.guards.cpu import CPUThrottle
from guardrails.guards.rate import SpeedLimit
from guardrails.request.middleware import Throttle, throttle
from guardrails.store.urls import open_store
from guardrails.watchdog.options import watchdog
from guardrails.worker.rlimits import rlimits
from guardrails.worker.size import size_limit
from guardrails.worker.usage import usage

__version__ = "0.1.0"

__all__ = [
    "BlockAgents",
    "CPULimitError",
    "CPUThrottle",
    "ConfigurationError",
    "Decision",
    "GuardrailsError",
    "MaxConcurrentReqs",
    "RequestInterruptedError",
    "SpeedLimit",
    "StoreError",
    "Throttle",
    "open_store",
    "rlimits",
    "size_limit",
    "throttle",
    "usage",
    "watchdog",
]

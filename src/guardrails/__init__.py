"""guardrails: WSGI middleware that refuses what the server cannot afford.

app.wsgi_app = guardrails.throttle(app.wsgi_app, guardrails.SpeedLimit("120/minute"))
"""

from guardrails.decision import (
    DELAYED,
    DELAYED_DRY_RUN,
    PASSED,
    REJECTED,
    REJECTED_DRY_RUN,
    Decision,
)
from guardrails.errors import (
    ConfigurationError,
    CPULimitError,
    GuardrailsError,
    RequestInterruptedError,
    StoreError,
)
from guardrails.guards.agents import BlockAgents
from guardrails.guards.base import Guard
from guardrails.guards.concurrency import MaxConcurrentReqs
from guardrails.guards.cpu import CPUThrottle
from guardrails.guards.rate import SpeedLimit
from guardrails.request.middleware import Throttle, throttle
from guardrails.store.contract import Store
from guardrails.store.records import Death, InFlight, Worker
from guardrails.store.urls import open_store

# `guardrails.watchdog` is this function. The package of that name stays reachable by imports, as in
# `from guardrails.watchdog import loop`.
from guardrails.watchdog.options import Watchdog, watchdog
from guardrails.worker.rlimits import ResourceLimits, rlimits
from guardrails.worker.size import SizeLimit, size_limit
from guardrails.worker.usage import Usage, usage

__version__ = "0.1.0"

__all__ = [
    "DELAYED",
    "DELAYED_DRY_RUN",
    "PASSED",
    "REJECTED",
    "REJECTED_DRY_RUN",
    "BlockAgents",
    "CPULimitError",
    "CPUThrottle",
    "ConfigurationError",
    "Death",
    "Decision",
    "Guard",
    "GuardrailsError",
    "InFlight",
    "MaxConcurrentReqs",
    "RequestInterruptedError",
    "ResourceLimits",
    "SizeLimit",
    "SpeedLimit",
    "Store",
    "StoreError",
    "Throttle",
    "Usage",
    "Watchdog",
    "Worker",
    "open_store",
    "rlimits",
    "size_limit",
    "throttle",
    "usage",
    "watchdog",
]

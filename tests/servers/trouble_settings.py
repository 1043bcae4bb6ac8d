"""gunicorn's settings for the site that gets into trouble."""

import json
import os

import guardrails

control_socket_disable = True
graceful_timeout = 20
keepalive = 5
limits = guardrails.rlimits(**json.loads(os.environ.get("TROUBLE_LIMITS", "null")) or {})


def post_fork(server, worker):
    limits(server, worker)


if "TROUBLE_WATCHDOG" in os.environ:
    when_ready = guardrails.watchdog(**json.loads(os.environ["TROUBLE_WATCHDOG"]))

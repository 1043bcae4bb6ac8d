"""gunicorn's settings for the site that gets into trouble."""

import json
import os
from pathlib import Path

import guardrails

control_socket_disable = True
graceful_timeout = 20
keepalive = 5
limits = guardrails.rlimits(**json.loads(os.environ.get("TROUBLE_LIMITS", "null")) or {})


def post_fork(server, worker):
    limits(server, worker)


if "TROUBLE_ROTATION" in os.environ:
    Path("rotation.conf").write_text(os.environ["TROUBLE_ROTATION"].format(folder=Path.cwd()))
    Path("rotation.conf").chmod(0o644)
if "TROUBLE_WATCHDOG" in os.environ:
    when_ready = on_reload = guardrails.watchdog(**json.loads(os.environ["TROUBLE_WATCHDOG"]))

"""gunicorn's settings for the matrix."""

import guardrails

control_socket_disable = True
graceful_timeout = 2
keepalive = 5
limits = guardrails.rlimits(NOFILE=4000)
post_fork = limits


def post_worker_init(worker):
    # The same again: a hook may come twice.
    limits.apply()

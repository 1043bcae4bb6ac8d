"""gunicorn's settings for the matrix."""

import guardrails

control_socket_disable = True
graceful_timeout = 2
keepalive = 5
post_fork = guardrails.rlimits(NOFILE=4000)
later = guardrails.rlimits(DATA="8G")


def post_worker_init(worker):
    later.apply()

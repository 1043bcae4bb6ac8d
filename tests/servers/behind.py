"""A site behind nginx: each client may come three times. DECLARED has options of throttle() in JSON."""

import json
import os

import guardrails
from guardrails import SpeedLimit


def page(environ, start_response):
    body = str(environ["guardrails.client"]).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


application = guardrails.throttle(
    page,
    SpeedLimit("3/day"),
    store=os.environ["SITE_STORE"],
    **json.loads(os.environ["DECLARED"]),
)

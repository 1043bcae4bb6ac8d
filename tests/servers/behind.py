"""A site behind nginx: each client may come three times. TRUSTED_PROXIES is a list in JSON."""

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
    trusted_proxies=json.loads(os.environ["TRUSTED_PROXIES"]),
    forwarded=os.environ.get("FORWARDED", "x-forwarded-for"),
)

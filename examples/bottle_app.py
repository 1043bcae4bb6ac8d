"""A shop in Bottle, behind guards.

Run   gunicorn --workers 2 --threads 4 --chdir examples bottle_app:application
Ask   for i in 1 2 3 4 5 6; do curl -s -H X-Forwarded-For:198.51.100.7 127.0.0.1:8000/search; done
See   "4 more" down to "0 more", then "429 Too Many Requests", whichever worker was asked
Ask   for i in 1 2 3; do curl -s 127.0.0.1:8000/report & done; wait
See   "All is well" from one, and from the others "503 Service Unavailable"
Ask   curl -s '127.0.0.1:8000/healthz?[1-150]' | sort | uniq -c
See   "150 ok", though the limit is 120 a minute: exempt paths are never refused

tests/test_examples.py shows how such a program is tested, with guards and without.
"""

import logging
import time

from bottle import Bottle, request, response

import guardrails
from guardrails import BlockAgents, CPUThrottle, MaxConcurrentReqs, SpeedLimit

logging.basicConfig(format="%(name)s: %(message)s")
logging.getLogger("guardrails").setLevel(logging.INFO)  # each refusal is a line at INFO

FRONT_PAGE = """\
<link rel="stylesheet" href="/static/site.css">
<p>Try <a href="/search">the search</a> and <a href="/report">the report</a>.
"""
STYLE = "p { font: 1.2em sans-serif }\n"


def what_remains(environ):
    decision = environ.get("guardrails.decision")  # there is none while guardrails is off
    if decision is None or decision.remaining is None:
        return "Nobody counts."
    return f"{decision.remaining} more would be answered now."


shop = Bottle()


@shop.get("/")
def front_page():
    return FRONT_PAGE


@shop.get("/search")
def search():
    return f"Nothing was found. {what_remains(request.environ)}\n"


@shop.get("/report")
def report():
    time.sleep(1)
    return "All is well.\n"


@shop.get("/static/site.css")
def stylesheet():
    response.content_type = "text/css"
    return STYLE


@shop.get("/healthz")
def health():
    return "ok\n"


def create_app(**options):
    """Return the shop behind its guards. Tests pass a store of their own, or enabled=False."""
    return guardrails.throttle(
        shop,
        BlockAgents("zgrab", "EmailSiphon"),
        SpeedLimit("120/minute"),
        SpeedLimit("5/minute", path="/search"),
        MaxConcurrentReqs(1, path="/report"),
        CPUThrottle("50%", window="10s"),
        exempt_paths=["/static/", "/healthz"],
        trusted_proxies=["loopback"],  # only a proxy on this host may name the client
        **options,
    )


application = create_app()

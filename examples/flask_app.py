"""A Flask app behind guards: a login, and a report that is slow to make.

Run    gunicorn --workers 2 --chdir examples flask_app:app
and    for i in 1 2 3 4 5 6; do curl -so/dev/null -w '%{http_code} ' -d a=b 127.0.0.1:8000/login; done
to see `200` five times and then `429`, whichever worker was asked. Two reports at once,
       for i in 1 2; do curl -so/dev/null -w '%{http_code} ' 127.0.0.1:8000/report & done; wait
give one `200` and one `503`, and `curl -A zgrab 127.0.0.1:8000/` gives `403`.
"""

import logging
import time

from flask import Flask, request

import guardrails
from guardrails import BlockAgents, CPUThrottle, MaxConcurrentReqs, SpeedLimit

logging.basicConfig(format="%(name)s: %(message)s")
logging.getLogger("guardrails").setLevel(logging.INFO)  # each refusal is a line at INFO

app = Flask(__name__)


@app.get("/")
def front_page():
    return "Try /login and /report.\n"


@app.post("/login")
def login():
    return f"Hello {request.form.get('name', 'you')}.\n"


@app.get("/report")
def report():
    time.sleep(1)
    return "All is well.\n"


app.wsgi_app = guardrails.throttle(
    app.wsgi_app,
    BlockAgents("zgrab", "EmailSiphon"),
    SpeedLimit("120/minute"),
    SpeedLimit("5/minute", path="/login", methods=["POST"]),
    MaxConcurrentReqs(1, path="/report"),
    CPUThrottle("50%", window="10s"),
    exempt_paths=["/static/"],
    trusted_proxies=(),  # nothing stands in front; behind nginx on this host: ["loopback"]
)

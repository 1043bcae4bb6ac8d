"""A pytest plugin for the suites of other projects: it puts guardrails before every app that they call.

SUITES_WAY says how, SUITES_RESULTS names the file that gets the outcome of each test.
"""

import json
import logging
import os
import warnings
import wsgiref.simple_server
import wsgiref.validate
from collections import Counter
from contextlib import suppress
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import _pytest.monkeypatch

import guardrails
from guardrails import BlockAgents, CPUThrottle, MaxConcurrentReqs, SpeedLimit, testing
from guardrails.store.memory import MemoryStore
from guardrails.store.shared import SharedStore

WAY = os.environ["SUITES_WAY"]
GUARDS = (
    BlockAgents("an agent that no suite has"),
    SpeedLimit("1000000/second", burst=100_000_000),
    MaxConcurrentReqs(1_000),
    CPUThrottle("100000%", window="1h"),
)
"""All that a request may meet; none of them refuses anything."""

APP = "suites.app"
"""Where the environ has the app while a request comes to the throttle."""

validated = wsgiref.validate.validator
seen = Counter()
outcomes = {}


def call_app(environ, start_response):
    return environ.pop(APP)(environ, start_response)


memory, shared = (
    guardrails.throttle(call_app, *GUARDS, store=store, trusted_proxies=())
    for store in (MemoryStore(), SharedStore(f"suites-{os.getpid()}", private=True))
)


def throttled(app, throttle):
    """Put a throttle before an app."""

    def counted(environ, start_response):
        seen["requests"] += 1
        environ[APP] = app
        response = throttle(environ, start_response)
        decision = environ.get("guardrails.decision")
        seen["refused"] += decision is not None and not decision.admitted
        return response

    return counted


def begin():
    """Send a first request: the suites replace functions that a throttle calls when it begins."""
    for throttle in (memory, shared):
        environ = {}
        setup_testing_defaults(environ)
        throttled(testing.hello, throttle)(environ, lambda *_answer: None).close()
    seen.clear()


WAYS = {
    "bare": lambda app: app,
    "memory": lambda app: throttled(app, memory),
    "shm": lambda app: throttled(app, shared),
    "nested": lambda app: throttled(throttled(app, memory), shared),
    "validators alone": lambda app: validated(validated(app)),
    "validators": lambda app: validated(throttled(validated(app), shared)),
}
wrapped = WAYS[WAY]


def call_wrapped(owner, name, position):
    """Have a function or method get its app wrapped."""
    original = getattr(owner, name)

    def calling(*arguments, **keywords):
        if len(arguments) > position and callable(arguments[position]):
            before, after = arguments[:position], arguments[position + 1 :]
            arguments = (*before, wrapped(arguments[position]), *after)
        return original(*arguments, **keywords)

    setattr(owner, name, calling)


def pytest_configure():
    if not hasattr(_pytest.monkeypatch, "notset"):
        # Flask's tests import the name that it had before pytest 9.2.
        _pytest.monkeypatch.notset = _pytest.monkeypatch.NOTSET
    logging.getLogger("guardrails").disabled = True  # the suites look at what is logged
    begin()
    # Falcon's client and Bottle's tests call every app through this.
    call_wrapped(wsgiref.validate, "validator", 0)
    call_wrapped(wsgiref.simple_server.WSGIServer, "set_app", 1)
    with suppress(ImportError):
        import werkzeug.test

        call_wrapped(werkzeug.test, "run_wsgi_app", 0)
    with suppress(ImportError), warnings.catch_warnings():
        # Python 3.11 and 3.12 deprecate cgi, which WebOb imports; some suites make errors of warnings.
        warnings.simplefilter("ignore")
        import webob.request

        call_wrapped(webob.request.BaseRequest, "call_application", 1)


def pytest_runtest_logreport(report):
    """Note the worst outcome of the phases of a test."""
    if outcomes.get(report.nodeid) != "failed" and (
        report.when == "call" or report.outcome != "passed"
    ):
        outcomes[report.nodeid] = report.outcome


def pytest_collectreport(report):
    if report.failed:
        outcomes[report.nodeid] = "failed"


def pytest_sessionfinish():
    errors = Counter(memory.errors) + Counter(shared.errors)
    shared.store.close()
    results = {"outcomes": outcomes, "seen": seen, "errors": errors}
    Path(os.environ["SUITES_RESULTS"]).write_text(json.dumps(results))

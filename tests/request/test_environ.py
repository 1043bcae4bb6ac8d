"""The environ has plain values alone, and a request is found by them as long as it is open."""

import copy
import gc
import json
import pickle
import subprocess
import sys
from wsgiref.util import FileWrapper

import pytest
from werkzeug.middleware.proxy_fix import ProxyFix

from guardrails import MaxConcurrentReqs, SpeedLimit, testing, throttle
from responses import Body, answering, webob_request
from support import Exchange, nothing_is_left_in, slots_held

PLAIN = (str, int, float, bool, type(None))


def ours(environ):
    return {key: value for key, value in environ.items() if key.startswith("guardrails.")}


def in_the_app(guarded, use, **facts):
    """What `use` makes of the environ within the app."""
    found = []

    def app(environ, start_response):
        found.append(use(environ))
        return testing.hello(environ, start_response)

    Exchange(guarded(app), **facts).finish()
    return found[0]


# Plain values


@pytest.mark.parametrize("throttles", [1, 2])
def test_the_environ_gets_plain_values(guarded, throttles):
    def build(app):
        return guarded(throttle(app, store=testing.memory_store()) if throttles == 2 else app)

    added = in_the_app(build, ours)

    assert set(added) == {"guardrails.client", "guardrails.decision", "guardrails.request"}
    for value in (*added.pop("guardrails.decision"), *added.values()):
        assert isinstance(value, PLAIN)


def test_what_the_environ_gets_can_be_encoded_as_json(guarded):
    added = in_the_app(guarded, lambda environ: json.loads(json.dumps(ours(environ))))

    assert added["guardrails.client"] == "192.0.2.1"
    assert added["guardrails.decision"][:2] == [True, "PASSED"]


def test_an_environ_can_be_pickled_and_copied_deeply(guarded):
    """With the file wrapper in it, whose class can be pickled as well."""

    def use(environ):
        plain = {key: value for key, value in environ.items() if key not in STREAMS}
        restored = pickle.loads(pickle.dumps(plain))  # noqa: S301 - made on this line
        return plain, restored, copy.deepcopy(plain), copy.copy(environ)

    plain, restored, deep, shallow = in_the_app(guarded, use, **{"wsgi.file_wrapper": FileWrapper})

    assert restored.pop("wsgi.file_wrapper") is FileWrapper
    assert deep == plain
    assert shallow.items() >= plain.items()
    del plain["wsgi.file_wrapper"]
    assert restored == plain


STREAMS = {"wsgi.input", "wsgi.errors"}


def test_a_server_that_keeps_its_environ_keeps_no_request(guarded, store):
    exchange = Exchange(guarded(answering(Body))).call()
    assert slots_held(store) == 1

    exchange.response = None
    gc.collect()

    assert nothing_is_left_in(store)


# Within a request


@pytest.mark.parametrize("copied", [dict, copy.copy, copy.deepcopy, lambda environ: {**environ}])
def test_an_inner_throttle_knows_the_request_by_a_copy_of_its_environ(store, copied):
    """Its client comes from the outer one, and a guard of both is charged once."""
    limit = SpeedLimit("2/minute")
    clients = []

    def innermost(environ, start_response):
        clients.append(environ["guardrails.client"])
        return testing.hello(environ, start_response)

    inner = throttle(innermost, limit)

    def between(environ, start_response):
        streams = {key: environ.pop(key) for key in STREAMS}
        mounted = {**copied(environ), **streams}
        mounted |= {"SCRIPT_NAME": "/shop", "PATH_INFO": "/cart", "REQUEST_METHOD": "POST"}
        return inner(mounted, start_response)

    site = throttle(between, limit, store=store, trusted_proxies=["192.0.2.1"])
    statuses = []
    for _ in range(3):
        exchange = Exchange(site, HTTP_X_FORWARDED_FOR="198.51.100.1")
        exchange.finish()
        statuses.append(exchange.status[:3])

    assert statuses == ["200", "200", "429"]
    assert clients == ["198.51.100.1"] * 2
    assert nothing_is_left_in(store)


def test_an_inner_throttle_that_a_stream_asks_late_knows_the_request(store):
    """The outer throttle's call is over by then."""
    limit = SpeedLimit("2/minute")
    inner = throttle(testing.hello, limit)

    def late(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (part for part in [*inner(environ, lambda *_answer: None)])

    def later(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield from inner(environ, lambda *_answer: None)

    for app in (late, later):
        store.reset()
        site = throttle(app, limit, store=store)
        bodies = [Exchange(site).finish() for _ in range(2)]
        assert bodies == [b"hello\n"] * 2


def test_proxy_fix_between_two_throttles_makes_no_new_request(store):
    limit = SpeedLimit("2/minute")
    site = throttle(
        ProxyFix(throttle(testing.hello, limit)), limit, store=store, trusted_proxies=["192.0.2.1"]
    )
    statuses = []
    for _ in range(3):
        exchange = Exchange(site, HTTP_X_FORWARDED_FOR="198.51.100.1")
        exchange.finish()
        statuses.append(exchange.status[:3])

    assert statuses == ["200", "200", "429"]


def test_a_request_to_the_same_site_for_another_client_is_a_new_one(store):
    """An app that asks its own site with its own environ, as somebody else."""
    decisions = []

    def app(environ, start_response):
        decisions.append(environ["guardrails.client"])
        if environ["REMOTE_ADDR"] == "192.0.2.1":
            webob_request({**environ, "REMOTE_ADDR": "192.0.2.2"}).get_response(site)
        return testing.hello(environ, start_response)

    site = throttle(app, MaxConcurrentReqs(1, by="client"), store=store)
    Exchange(site).finish()

    assert decisions == ["192.0.2.1", "192.0.2.2"]
    assert nothing_is_left_in(store)


# After a request, and while its response is open


@pytest.mark.parametrize("response", [lambda: [b"x"], Body, lambda: (b"x",), lambda: b"x"])
@pytest.mark.parametrize("closed", [True, False])
def test_the_same_environ_asked_again_is_a_new_request(store, response, closed):
    """As WebOb asks with one Request: it keeps the environ, and may keep the response open."""
    site = throttle(answering(response), SpeedLimit("2/minute"), store=store)
    request = webob_request()
    answers = []
    for _ in range(3):
        answer = request.get_response(site)
        if closed and hasattr(answer.app_iter, "close"):
            answer.app_iter.close()
        answers.append(answer)

    assert [answer.status_int for answer in answers] == [200, 200, 429]


def test_the_same_environ_with_another_address_is_another_client(store):
    site = throttle(answering(Body), SpeedLimit("1/minute"), store=store)
    request = webob_request()
    statuses = []
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1"):
        request.environ["REMOTE_ADDR"] = address
        statuses.append(request.get_response(site).status_int)

    assert statuses == [200, 200, 429]
    assert request.environ["guardrails.client"] == "192.0.2.1"


def test_an_environ_that_another_process_restores_belongs_to_no_request_there(guarded):
    """As a queue of jobs restores it: the request of this process is no outer one there."""
    restored = """
import json, sys
from guardrails import SpeedLimit, testing, throttle
site = throttle(testing.hello, SpeedLimit("1/minute"), store=testing.memory_store())
environ = json.load(sys.stdin)
statuses = []
for _ in range(2):
    site(dict(environ), lambda status, headers: statuses.append(status[:3]))
print(*statuses)
"""

    def elsewhere(environ):
        texts = {key: value for key, value in environ.items() if isinstance(value, str)}
        return subprocess.run(
            [sys.executable, "-c", restored],
            input=json.dumps(texts | ours(environ)),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    assert in_the_app(guarded, elsewhere).split() == ["200", "429"]

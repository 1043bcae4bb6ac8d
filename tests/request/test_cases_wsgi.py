"""The rules of PEP 3333, with wsgiref's lint on both sides of the middleware.

The lint outside plays the server's part and checks what guardrails answers; the lint inside plays the
app's part and checks how guardrails calls. Every rule of the file must hold in every situation of the
file. Rules that the lint does not check, because it takes them for granted, are checked here by hand.
"""

import io
import sys
import warnings
from wsgiref.validate import InputWrapper, validator

import pytest

from guardrails import BlockAgents, MaxConcurrentReqs, SpeedLimit, testing, throttle
from support import Exchange, MeanwhileClock, Threads, cases, nothing_is_left_in

CASES = cases("wsgi_conformance")


class Tapped:
    """An app between two lints, with a tap on each side of guardrails."""

    def __init__(self, app, *guards, store, **options):
        self.calls = []
        self.answers = []
        self.closed = 0

        def tapped(*arguments, **named):
            self.calls.append((arguments, named))
            return app(*arguments)

        self.guarded = throttle(validator(tapped), *guards, store=store, **options)
        self.outside = validator(self.answering)

    def answering(self, environ, start_response):
        def noting(*answer, **named):
            self.answers.append((answer, named))
            return start_response(*answer, **named)

        return self.guarded(environ, noting)


class Closing:
    """A response that counts its closing, and whether it was asked for more after that."""

    def __init__(self, chunks):
        self.iterator = iter(chunks)
        self.closed = 0
        self.late = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.late += self.closed
        return next(self.iterator)

    def close(self):
        self.closed += 1


class ReadingApp:
    """An app that reads its body, complains to wsgi.errors, writes, and answers as it is told."""

    def __init__(self, *, status="200 OK", chunks=(b"hello\n",), error=None):
        self.status = status
        self.chunks = chunks
        self.error = error
        self.responses = []

    def __call__(self, environ, start_response):
        environ["wsgi.input"].read(10)
        environ["wsgi.errors"].write("a complaint\n")
        environ["wsgi.errors"].flush()
        if self.error is not None:
            raise self.error
        headers = [] if self.status[:3] in {"204", "304"} else [("Content-Type", "text/plain")]
        bodiless = not headers or environ["REQUEST_METHOD"] == "HEAD"
        try:
            raise LookupError("a failed first try")
        except LookupError:
            start_response(self.status, headers, sys.exc_info())
        self.responses.append(Closing([] if bodiless else self.chunks))
        return self.responses[-1]


class Situation:
    """What a situation of the file is made of: guards, an app, how it is asked, what comes out."""

    def __init__(self, status, app=None, guards=(), facts=None, read="all", before=0):
        self.status = status
        self.app = app or ReadingApp()
        self.guards = guards
        self.facts = facts or {}
        self.read = read
        self.before = before


SITUATIONS = {
    "passed": lambda: Situation("200 OK", guards=[SpeedLimit("9/second"), MaxConcurrentReqs(1)]),
    "refused 403": lambda: Situation("403 Forbidden", guards=[BlockAgents(".", missing="refuse")]),
    "refused 429": lambda: Situation(
        "429 Too Many Requests", guards=[SpeedLimit("1/hour", cost=lambda _environ: 2)]
    ),
    "refused 503": lambda: Situation(
        "503 Service Unavailable", guards=[MaxConcurrentReqs(1)], before=1
    ),
    "application raised": lambda: Situation(
        LookupError, ReadingApp(error=LookupError("the app's own")), guards=[MaxConcurrentReqs(1)]
    ),
    "client disconnected": lambda: Situation(
        "200 OK", ReadingApp(chunks=[b"one", b"two"]), guards=[MaxConcurrentReqs(1)], read="first"
    ),
    "streaming body": lambda: Situation(
        "200 OK", ReadingApp(chunks=[b"one", b"", b"two"]), guards=[MaxConcurrentReqs(1)]
    ),
    "HEAD": lambda: Situation(
        "200 OK", facts={"REQUEST_METHOD": "HEAD"}, guards=[SpeedLimit("9/second")]
    ),
    "HEAD refused": lambda: Situation(
        "403 Forbidden",
        facts={"REQUEST_METHOD": "HEAD"},
        guards=[BlockAgents(".", missing="refuse")],
    ),
    "204": lambda: Situation(
        "204 No Content", ReadingApp(status="204 No Content"), guards=[MaxConcurrentReqs(1)]
    ),
    "304": lambda: Situation(
        "304 Not Modified", ReadingApp(status="304 Not Modified"), guards=[MaxConcurrentReqs(1)]
    ),
    "queued then passed": lambda: Situation(
        "200 OK", guards=[SpeedLimit("1/second", wait="2s")], before=1
    ),
}


class Outcome:
    """What was seen while a situation was played between the lints."""

    def __init__(self, situation, site, exchange, body, environ_at_app):
        self.situation = situation
        self.site = site
        self.exchange = exchange
        self.body = body
        self.environ_at_app = environ_at_app

    @property
    def app_was_called(self):
        return str(self.situation.status)[:3] not in {"403", "429", "503"}


def play(name) -> Outcome:
    """Play a situation; any rule that the lints check ends in an AssertionError here."""
    situation = SITUATIONS[name]()
    store = testing.memory_store(MeanwhileClock())
    site = Tapped(situation.app, *situation.guards, store=store)

    def exchange_of(**facts):
        facts = {"CONTENT_LENGTH": "4", "wsgi.input": io.BytesIO(b"body"), **facts}
        exchange = Exchange(site.outside, "/a", **situation.facts, **facts)
        exchange.environ.setdefault("REQUEST_METHOD", "GET")
        exchange.environ.pop("werkzeug.request", None)
        return exchange

    def run():
        held = []
        for _ in range(situation.before):
            before = exchange_of().call()
            next(iter(before.response))
            held.append(before)
        exchange = exchange_of()
        body, error = b"", None
        calls_before = len(site.calls)
        try:
            exchange.call()
            iterator = iter(exchange.response)
            body = next(iterator, b"") if situation.read == "first" else b"".join(iterator)
        except LookupError as raised:
            error = type(raised)
        finally:
            if exchange.response is not None:
                exchange.response.close()
            for before in held:
                before.response.close()
        environ_at_app = site.calls[-1][0][0] if len(site.calls) > calls_before else None
        assert (error or exchange.status) == situation.status
        return Outcome(situation, site, exchange, body, environ_at_app)

    if name != "queued then passed":
        outcome = run()
    else:
        with Threads(4) as threads:
            for number in range(4):
                threads.do(number, lambda: Exchange(site.guarded, "/robots.txt").finish())
            site.calls.clear()
            site.answers.clear()
            situation.app.responses.clear()
            outcome = threads.do(0, run)
        assert outcome.exchange.environ["guardrails.decision"].outcome == "DELAYED"
    assert nothing_is_left_in(store)
    return outcome


def two_positional(outcome):
    assert all(len(arguments) == 2 and not named for arguments, named in outcome.site.calls)
    assert bool(outcome.environ_at_app) == outcome.app_was_called


def plain_dict(outcome):
    if outcome.environ_at_app is not None:
        assert type(outcome.environ_at_app) is dict
        assert outcome.environ_at_app is outcome.exchange.environ


def required_variables(outcome):
    needed = {"REQUEST_METHOD", "SERVER_NAME", "SERVER_PORT", "wsgi.version", "wsgi.input"}
    needed |= {"wsgi.errors", "wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once"}
    assert needed <= set(outcome.environ_at_app or outcome.exchange.environ)


def no_http_content(outcome):
    assert not {"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"} & set(outcome.exchange.environ)


def query_string_is_left(outcome):
    assert outcome.exchange.environ["QUERY_STRING"] == ""


def texts_in_dotless_variables(outcome):
    for name, value in outcome.exchange.environ.items():
        assert "." in name or type(value) is str


def version_and_scheme(outcome):
    assert outcome.exchange.environ["wsgi.version"] == (1, 0)
    assert outcome.exchange.environ["wsgi.url_scheme"] in {"http", "https"}


def script_and_path(outcome):
    assert (outcome.exchange.environ["SCRIPT_NAME"], outcome.exchange.environ["PATH_INFO"]) == (
        "",
        "/a",
    )


def content_length(outcome):
    assert outcome.exchange.environ["CONTENT_LENGTH"] == "4"


def input_is_used_as_allowed(outcome):
    """The lint's own wrappers raise for another use; here, that nobody closed or replaced the input."""
    stream = outcome.exchange.environ["wsgi.input"]
    assert isinstance(stream, InputWrapper)
    while isinstance(stream, InputWrapper):
        stream = stream.input
    assert not stream.closed


def errors_are_used_as_allowed(outcome):
    assert outcome.exchange.environ["wsgi.errors"] is not None


def the_status(outcome):
    for answer, _named in outcome.site.answers:
        status = answer[0]
        assert type(status) is str
        assert int(status[:3]) >= 100
        assert status[3] == " "


def the_headers(outcome):
    for answer, _named in outcome.site.answers:
        assert type(answer[1]) is list
        assert all(type(header) is tuple and len(header) == 2 for header in answer[1])


def no_status_header(outcome):
    assert "status" not in {name.lower() for name in outcome.exchange.headers}


def characters_of_headers(outcome):
    for name, value in outcome.exchange.headers.items():
        assert not set("\n:") & set(name)
        assert name[-1] not in "-_"
        assert value.isprintable()


def content_type_with_a_body(outcome):
    if outcome.body:
        assert "Content-Type" in outcome.exchange.headers


def no_content_type_without_a_body(outcome):
    if outcome.exchange.status[:3] in {"204", "304"}:
        assert "Content-Type" not in outcome.exchange.headers
        assert outcome.body == b""


def exc_info_is_left_alone(outcome):
    passed = [answer for answer, _named in outcome.site.answers if len(answer) == 3]
    if outcome.app_was_called and outcome.situation.app.error is None:
        assert passed
        assert all(type(answer[2]) is tuple for answer in passed)


def written_as_bytes(outcome):
    assert all(type(chunk) is bytes for chunk in outcome.exchange.written)


def body_of_bytes(outcome):
    assert type(outcome.body) is bytes
    assert not isinstance(outcome.exchange.response, str | bytes)


def started_first(outcome):
    assert outcome.exchange.status or outcome.situation.app.error


def closed_once(outcome):
    assert [response.closed for response in outcome.situation.app.responses] == [1] * len(
        outcome.situation.app.responses
    )
    if outcome.app_was_called and outcome.situation.app.error is None:
        assert outcome.situation.app.responses


def no_item_after_close(outcome):
    assert not any(response.late for response in outcome.situation.app.responses)


RULES = {
    "app-two-positional": two_positional,
    "environ-plain-dict": plain_dict,
    "environ-required": required_variables,
    "no-http-content": no_http_content,
    "query-string": query_string_is_left,
    "cgi-vars-str": texts_in_dotless_variables,
    "version-tuple": version_and_scheme,
    "script-path": script_and_path,
    "content-length": content_length,
    "input-use": input_is_used_as_allowed,
    "errors-use": errors_are_used_as_allowed,
    "status-form": the_status,
    "headers-list": the_headers,
    "no-status-header": no_status_header,
    "header-chars": characters_of_headers,
    "content-type-with-body": content_type_with_a_body,
    "no-content-type-without-body": no_content_type_without_a_body,
    "exc-info": exc_info_is_left_alone,
    "write-bytes": written_as_bytes,
    "body-not-str": body_of_bytes,
    "start-first": started_first,
    "close-called": closed_once,
    "no-iter-after-close": no_item_after_close,
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_of_wsgi_holds_in_every_situation(rule, situation):
    RULES[rule](play(situation))


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_missing_query_string_only_warns(situation, monkeypatch):
    """The lint warns of it, and nothing of guardrails' own needs it."""
    made = Exchange.__init__

    def without(self, *arguments, **facts):
        made(self, *arguments, **facts)
        del self.environ["QUERY_STRING"]

    monkeypatch.setattr(Exchange, "__init__", without)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        play(situation)


@pytest.mark.parametrize("guards", [[], [SpeedLimit("9/second")], [MaxConcurrentReqs(9, hold="call")]])
@pytest.mark.parametrize("body", [lambda: [b"x"], lambda: (b"x",), lambda: iter([b"x"])])
def test_a_server_that_closes_twice_harms_nobody(guards, body, store):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return body()

    exchange = Exchange(throttle(app, *guards, store=store)).call()
    exchange.read()
    exchange.close()
    exchange.close()

    assert nothing_is_left_in(store)


def test_a_server_that_closes_twice_closes_the_app_once(store):
    """PEP 3333 lets the app rely on it: its close is called once."""
    response = Closing([b"x"])

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return response

    exchange = Exchange(throttle(app, MaxConcurrentReqs(1), store=store)).call()
    exchange.close()
    exchange.close()

    assert response.closed == 1


def test_no_rule_and_no_situation_of_the_file_is_left_out():
    assert set(RULES) == set(CASES)
    named = {situation for case in CASES.values() for situation in case["must_hold_for"]}
    played = {
        "refused 403/429/503": {"refused 403", "refused 429", "refused 503"},
        "204/304": {"204", "304"},
    }
    for situation in named:
        assert played.get(situation, {situation}) <= set(SITUATIONS)

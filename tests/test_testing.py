"""What `guardrails.testing` gives to those who test their own guarded apps."""

import threading
import time

import pytest

from guardrails import SpeedLimit, testing, throttle
from support import Exchange


@pytest.fixture
def client(store):
    return testing.Client(throttle(testing.hello, SpeedLimit("1/minute", name="front"), store=store))


def test_assert_refused_passes_for_a_refusal(client):
    client.get("/")

    testing.assert_refused(client.get("/"), 429, guard="front", retry_after=60)


def test_assert_refused_fails_for_an_answer_of_the_app(client):
    with pytest.raises(AssertionError, match="the request was not refused: status 200 OK"):
        testing.assert_refused(client.get("/"))


def test_assert_refused_fails_for_an_error_of_the_apps_own(store):
    """A 429 of the app is no refusal by guardrails."""

    def app(environ, start_response):
        start_response("429 Too Many Requests", [("Content-Type", "text/plain")])
        return [b"the app's own"]

    client = testing.Client(throttle(app, SpeedLimit("9/minute"), store=store))

    with pytest.raises(AssertionError, match="was not refused"):
        testing.assert_refused(client.get("/"), 429)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"status": 503}, "refused with 429 Too Many Requests, not with 503"),
        ({"guard": "back"}, "refused by 'front', not by 'back'"),
        ({"retry_after": 59}, "Retry-After is 60, not 59"),
    ],
)
def test_assert_refused_says_what_is_otherwise(client, expected, message):
    client.get("/")

    with pytest.raises(AssertionError, match=message):
        testing.assert_refused(client.get("/"), **expected)


def test_a_client_has_an_address_and_an_agent():
    environs = []

    def app(environ, start_response):
        environs.append(environ)
        return testing.hello(environ, start_response)

    testing.Client(app, address="192.0.2.7", agent="me/1").get("/")

    assert (environs[0]["REMOTE_ADDR"], environs[0]["HTTP_USER_AGENT"]) == ("192.0.2.7", "me/1")


def test_a_header_of_one_request_is_stronger_than_the_clients_agent():
    agents = []

    def app(environ, start_response):
        agents.append(environ["HTTP_USER_AGENT"])
        return testing.hello(environ, start_response)

    testing.Client(app, agent="me/1").get("/", headers={"User-Agent": "another/2"})

    assert agents == ["another/2"]


def test_a_clock_stands_still_until_it_is_told_to_go_on():
    clock = testing.Clock(5)
    assert clock() == clock() == 5_000_000

    clock.advance(0.25)

    assert clock() == 5_250_000


def test_a_hanging_app_answers_when_it_is_released():
    release = threading.Event()
    answers = []
    exchange = Exchange(testing.hanging(release, most_seconds=20))
    thread = threading.Thread(target=lambda: answers.append(exchange.finish()))
    thread.start()
    assert answers == []

    release.set()
    thread.join(60)

    assert answers == [b"hello\n"]


def test_a_spinning_app_burns_as_much_cpu_as_it_says():
    before = time.thread_time()
    Exchange(testing.spinning(0.01)).finish()

    assert time.thread_time() - before >= 0.01


def test_a_leaking_app_keeps_so_many_bytes_with_each_request():
    kept = []
    app = testing.leaking(1000, keep=kept.append)
    Exchange(app).finish()
    Exchange(app).finish()

    assert [len(each) for each in kept] == [1000, 1000]

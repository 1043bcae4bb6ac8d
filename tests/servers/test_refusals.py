"""The client sees the refusal, whatever it was about to send."""

from contextlib import closing
from http.client import HTTPConnection

import pytest
from wire import SECONDS, Wire

KILOBYTE = 1024
TRIES = 3
"""Guardrails waits a quarter of a second for a refused body, in which a busy client may not send it."""
CLOSES = "granian"
"""Its `read` waits without an end, so guardrails reads nothing, and granian closes the connection."""
SIZES = {"1 kB": KILOBYTE, "100 kB": 100 * KILOBYTE, "5 MB": 5 * KILOBYTE * KILOBYTE}


@pytest.fixture
def refused(site):
    """A client whose every further request for /once is refused."""
    client = site.new_client()
    assert site.ask("/once/plain", client=client).status == 200
    return {"ClientAddress": client}


def post(site, headers, body):
    """What the standard library's client sees, which sends everything before it listens."""
    with closing(HTTPConnection("127.0.0.1", site.port, timeout=SECONDS)) as connection:
        try:
            connection.request("POST", "/once/plain", body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        except OSError as error:
            return type(error).__name__, {}, b""


@pytest.mark.parametrize("size", SIZES)
def test_a_refusal_is_seen_though_a_body_was_not_read(site, refused, observe, size):
    for _ in range(TRIES):
        status, headers, body = post(site, refused, b"b" * SIZES[size])
        if status == 429:
            break

    observe(f"refused with {size}", status)
    if size != "5 MB":
        assert status == 429
        assert headers["Content-Length"] == str(len(body))
        assert headers["Cache-Control"] == "no-store"
        assert int(headers["Retry-After"]) > 0


def test_a_refusal_is_seen_by_a_client_that_waits_to_be_asked(site, refused, observe):
    body = b"b" * KILOBYTE
    with Wire(site.port) as wire:
        pairs = {**refused, "Expect": "100-continue", "Content-Length": str(len(body))}
        wire.send("POST", "/once/plain", pairs)
        head = wire.until(b"\r\n")
        asked = b" 100 " in head
        if asked:
            wire.send_raw(body)
        while b" 429 " not in head:
            head = wire.until(b"\r\n")

    observe("Expect", "asked for the body first" if asked else "refused at once")


def test_a_refusal_of_head_has_no_body(site, refused):
    with Wire(site.port) as wire:
        wire.send("HEAD", "/once/plain", [*refused.items(), ("Connection", "close")])
        head = wire.until(b"\r\n\r\n")
        rest = b""
        while more := wire.receive():
            rest += more

    assert b" 429 " in head.split(b"\r\n")[0]
    assert b"\r\ncontent-length:" in head.lower()
    assert rest == b""


def second_on_the_same_connection(site, target, expected, method="GET", headers=(), body=b""):
    with Wire(site.port) as wire:
        wire.send(method, target, headers, body)
        first = wire.answer(method)
        assert first.status == expected
        if first.headers.get("connection", "").lower() == "close":
            return False  # some leave it open all the same, and answer nothing
        try:
            wire.send("GET", "/open/ready")
            return wire.answer().status == 200
        except (OSError, ValueError):
            return False


@pytest.mark.parametrize(("method", "size"), [("GET", 0), ("POST", KILOBYTE), ("POST", 100 * KILOBYTE)])
def test_a_connection_outlives_a_refusal_where_the_server_keeps_it(
    site, refused, observe, method, size
):
    server_keeps = second_on_the_same_connection(site, "/bare/plain", 200)
    survives = any(
        second_on_the_same_connection(site, "/once/plain", 429, method, refused, b"b" * size)
        for _ in range(TRIES)
    )

    observe(f"kept after {method} with {size // KILOBYTE} kB", survives)
    if site.setup.name != CLOSES or size <= KILOBYTE:
        assert survives == server_keeps

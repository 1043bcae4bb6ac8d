"""What the app answers comes through as it would without guardrails: files and streams."""

import secrets

import pytest
from wire import Wire


def file_facts(site, target):
    """How a file was sent: the object that the server got, and how often the file was read."""
    before = {event: len(site.journal(event)) for event in FILE_EVENTS}
    answer = site.ask(target)
    site.until(lambda: len(site.journal("file closed")) > before["file closed"], "the file is closed")
    new = {event: site.journal(event)[before[event] :] for event in FILE_EVENTS}
    assert answer.body == (site.folder / "file").read_bytes()
    return new


FILE_EVENTS = ("file wrapped", "file passed", "file closed", "line")


def test_a_file_is_sent_as_without_guardrails(site, observe):
    bare = file_facts(site, "/bare/file")
    guarded = file_facts(site, "/slot/file")

    (wrapped,), (passed,) = guarded["file wrapped"], guarded["file passed"]
    if wrapped["kind"] is not None:
        assert passed["identity"] == wrapped["identity"]
    assert guarded["line"] == []
    (bare_file,), (file,) = bare["file closed"], guarded["file closed"]
    # How often a server reads depends on how fast the client is: only whether it does is its way.
    assert bool(file["reads"]) == bool(bare_file["reads"])
    observe("file", "sent by its descriptor" if file["reads"] == 0 else "read and sent")


KINDS = ["without-length", "own-list", "tuple", "sized"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_with_a_length_is_sent_as_without_guardrails(site, kind):
    """Some servers make a Content-Length of it. gevent's pywsgi reads it twice for that."""
    bare, guarded, nested = (
        on_one_connection(site, f"/{pages}/{kind}") for pages in ("bare", "slot", "nested")
    )

    assert bare[0].body == b"its length is known\n"
    for answers in (guarded, nested):
        assert len(answers) == len(bare)
        for answer, expected in zip(answers, bare, strict=True):
            for header in ("content-length", "transfer-encoding", "connection"):
                assert answer.headers.get(header) == expected.headers.get(header)
            assert answer.body == expected.body


def on_one_connection(site, target):
    """The answer, and the next one if the server keeps the connection."""
    with Wire(site.port) as wire:
        answers = []
        for _ in range(2):
            try:
                wire.send("GET", target, [("ClientAddress", site.new_client())])
                answers.append(wire.answer())
            except OSError:
                break
            if answers[-1].headers.get("connection", "").lower() == "close":
                break  # werkzeug would read the next request as the rest of this one's body
        return answers


def test_bytes_for_a_response_are_served_as_without_guardrails(site):
    """Where they are: by uWSGI."""
    bare, guarded, nested = (site.ask(f"/{pages}/bytes") for pages in ("bare", "slot", "nested"))

    assert guarded.status == nested.status == bare.status
    if bare.status == 200:
        assert guarded.body == nested.body == bare.body
    site.until(site.is_free, "nothing is held")


def test_an_app_may_copy_and_encode_what_is_in_its_environ(site):
    assert site.ask("/slot/environ").text == "3 True\n"
    assert site.ask("/nested/environ").text == "3 True\n"


def test_the_file_wrapper_answers_as_the_servers_own(site):
    bare, guarded = site.ask("/bare/is-wrapped"), site.ask("/slot/is-wrapped")

    assert bare.status == 200
    assert guarded.text == bare.text


def in_turns(site, path):
    """The answer of a page that goes on only when each part of it was seen."""
    token = secrets.token_hex(8)
    with Wire(site.port) as wire:
        wire.send(
            "GET",
            f"{path}?token={token}",
            [("ClientAddress", site.new_client()), ("Connection", "close")],
        )
        for turn in range(3):
            try:
                wire.until(f"part {turn}\n".encode())
            except OSError:
                break
            (site.folder / f"{token}-{turn}").touch()
        rest = b""
        while more := wire.receive():
            rest += more
    return b"all seen" in rest


def test_a_stream_comes_part_by_part(site, observe):
    bare, guarded = in_turns(site, "/bare/turns"), in_turns(site, "/slot/turns")

    # Whether a server sends parts as they come is its own affair.
    assert guarded == bare
    observe("stream", "part by part" if guarded else "as a whole")

"""What the app answers comes through as it would without guardrails: files and streams."""

import secrets

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


def test_a_list_keeps_its_length(site):
    """Some servers make a Content-Length of it, and lose that for anything but a list."""
    bare, guarded = site.ask("/bare/without-length"), site.ask("/slot/without-length")

    for header in ("content-length", "transfer-encoding", "connection"):
        assert guarded.headers.get(header) == bare.headers.get(header)
    assert guarded.body == bare.body


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

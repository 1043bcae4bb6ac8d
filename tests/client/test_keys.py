"""Whom a guard counts by: the keys that are made of headers and of callables' answers."""

from guardrails import SpeedLimit


def test_a_key_that_is_no_proper_text_still_counts(serve):
    assert serve(SpeedLimit("1/hour", by=lambda _environ: "\ud800")).statuses(2) == [200, 429]


def test_keys_of_any_length_are_told_apart(serve):
    site = serve(SpeedLimit("1/hour", by="header:X-Key"))
    long = "x" * 5000

    assert [site.get("/", headers={"X-Key": long + end}).status_code for end in "aab"] == [
        200,
        429,
        200,
    ]

"""A client that asks strictly one request after another is never two at once, under any server."""

from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.mark.parametrize(
    ("page", "count"),
    [
        ("large", 400),
        # Its next request nearly always comes while the last response is being closed.
        ("closed-slowly", 60),
    ],
)
def test_a_cap_of_one_for_each_client_never_refuses_it(site, page, count):
    client = site.new_client()
    statuses = [site.ask(f"/each/{page}", client=client).status for _ in range(count)]

    assert statuses == [200] * count
    site.until(site.is_free, "the slots are free")


def test_two_at_once_are_still_refused(site):
    """The wait is short, and the first one is longer."""
    if site.setup.at_once == 1:
        pytest.skip("this server serves one request at a time")
    client = site.new_client()
    before = len(site.journal("began"))
    with ThreadPoolExecutor(1) as another:
        first = another.submit(site.ask, "/each/slow?seconds=1", client=client)
        site.until(lambda: len(site.journal("began")) > before, "the request has begun")

        assert site.ask("/each/large", client=client).status == 503
        assert first.result().status == 200

"""CPU is charged to who used it, whatever else the worker was doing."""

from concurrent.futures import ThreadPoolExecutor

import pytest


def charged(site, client):
    """Milliseconds that a client was charged."""
    return sum(one["microseconds"] for one in site.journal("charged") if one["client"] == client) / 1000


@pytest.mark.parametrize("page", ["burn", "burn-stream"])
def test_each_client_is_charged_its_own(site, observe, page):
    light, heavy = site.new_client(), site.new_client()
    with ThreadPoolExecutor(2) as crowd:
        asked = [
            crowd.submit(site.ask, f"/charged/{page}?ms=500", client=heavy),
            crowd.submit(site.ask, f"/charged/{page}?ms=50", client=light),
        ]
        assert [one.result().status for one in asked] == [200, 200]
    site.until(lambda: charged(site, light) >= 50 and charged(site, heavy) >= 500, "both are charged")

    # Never less than was burnt; a tenth of it more or less is the interpreter's own.
    assert charged(site, light) < 150
    assert charged(site, heavy) < 1000
    observe(f"cpu of {page}", "each its own")

"""Each client is charged the CPU that it used, whatever else the worker was doing."""

from concurrent.futures import ThreadPoolExecutor

import pytest

MOST_TRIES = 12
"""In how many tries two requests meet in one of two workers."""


def milliseconds(site, event, client):
    """How much a client has "burnt", or was "charged"."""
    return sum(one["microseconds"] for one in site.journal(event) if one["client"] == client) / 1000


def overcharged(site, client):
    """How many milliseconds more it was charged than it burnt."""
    return milliseconds(site, "charged", client) - milliseconds(site, "burnt", client)


@pytest.mark.parametrize("page", ["burn", "burn-stream"])
def test_each_client_is_charged_its_own(site, observe, page):
    for _ in range(MOST_TRIES):
        lights, heavies = all_at_once(site, page)
        # Never less than was burnt. More is the interpreter's own, unless it is another one's.
        anothers = min(milliseconds(site, "burnt", heavy) for heavy in heavies) / 2
        assert all(0 <= overcharged(site, client) < anothers for client in lights + heavies)
        if site.setup.threads == 1 or workers_of(site, lights) & workers_of(site, heavies):
            break
    else:
        pytest.fail("light and heavy never met in one process")
    observe(f"cpu of {page}", "each its own")


def all_at_once(site, page):
    """Let two clients burn a little CPU, and two burn much."""
    lights = [site.new_client() for _ in range(2)]
    heavies = [site.new_client() for _ in range(2)]
    burn = dict.fromkeys(heavies, 200) | dict.fromkeys(lights, 20)
    with ThreadPoolExecutor(len(burn)) as crowd:
        asked = [
            crowd.submit(site.ask, f"/charged/{page}?ms={least}", client=client)
            for client, least in burn.items()
        ]
        assert {one.result().status for one in asked} == {200}
    site.until(
        lambda: all(milliseconds(site, "charged", client) >= least for client, least in burn.items()),
        "all are charged",
    )
    return lights, heavies


def workers_of(site, clients):
    return {one["pid"] for one in site.journal("charged") if one["client"] in clients}

"""Caps and rates hold exactly over all workers, counted at the app."""

from concurrent.futures import ThreadPoolExecutor

from figures import CAP, RATE

CLIENTS = 8
SLOWER_AND_SLOWER = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds that a page takes, until requests meet in it on any machine."""


def all_at_once(site, count, target, **options):
    """The statuses of so many requests, eight of them under way at any time."""
    with ThreadPoolExecutor(CLIENTS) as crowd:
        asked = [crowd.submit(site.ask, target, **options) for _ in range(count)]
        return [answer.result().status for answer in asked]


def most_at_once(site, path):
    """How many requests for the path were ever in the app together."""
    began = [(one["at"], 1) for one in site.journal("began") if one["path"] == path]
    ended = [(one["at"], -1) for one in site.journal("ended") if one["path"] == path]
    at_once = most = 0
    for _, step in sorted(began + ended):
        at_once += step
        most = max(most, at_once)
    return most


def test_a_rate_admits_exactly_what_it_says_over_all_workers(site, observe):
    client = site.new_client()
    path = f"/rate/{client}"
    statuses = all_at_once(site, 2 * RATE, path, client=client)

    reached = [page for page in site.journal("page") if page["path"] == path]
    assert sorted(set(statuses)) == [200, 429]
    assert statuses.count(200) == len(reached) == RATE
    observe("rate", f"{len(reached)} of {len(statuses)}")


def test_a_cap_is_never_exceeded_over_all_workers_and_used_to_the_full(site, observe):
    full = min(CAP, site.setup.at_once)
    for seconds in SLOWER_AND_SLOWER:  # one may be held up between its admission and its page
        statuses = all_at_once(site, 24, f"/cap/slow?seconds={seconds}")
        most = most_at_once(site, "/cap/slow")
        assert set(statuses) <= {200, 503}
        if most >= full:
            break
    assert most == full
    observe("cap", f"{most} at once")


def test_a_cap_of_one_refuses_whoever_comes_second(site):
    for seconds in SLOWER_AND_SLOWER:
        statuses = all_at_once(site, 16, f"/slot/slow?seconds={seconds}")
        if site.setup.at_once == 1 or 503 in statuses:
            break

    assert most_at_once(site, "/slot/slow") == 1
    assert set(statuses) == ({200} if site.setup.at_once == 1 else {200, 503})

"""A reload, a rolling restart and a new start keep the state."""

import os
import signal

from support import is_there


def test_what_was_counted_is_known_after_a_reload(site, observe):
    client = site.new_client()
    use_up(site, client)
    before = workers(site) | {site.facts()["pid"]}
    if site.setup.reload is None:
        site.stop()
        site.start()
    else:
        os.kill(site.process.pid, getattr(signal, f"SIG{site.setup.reload}"))
    site.until(lambda: not any(map(is_there, before)), "the old workers have ended")
    site.until(lambda: answers_from_another(site, before), "a new worker answers")

    statuses = []

    def six_have_answered():
        statuses.append(site.ask("/rate/plain", client=client).status)
        return sum(map(bool, statuses)) == 6  # an old worker may still hang up on some

    site.until(six_have_answered, "six answers")
    assert set(statuses) - {0} == {429}
    observe("reload", f"SIG{site.setup.reload}" if site.setup.reload else "a new start")


def use_up(site, client):
    """Send requests until one is refused; repeat those that get no answer."""
    site.until(lambda: site.ask("/rate/plain", client=client).status == 429, "it is refused")


def workers(site):
    with site.store() as store:
        return {worker.pid for worker in store.workers()}


def answers_from_another(site, before):
    try:
        return site.facts()["pid"] not in before
    except (OSError, ValueError):
        return False


def test_what_was_counted_is_known_after_a_new_start(site):
    client = site.new_client()
    use_up(site, client)
    site.stop()
    site.start()

    assert site.ask("/rate/plain", client=client).status == 429

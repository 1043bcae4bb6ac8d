"""A reload, a rolling restart and a new start keep the state."""

import os
import signal


def test_what_was_counted_is_known_after_a_reload(site, observe):
    client = site.new_client()
    before = site.facts()["pid"]
    while site.ask("/rate/plain", client=client).status == 200:
        pass
    if site.setup.reload is None:
        site.stop()
        site.start()
    else:
        os.kill(site.process.pid, getattr(signal, f"SIG{site.setup.reload}"))
    site.until(lambda: answers_from_another(site, before), "a new worker answers")

    statuses = []

    def six_have_answered():
        statuses.append(site.ask("/rate/plain", client=client).status)
        return sum(map(bool, statuses)) == 6  # an old worker may still hang up on some

    site.until(six_have_answered, "six answers")
    assert set(statuses) - {0} == {429}
    observe("reload", f"SIG{site.setup.reload}" if site.setup.reload else "a new start")


def answers_from_another(site, pid):
    try:
        return site.facts()["pid"] != pid
    except (OSError, ValueError):
        return False


def test_what_was_counted_is_known_after_a_new_start(site):
    client = site.new_client()
    while site.ask("/rate/plain", client=client).status == 200:
        pass
    site.stop()
    site.start()

    assert site.ask("/rate/plain", client=client).status == 429

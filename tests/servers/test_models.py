"""What each server is: its processes and threads, when it imports the app, where its hooks call."""

from contextlib import contextmanager

from figures import DATA, NOFILE
from wire import Wire


@contextmanager
def keeping_one_busy(site):
    """So that one worker does not answer everything."""
    wires = []
    for _ in range(site.setup.processes - 1):
        wire = Wire(site.port)
        wire.send("GET", "/open/slow?seconds=2")
        wires.append(wire)
    yield
    for wire in wires:
        wire.close()


def test_it_serves_and_guardrails_learns_what_it_can(site, observe):
    facts = site.facts()

    assert facts["server"] == site.setup.learnt
    observe("learnt", facts["server"])
    observe("command", site.setup.shown_command())


def test_where_nobody_starts_a_worker_again_the_limits_come_with_a_warning(site):
    """At the first request, for then the server is known for certain."""
    site.ask("/open/plain")
    said = f"rlimits: nobody starts {site.setup.learnt.partition(' with ')[0]} again"
    assert (said in site.whole_log()) == (not site.setup.respawns)


def test_the_app_is_imported_before_or_after_the_fork(site, observe):
    facts = site.facts()
    seen = "before" if facts["imported_in"] != facts["pid"] else "after"
    if site.setup.processes == 1:
        seen = "without a fork"

    assert seen == site.setup.imported
    observe("imported", seen)


def test_the_hook_has_set_up_every_worker(site, observe):
    """rlimits() ran in each, called from where the set-up says."""
    pids = set()

    def all_seen():
        facts = site.facts()
        assert (facts["nofile"], facts["data"]) == (str(NOFILE), str(DATA))
        pids.add(facts["pid"])
        return len(pids) == site.setup.processes

    with keeping_one_busy(site):
        site.until(all_seen, "every worker has answered")
    observe("hook", site.setup.hook)

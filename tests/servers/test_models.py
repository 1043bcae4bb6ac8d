"""What each server is: its processes and threads, when it imports the app, where its hooks call."""

import os


def test_it_serves_and_guardrails_learns_what_it_can(site, observe):
    facts = site.facts()

    assert facts["server"] == site.setup.learnt
    observe("learnt", facts["server"])
    observe("command", site.setup.shown_command())


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
        assert facts["nofile"] == "4000"
        pids.add(facts["pid"])
        return len(pids) >= min(site.setup.processes, 1)

    site.until(all_seen, "workers answer")
    assert str(os.getpid()) not in pids
    observe("hook", site.setup.hook)

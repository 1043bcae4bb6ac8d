"""What `make servers` says of a run: servers may change their ways, a broken promise fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from page import KEPT, OBSERVATIONS, PROMISES

pytestmark = pytest.mark.one_python

PAGE = Path(__file__).parent / "servers" / "page.py"


class Run:
    """A run under all servers, which has seen what the page says, and what a test changes."""

    def __init__(self, folder):
        self.folder = folder
        for slug, facts in json.loads(KEPT.read_text()).items():
            self.see(slug, facts)

    def see(self, slug, facts):
        file = self.folder / f"{slug}.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | facts))

    def check(self):
        """The exit status and what was printed."""
        environ = os.environ | {"SERVERS_OBSERVED": str(self.folder)}
        command = [sys.executable, str(PAGE), "check"]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_a_run_that_sees_what_the_page_says_passes_and_says_nothing(run):
    assert run.check() == (0, "")


def test_what_a_server_does_by_itself_is_printed_and_passes(run):
    kept = json.loads(KEPT.read_text())
    run.see("granian", {"endings": kept["granian"]["endings"] | {"the app raises in the body": 0}})
    run.see("uwsgi", {"Expect": "asked for the body first"})
    slow = kept["watchdog uWSGI spin"]["seen"] | {"by": "SIGKILL", "seconds": [9.0, 99.0, 99.9]}
    run.see("watchdog uWSGI spin", {"seen": slow})

    status, said = run.check()

    assert status == 0
    assert "granian: endings: the app raises in the body is 0, docs/servers.md has 200" in said
    assert "uwsgi: Expect is 'asked for the body first'" in said
    assert "watchdog uWSGI spin: by is 'SIGKILL'" in said
    assert "99" not in said


@pytest.mark.parametrize(
    ("slug", "facts", "said"),
    [
        ("cheroot", {"rate": "21 of 40"}, "cheroot: rate is '21 of 40'"),
        ("wsgiref", {"refused with 1 kB": "BrokenPipeError"}, "refused with 1 kB is 'BrokenPipeError'"),
        ("watchdog uWSGI gil", {"seen": {"stack": "not shown"}}, "stack is 'not shown'"),
        ("pywsgi", {"colour": "blue"}, "say in page.py whether colour is promised"),
    ],
)
def test_a_broken_promise_fails(run, slug, facts, said):
    run.see(slug, facts)

    status, output = run.check()

    assert status == 1
    assert output.startswith("WRONG: ")
    assert said in output


def test_a_set_up_whose_server_is_installed_must_be_seen(run):
    (run.folder / "wsgiref.json").unlink()

    assert run.check() == (1, "WRONG: wsgiref is installed, and was not seen\n")


def test_a_run_that_has_seen_nothing_fails(run):
    for file in run.folder.iterdir():
        file.unlink()

    assert run.check()[0] == 1


def test_of_each_field_it_is_said_whether_it_is_promised():
    fields = set()
    for facts in json.loads(KEPT.read_text()).values():
        fields |= set(facts.get("seen", facts))

    assert not PROMISES.keys() & OBSERVATIONS.keys()
    assert fields == PROMISES.keys() | OBSERVATIONS.keys()

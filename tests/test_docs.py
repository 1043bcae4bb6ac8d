"""The README and the pages: what they show runs, and what they name is there."""

import importlib
import inspect
import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import page as servers_page
import pytest

import guardrails
from guardrails.request.setup_checks import CODES
from guardrails.store import directory
from guardrails.store.layout import plan
from guardrails.store.lifecycle import DEFAULT_ROWS
from guardrails.watchdog.options import command_options

pytestmark = pytest.mark.one_python

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OUR_PAGES = [page for page in PAGES if page.name != "benchmarks.md"]
LONGEST_SECONDS = 90
OTHERS_FLAGS = {"--team", "--force", "--lazy-apps", "--master", "--respawn-failed-workers"}
"""What other programs take."""

# The store that the pages look into is there, as it would be beside a running server.
PREAMBLE = """\
from guardrails import SpeedLimit, testing
running = SpeedLimit("1/second")(testing.hello, store="shm:shop")
assert testing.Client(running).get("/").status_code == 200
del SpeedLimit, testing, running
"""

page_by_page = pytest.mark.parametrize("page", OUR_PAGES, ids=lambda page: page.name)


def python_blocks(page):
    return re.findall(
        r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.fixture
def store_name():
    name = f"test-docs-{secrets.token_hex(8)}"
    yield name
    for folder in directory.folders():
        for path in folder.glob(f"{name}*"):
            path.unlink()


def environment(store_name):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GUARDRAILS")}
    return {**kept, "GUARDRAILS_STORE": f"shm:{store_name}-unnamed?private&clients=100"}


@pytest.mark.skipif(sys.platform == "win32", reason="the pages use the shared store")
@pytest.mark.parametrize("page", [*filter(python_blocks, OUR_PAGES)], ids=lambda page: page.name)
def test_what_a_page_shows_runs(page, tmp_path, store_name):
    blocks = python_blocks(page)
    (tmp_path / "badagents.txt").write_text("# robots\nzgrab\n")
    (tmp_path / "mysite").mkdir()
    (tmp_path / "mysite" / "__init__.py").touch()
    (tmp_path / "mysite" / "settings.py").write_text('SECRET_KEY = "of a test"\n')
    program = "\n".join([PREAMBLE, *blocks]).replace("shm:shop", f"shm:{store_name}")
    (tmp_path / "shown.py").write_text(program)

    ran = subprocess.run(
        [sys.executable, "-X", "dev", "shown.py"],
        cwd=tmp_path,
        env=environment(store_name),
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_readme_shows_each_framework_and_the_tests():
    shown = "\n".join(python_blocks(ROOT / "README.md"))

    for part in (
        "app.wsgi_app = guardrails.throttle(",
        "get_wsgi_application()",
        "testing.assert_refused(",
    ):
        assert part in shown


@page_by_page
def test_what_a_page_names_of_guardrails_is_there(page):
    text = re.sub(r'environ\["guardrails\.\w+"\]', "", page.read_text(encoding="utf-8"))

    for name in re.findall(r"\bguardrails\.([A-Za-z_]\w*)", text):
        assert hasattr(guardrails, name) or importlib.import_module(f"guardrails.{name}")


@page_by_page
def test_every_option_that_a_page_gives_a_guard_or_a_throttle_is_taken(page):
    """Names in backticks with an equals sign are arguments of something here."""
    from guardrails import BlockAgents, CPUThrottle, MaxConcurrentReqs, SpeedLimit

    known = {
        "missing",
        "GUARDRAILS",
        "GUARDRAILS_STORE",
        "trusted_proxy",
        "bind",
        "x_for",
        "trusted_proxy_headers",
        "post_fork",
        "when_ready",
        "Restart",
        "GUARDRAILS_RLIMIT_CPU",
        "GUARDRAILS_RLIMIT_DEFAULTS",
    }
    for function in (guardrails.throttle, guardrails.rlimits, guardrails.size_limit):
        known |= set(inspect.signature(function).parameters)
    known |= {option.name for option in command_options()}
    for guard in (BlockAgents, CPUThrottle, MaxConcurrentReqs, SpeedLimit):
        known |= set(guard.__dataclass_fields__)

    options = re.findall(r"`([A-Za-z_]+) ?=[^`=]*`", page.read_text(encoding="utf-8"))

    assert set(options) - known == set()


@page_by_page
def test_every_flag_that_a_page_names_is_one_of_the_command(page):
    text = page.read_text(encoding="utf-8")
    lines = [text] if page.name == "watchdog.md" else re.findall(r"guardrails watch[^`\n]*", text)
    flags = {flag for line in lines for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)}

    ours = {option.flag for option in command_options()}
    ours |= {f"--no-{option.flag[2:]}" for option in command_options() if option.is_flag}
    assert flags - ours - OTHERS_FLAGS == set()


def test_every_event_and_every_option_of_the_watchdog_is_explained():
    page = (ROOT / "docs/watchdog.md").read_text(encoding="utf-8")
    sources = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("src/guardrails/watchdog/*.py"))
    )
    events = set(re.findall(r'(?:notify|_tell)\(\s*"([a-z-]+)"', sources))

    assert len(events) > 12
    assert {event for event in events if f"`{event}`" not in page} == set()
    assert {option.flag for option in command_options() if option.flag not in page} == set()


@page_by_page
def test_every_link_within_the_project_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", link)]

    for link in links:
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if heading:
            lines = target.read_text(encoding="utf-8").splitlines()
            assert heading in {anchor(line) for line in lines if line.startswith("#")}, link


def anchor(heading):
    words = re.sub(r"[^\w\- ]", "", heading.lstrip("#").strip().lower())
    return words.replace(" ", "-")


def test_the_readmes_sizes_are_those_of_the_file():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) MB \|$", text, re.MULTILINE)

    assert len(rows) >= 4
    for clients, megabytes in rows:
        size = plan(int(clients.replace(",", "")), DEFAULT_ROWS).size
        assert f"{size / 1e6:.1f}" == megabytes, clients


def test_the_readmes_rates_are_in_the_words_of_the_guard():
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    assert f"# {guardrails.SpeedLimit('120/minute')!r}\n" in text
    assert "at most 239 in the first minute" in text
    assert "at most 250000 in" in repr(guardrails.SpeedLimit("300000/second", burst=1))


def test_the_readmes_comparison_is_what_was_measured():
    """Rounded as the README shows it; written anew by `make bench`."""
    measured = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    def figure(pattern):
        return float(re.search(pattern, measured)[1])

    ours = figure(r"\| Flask \+ guardrails: adds \| ([\d.]+) µs")
    theirs = figure(r"\| Flask \+ Flask-Limiter: adds \| ([\d.]+) µs")
    assert f"| {ours:.0f} µs | {theirs:.0f} µs |" in readme
    for kind in ("sync", "gthread"):
        ours = figure(rf"\| {kind} \| Flask \+ guardrails, 4 guards \| \d+ \| (\d+)%")
        theirs = figure(rf"\| {kind} \| Flask \+ Flask-Limiter, [^|]+\| \d+ \| (\d+)%")
        assert f"gunicorn {kind}, 2 workers | {ours:.0f}% | {theirs:.0f}% |" in readme
    refusal = figure(r"\| a refusal of a banned client \| ([\d.]+) µs")
    admission = figure(r"\| app \+ guardrails: adds \| ([\d.]+) µs")
    assert f"costs {refusal:.0f} µs, about the {admission:.0f} µs" in " ".join(readme.split())


def test_every_check_has_its_section():
    """Cause, remedy, and the code as the heading that a search finds."""
    sections = (ROOT / "docs/errors.md").read_text(encoding="utf-8").split("\n## ")[1:]

    assert [section.partition("\n")[0] for section in sections] == list(CODES)
    for section in sections:
        assert "\n> " in section
        assert "**Cause.**" in section
        assert "**Remedy.**" in section


def test_the_page_of_the_servers_is_made_of_what_was_seen():
    """`make servers-page` writes both; `make servers` fails where a server does otherwise."""
    observed = json.loads((ROOT / "tests/servers/observed.json").read_text(encoding="utf-8"))

    assert (ROOT / "docs/servers.md").read_text(encoding="utf-8") == servers_page.page(observed)

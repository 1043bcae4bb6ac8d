"""A site for each set-up of the matrix, started for real; what was observed is kept for the docs."""

import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from setups import SETUPS
from sites import Site, remove_stores
from troubled import Troubled

ROOT = Path(__file__).parents[2]
OBSERVED = Path(os.environ.get("SERVERS_OBSERVED", ROOT / ".servers"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process of the tests has all of a set-up's: they share its server."""
    from xdist.scheduler import LoadScopeScheduling

    class BySetup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            parameters = nodeid.partition("[")[2]
            slugs = [setup.slug for setup in SETUPS if parameters.startswith(setup.slug)]
            return max(slugs, key=len, default=nodeid)

    return BySetup(config, log)


def keep_seen(slug, what, seen):
    """Keep what was seen, in one file for each thing that was seen of a set-up at the same time."""
    OBSERVED.mkdir(exist_ok=True)
    file = OBSERVED / f"{slug}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | {what: seen}, indent=1, sort_keys=True) + "\n")


@pytest.fixture(scope="session", params=SETUPS, ids=lambda setup: setup.slug)
def site(request):
    """A running site, shared by all tests of its set-up."""
    setup = request.param
    missing = setup.missing()
    if missing:
        pytest.skip(missing)
    folder = Path(tempfile.mkdtemp(prefix="guardrails-site-"))
    folder.chmod(0o777)
    (folder / "file").write_bytes(os.urandom(1 << 20).replace(b"\n", b"n") * 8)
    site = Site(setup, folder)
    try:
        site.start()
        yield site
    finally:
        site.stop()
        remove_stores(site)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def observe(site):
    """Keep what was seen under this set-up, for docs/servers.md."""
    return lambda what, seen: keep_seen(site.setup.slug, what, seen)


@pytest.fixture
def trouble():
    """Starts a server: `trouble(kind, workers=1, TROUBLE_LIMITS=...)`."""
    started = []

    def start(kind, *, workers=1, **environ):
        missing = kind.setup.missing()
        if missing:
            pytest.skip(missing)
        folder = Path(tempfile.mkdtemp(prefix="guardrails-trouble-"))
        folder.chmod(0o777)
        site = Troubled(kind, folder, workers, environ)
        started.append(site)
        site.start()
        return site

    yield start
    for site in started:
        with suppress(ProcessLookupError):
            site.stop()
        remove_stores(site)
        shutil.rmtree(site.folder, ignore_errors=True)


@pytest.fixture
def observe_trouble():
    """Keep what a watchdog did; a file for each page, since several are tried at once."""
    return lambda kind, page, facts: keep_seen(f"watchdog {kind.name} {page}", "seen", facts)

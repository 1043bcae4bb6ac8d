"""Which stores a watchdog looks at: the one that was named, the only one in use, or its server's."""

import os

import pytest

from guardrails import SpeedLimit, testing
from guardrails.store import directory
from guardrails.store.shared import SharedStore
from guardrails.watchdog.stores import Stores

pytestmark = pytest.mark.one_python


class Host:
    """A folder of stores of this test's own, and who serves there: this process, or nobody."""

    def __init__(self):
        self.now = 1000.0
        self.folder = directory.own_folder()
        self.opened = []
        self.watched_by = []

    def serves(self, name):
        store = SharedStore(name, clients=100)
        self.opened.append(store)
        app = SpeedLimit("9/s")(testing.hello, store=store)
        testing.Client(app).get("/").close()

    def served_once(self, name):
        """Its only worker is dead."""
        child = os.fork()
        if not child:
            self.serves(name)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    def watchdog(self, name=None, parent=None):
        stores = Stores(name, parent, lambda: self.now)
        self.watched_by.append(stores)
        return stores

    def passes(self, seconds):
        self.now += seconds

    def close(self):
        for stores in self.watched_by:
            for watched in stores._opened.values():
                watched.store.close()
            stores.close()
        for store in self.opened:
            store.close()


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "PREFERRED", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    host = Host()
    yield host
    host.close()


def names(stores):
    return [watched.name for watched in stores()]


def test_it_waits_for_a_store_that_somebody_serves_in(host, caplog):
    stores = host.watchdog()
    assert names(stores) == []
    assert "there is no store with workers" in caplog.text
    host.served_once("old")
    host.passes(10)
    assert names(stores) == []
    host.serves("shop")
    host.passes(10)
    assert names(stores) == ["shm:shop"]


def test_a_store_without_living_workers_makes_none_of_several(host, caplog):
    host.served_once("old")
    host.serves("shop")
    assert names(host.watchdog()) == ["shm:shop"]
    assert caplog.text == ""


def test_of_several_with_workers_none_is_watched_and_they_are_named(host, caplog):
    host.served_once("old")
    host.serves("shop")
    host.serves("blog")
    stores = host.watchdog()
    for _ in range(3):
        assert names(stores) == []
        host.passes(10)
    (told,) = caplog.messages
    assert told.endswith("none is watched: name one with --store: shm:blog, shm:shop")


def test_when_a_second_one_gets_workers_the_first_is_left(host, caplog):
    host.serves("shop")
    stores = host.watchdog()
    assert names(stores) == ["shm:shop"]
    host.serves("blog")
    host.passes(10)
    assert names(stores) == []
    assert "there are several stores with workers" in caplog.text


def test_a_store_that_is_named_needs_no_worker(host, caplog):
    host.served_once("shop")
    host.serves("blog")
    assert names(host.watchdog("shop")) == ["shm:shop"]
    assert caplog.text == ""
    assert names(host.watchdog("news")) == []
    assert "there is no store news" in caplog.text


def test_a_store_that_is_removed_is_watched_no_more(host):
    host.serves("shop")
    stores = host.watchdog("shop")
    assert names(stores) == ["shm:shop"]
    for file in host.folder.glob("shop.*"):
        file.unlink()
    assert names(stores) == []


def test_a_folder_that_others_may_enter_has_no_stores(host):
    host.serves("shop")
    host.folder.chmod(0o755)
    assert names(host.watchdog("shop")) == names(host.watchdog()) == []
    host.folder.chmod(0o700)
    assert names(host.watchdog("shop")) == names(host.watchdog()) == ["shm:shop"]


def test_a_servers_watchdog_has_all_stores_of_its_workers_and_no_other(host):
    host.serves("shop")
    host.serves("blog")
    host.served_once("old")
    assert sorted(names(host.watchdog(parent=os.getppid()))) == ["shm:blog", "shm:shop"]
    assert names(host.watchdog(parent=1_234_567)) == []


def test_the_only_store_has_one_watchdog_at_a_time(host, caplog):
    host.serves("shop")
    first, second = host.watchdog(), host.watchdog()
    assert names(first) == ["shm:shop"]
    assert names(second) == []
    assert f"shm:shop has a watchdog already, pid {os.getpid()}; this one waits" in caplog.text
    first.close()
    assert names(second) == ["shm:shop"]


def test_what_lasts_is_said_again_each_hour(host, caplog):
    stores = host.watchdog("news")
    for _ in range(9):
        names(stores)
        host.passes(900)
    assert [message[:30] for message in caplog.messages] == ["watchdog: there is no store ne"] * 3


def test_the_stores_of_other_sites_are_neither_opened_nor_spoken_of(host, caplog):
    host.serves("shop")
    host.serves("blog")
    host.opened[-1].switch("dry-run")
    caplog.clear()
    caplog.set_level("INFO")

    assert names(host.watchdog(parent=1_234_567)) == []
    assert names(host.watchdog("shop")) == ["shm:shop"]

    opened = {name for stores in host.watched_by for name in stores._opened}
    assert opened == {"shop"}
    assert "blog" not in caplog.text


def test_a_damaged_file_is_no_store_with_workers(host, caplog):
    host.serves("shop")
    (file,) = host.folder.glob("shop.*")
    file.with_name(file.name.replace("shop", "cut")).write_bytes(file.read_bytes()[:5000])
    file.with_name(file.name.replace("shop", "wrong")).write_bytes(b"x" * 5000)
    for damaged in ("cut", "wrong"):
        file.with_name(file.name.replace("shop", damaged)).chmod(0o600)
    assert names(host.watchdog()) == ["shm:shop"]
    assert caplog.text == ""

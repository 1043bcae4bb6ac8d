"""The shared store's file: where it lies, when it is trusted, how it is made, replaced and removed."""

import contextlib
import errno
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from short_forms import MINUTE, SECOND, meter, open_request, private_store, requirement, slot

from guardrails import MaxConcurrentReqs, SpeedLimit, testing, throttle
from guardrails.errors import ConfigurationError, StoreError
from guardrails.store import directory, layout
from guardrails.store.engine import file
from guardrails.store.records import WorkerFacts
from guardrails.store.shared import SharedStore
from guardrails.store.urls import open_store, store_from_url
from guardrails.testing import Clock
from support import Exchange


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Both places are this test's own; the better one's folder is returned."""
    shm, temporary = tmp_path / "shm", tmp_path / "tmp"
    shm.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(directory, "PREFERRED", str(shm))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.delenv("GUARDRAILS_STORE", raising=False)
    return shm / f"guardrails-{os.geteuid()}"


def small(name="site", **options):
    return SharedStore(name, **{"clients": 64, "rows": 32} | options)


def the_file(folder):
    (path,) = [path for path in folder.iterdir() if path.name != ".lock"]
    return path


def spent(store, name="spent"):
    """Whether a meter that admits once an hour has admitted already."""
    return not store.enter(
        open_request(requirement(meter(name, period=60 * MINUTE), guard=name))
    ).admitted


def test_nothing_is_made_before_the_first_request(folder):
    small()
    assert not folder.exists()


def test_the_folder_and_the_file_are_for_their_owner_alone(folder):
    small().requests()
    assert oct(folder.stat().st_mode & 0o777) == "0o700"
    assert oct(the_file(folder).stat().st_mode & 0o777) == "0o600"


def test_all_of_the_file_is_allocated_when_it_is_made(folder):
    small().requests()
    status = the_file(folder).stat()
    assert status.st_blocks * 512 >= status.st_size


def test_state_survives_a_restart(folder):
    assert not spent(small())
    assert spent(small())


def test_half_a_file_is_never_seen(folder):
    """The magic is written last and the name given after: a half-made file has neither."""
    folder.mkdir(mode=0o700)
    (folder / ".new-halfmade").write_bytes(b"half")
    small().requests()
    assert not (folder / ".new-halfmade").exists()


def make_other_layout(path):
    words = memoryview(content := bytearray(path.read_bytes())).cast("Q")
    words[layout.H_LAYOUT] = layout.LAYOUT + 1
    return content


def make_other_boot(path):
    words = memoryview(content := bytearray(path.read_bytes())).cast("Q")
    words[layout.H_BOOT] ^= 1
    return content


def make_other_clock(path):
    words = memoryview(content := bytearray(path.read_bytes())).cast("Q")
    words[layout.H_TIME_NAMESPACE] ^= 1
    return content


def make_unfinished(path):
    words = memoryview(content := bytearray(path.read_bytes())).cast("Q")
    words[layout.H_MAGIC] = 0
    return content


def make_damaged_directory(path):
    content = bytearray(path.read_bytes())
    content[256 + 8 : 256 + 16] = (2**40).to_bytes(8, "little")
    return content


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.read_bytes()[:5000], "bytes long and should be"),
        (lambda path: path.read_bytes()[:100], "cut short"),
        (lambda _path: b"", "cut short"),
        (lambda path: path.read_bytes() + bytes(64), "bytes long and should be"),
        (lambda path: b"#!/bin/sh\n" * (path.stat().st_size // 10), "not a store of guardrails"),
        (make_other_layout, f"has layout {layout.LAYOUT + 1}"),
        (make_other_boot, "another boot"),
        (make_other_clock, "another clock"),
        (make_unfinished, "never finished"),
        (make_damaged_directory, "directory is damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_replaced_and_never_written_to(folder, damage, said, caplog):
    small().requests()
    path = the_file(folder)
    content = bytes(damage(path))
    path.write_bytes(content)
    with path.open("rb") as kept:
        store = small()
        assert not spent(store)
        assert spent(store)
        assert kept.read() == content
    assert said in caplog.text
    assert spent(small())


def test_a_file_that_others_could_write_is_refused_in_a_sentence(folder):
    small().requests()
    the_file(folder).chmod(0o666)
    with pytest.raises(StoreError, match=r"is not a regular file of uid \d+ with mode 0600"):
        # The second place is refused too, so that nothing stands in for it silently.
        second_place_fails(small)


def second_place_fails(make):
    Path(tempfile.gettempdir(), f"guardrails-{os.geteuid()}").write_text("no folder")
    make().requests()


def test_a_link_is_never_followed(folder, tmp_path):
    small().requests()
    path = the_file(folder)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(StoreError, match="is a symbolic link"):
        second_place_fails(small)


def test_a_folder_that_another_user_made_is_not_used(folder, caplog):
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    store = small()
    store.requests()
    assert list(folder.iterdir()) == []
    assert "with mode 0700" in caplog.text
    assert store._file.path.parent.parent == Path(tempfile.gettempdir())


def test_without_room_a_sentence_says_how_much_and_what_to_do(folder):
    """In a process of its own whose files may not be large."""
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from guardrails.store.shared import SharedStore\n"
        "try: SharedStore('no-room', clients=10_000, private=True).requests()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout.startswith("StoreError store: no room for")
    assert "?clients=10000" in ran.stdout
    assert ran.returncode == 0


def test_another_size_carries_the_state_over_and_everybody_follows(folder):
    old = small()
    cap = requirement(slot("cap", limit=2), guard="cap")
    held = open_request(cap)
    assert old.enter(held).admitted
    assert not spent(old)
    old.declare(["other"])
    old.switch("dry-run", guard="other")

    larger = small(clients=5000)
    assert spent(larger)
    assert larger.slots_held() == {"cap": 1}
    assert larger.switch(guard="other") == "dry-run"

    assert old.enter(open_request(cap)).admitted
    assert not larger.enter(open_request(cap)).admitted
    old.leave(held)
    assert larger.slots_held() == {"cap": 1}
    assert the_file(folder).stat().st_size == larger._file.map.size()


def test_without_a_size_an_existing_file_keeps_its_size(folder):
    small(clients=5000).requests()
    size = the_file(folder).stat().st_size
    SharedStore("site").requests()
    assert the_file(folder).stat().st_size == size


def test_rows_never_get_fewer(folder):
    many = small(rows=64)
    for _ in range(40):
        many.enter(open_request())
    few = small(rows=16)
    assert len(few.requests()) == 40


def test_a_file_that_was_removed_is_missed_within_a_second(folder):
    clock = Clock()
    first, second = small(clock=clock), small(clock=clock)
    first.requests()
    second.requests()
    the_file(folder).unlink()
    clock.advance(1.1)
    for store in (first, second):
        store.enter(open_request())
    assert not spent(first)
    assert spent(second)


def test_when_every_row_is_taken_it_says_so(folder):
    store = small(rows=16)
    for _ in range(16):
        store.enter(open_request())
    with pytest.raises(StoreError, match="all 16 rows are taken by requests in flight"):
        store.enter(open_request())


def test_a_full_table_drops_the_meter_nearest_its_end_and_counts_it(folder):
    store = small(clients=16)
    lasting = requirement(meter("lasting", period=1000 * MINUTE), guard="lasting")
    passing = requirement(meter("passing", period=10 * SECOND), guard="passing")
    assert store.enter(open_request(lasting, key=b"wanted")).admitted
    for number in range(2000):
        entering = open_request(passing, key=str(number).encode())
        store.enter(entering)
        store.leave(entering)
    assert store.alarms()["evicted"] > 0
    assert not store.enter(open_request(lasting, key=b"wanted")).admitted


def test_an_instant_too_far_ahead_is_read_as_now_and_counted(folder):
    """As when a rate was tuned down, or a stray write hit the cell."""
    store = small()
    assert store.enter(open_request(requirement(meter("rate", period=100 * MINUTE)))).admitted
    assert store.enter(open_request(requirement(meter("rate", period=SECOND)))).admitted
    assert store.alarms()["garbage"] == 1


def test_a_private_file_goes_with_its_last_process(folder):
    first, second = small(private=True), small(private=True)
    first.requests()
    second.requests()
    first.close()
    assert the_file(folder).exists()
    second.close()
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_an_observer_does_not_keep_a_private_file_from_being_removed(folder):
    store = small(private=True)
    store.requests()
    observer = SharedStore("site", private=True, create=False)
    observer.requests()
    store.close()
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_an_observer_does_not_judge_how_long_a_slot_is_held(folder):
    """Its clock may be another: that of a test's store stands still, and a watchdog's goes on."""
    store = small(clock=Clock(1000))
    held = open_request(requirement(slot("cap", limit=1, max_hold=SECOND), guard="cap"))
    assert store.enter(held).admitted
    observer = SharedStore("site", create=False, clock=Clock(2000))
    assert observer.workers() == []
    assert observer.slots_held() == {"cap": 1}
    store.leave(held)
    assert store.alarms() == {}


def test_a_private_file_of_killed_processes_is_swept_by_the_next(folder):
    small("killed", private=True).requests()
    left = the_file(folder)
    other = small("next", private=True)
    other.requests()
    assert not left.exists()
    other.close()


def test_other_users_of_a_name_have_other_files(folder):
    assert f"guardrails-{os.geteuid()}" in str(next(iter(directory.folders())))


def test_reading_makes_no_store(folder):
    with pytest.raises(StoreError, match=r"no store 'nobody' of uid \d+, which has none: only"):
        open_store("shm:nobody").requests()
    assert not folder.exists()


def test_a_misspelt_name_is_told_with_the_stores_that_there_are(folder):
    store = small("shop")
    store.requests()
    with pytest.raises(StoreError, match=r"no store 'shpo' of uid \d+, which has shop: only"):
        open_store("shm:shpo").requests()
    store.close()


def test_the_only_store_is_found_without_its_name(folder):
    with pytest.raises(ConfigurationError, match="this user has none"):
        open_store()
    spent(small("site"))
    assert open_store().counters()["spent"].admitted == 1
    small("another").requests()
    with pytest.raises(ConfigurationError, match="this user has another, site: name one"):
        open_store()


def test_a_url_names_store_and_sizes(folder):
    store = store_from_url("shm:by-url?clients=1000&rows=16")
    store.requests()
    assert the_file(folder).name.startswith("by-url.")
    assert the_file(folder).stat().st_size == layout.plan(1000, 16).size


def test_cells_are_sixteen_bytes_and_four_to_a_client():
    section = layout.plan(50_000, 4096).sections["cells"]
    assert section.stride == 16
    assert section.records >= 4 * 50_000


def test_a_mutex_that_does_not_prove_itself_makes_way_for_flock(folder, monkeypatch, caplog):
    monkeypatch.setattr(
        "guardrails.store.engine.mutex.RobustMutex._proves_itself", lambda _mutex: False
    )
    store = small()
    assert not spent(store)
    assert store._file.words[layout.H_LOCK_KIND] == layout.LOCK_FLOCK
    with contextlib.closing(small()) as other:
        assert spent(other)


def test_a_file_that_cannot_be_mapped_closes_no_other_descriptor(folder, monkeypatch):
    """Memory may be at its limit, and the number of a closed descriptor is soon used again."""
    small().requests()
    close, strangers = os.close, []

    def no_memory(*_arguments):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    def closed_and_taken(number):
        close(number)
        strangers.append(os.open(os.devnull, os.O_RDONLY))

    monkeypatch.setattr(file.mmap, "mmap", no_memory)
    monkeypatch.setattr(os, "close", closed_and_taken)
    with pytest.raises((OSError, StoreError)):
        small().requests()
    gc.collect()
    monkeypatch.undo()

    assert strangers
    for number in strangers:
        os.close(number)  # raises if it was closed


def test_a_process_that_began_before_the_clock_is_on_the_scoreboard(folder):
    """The clock stands still while the machine is suspended; the age of a process does not."""
    store = small(clock=Clock(1.0))
    store.register(WorkerFacts("old"))
    (worker,) = store.workers()
    assert worker.age_seconds == pytest.approx(1.0)


def test_a_count_that_was_displaced_counts_nothing_twice(clock):
    """Two slots whose hashes meet: with 16 rows that happens often."""
    store = private_store(clock, clients=16, rows=16)
    app = throttle(testing.hello, MaxConcurrentReqs(5, by="client"), MaxConcurrentReqs(1), store=store)
    for number in range(1500):
        address = f"10.0.{number >> 8}.{number & 255}"
        first = Exchange(app, REMOTE_ADDR=address).call()
        second = Exchange(app, REMOTE_ADDR=address).call()
        assert (first.status[:3], second.status[:3]) == ("200", "503")
        first.close()
        second.close()
    assert store.slots_held() == {}
    store.close()


def test_a_route_that_is_not_used_again_keeps_no_old_file_mapped(clock):
    store = SharedStore(f"test-mapped-{os.getpid()}", clients=16, rows=16, private=True, clock=clock)
    app = throttle(testing.hello, SpeedLimit("99/second"), store=store)
    for number in range(10):
        Exchange(app, path=f"/{number}").finish()
        store._file.path.unlink()
        clock.advance(2)
        Exchange(app).finish()
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    assert maps.count("test-mapped") <= 2
    store.close()


def test_a_store_that_is_switched_off_is_left_for_the_one_that_takes_its_name(folder, clock):
    """An operator may remove the file while everything is off."""
    store = small(clock=clock)
    spent(store)
    store.switch("off")
    the_file(folder).unlink()
    for _ in range(2):
        clock.advance(2)
        store.enter(open_request(requirement(meter("spent"), guard="spent")))

    assert store.switch() == "on"


def test_a_change_of_the_switch_is_said_by_one_worker_alone(folder, caplog):
    """Each store is as one in a worker of its own; the operator's has no worker."""
    clock = Clock()
    workers = [small(clock=clock) for _ in range(3)]
    limit = requirement(meter("login"), guard="login")
    for worker in workers:
        worker.declare(["login", "search"])
        worker.enter(open_request(limit))
    operator = SharedStore("site", create=False)
    caplog.clear()

    operator.switch("dry-run", "search")
    for _ in range(3):
        clock.advance(2)
        for worker in workers:
            worker.enter(open_request(limit))

    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "store shm:site: the switch of 'search' was set to \"dry-run\""
    ]
    operator.close()


def test_a_change_of_the_switch_is_said_though_the_file_is_made_larger_meanwhile(folder, caplog):
    clock = Clock()
    store = small(clock=clock)
    store.declare(["login"])
    store.enter(open_request(requirement(meter("login"), guard="login")))
    store.switch("off", "login")
    larger = small(clients=5000, clock=clock)

    clock.advance(2)
    larger.enter(open_request(requirement(meter("login"), guard="login")))

    assert "the switch of 'login' was set to \"off\"" in caplog.text


def test_guards_that_the_table_has_no_room_for_are_an_error(folder, caplog):
    store = small()
    store.declare([f"guard {number}" for number in range(130)])
    store.requests()

    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith("store shm:site: its table of guards is full, so these cannot be switched, ")
    assert "'guard 127', 'guard 128', 'guard 129'" in line
    assert len(store.counters()) == 127
    with pytest.raises(
        ConfigurationError, match=r"; its table is full, which has room for 127 guards\Z"
    ):
        store.switch("off", "guard 129")
    assert store.switch("off", "guard 126") == "off"
    assert store.switch() == "on"


def test_a_new_file_knows_the_guards_that_were_declared_before(folder):
    clock = Clock()
    store = small(clock=clock)
    store.declare(["login"])
    store.requests()
    the_file(folder).unlink()
    clock.advance(2)
    for _ in range(2):
        store.enter(open_request())

    assert set(store.counters()) == {"login"}

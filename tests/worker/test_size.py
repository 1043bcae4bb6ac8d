"""The size guard: a worker that is too large finishes its requests and retires, and no other does."""

import logging
import os
import re
import resource
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

import guardrails
from guardrails import SpeedLimit, testing
from guardrails.worker import memory, process, retire, size_guard, usage

MB = 1 << 20


class Worker:
    """This process as a worker that tests let grow: what /proc would say, and the signals it got."""

    def __init__(self, monkeypatch, serve, clock):
        self.resident = self.shared = 0
        self.signals = []
        self.clock = clock
        monkeypatch.setattr(memory, "resident_bytes", lambda _statm: self.resident)
        monkeypatch.setattr(memory, "unshared_bytes", self.unshared)
        # Others look at the time, and at processes, by these modules too.
        monkeypatch.setattr(size_guard, "time", SimpleNamespace(monotonic=lambda: clock() / 1e6))
        own_os = SimpleNamespace(kill=lambda _pid, number: self.signals.append(number))
        monkeypatch.setattr(retire, "os", own_os)
        self.serve = serve
        self.dear_looks = 0

    def unshared(self):
        self.dear_looks += 1
        return self.resident - self.shared

    def under(self, server="gunicorn (sync)", *, respawns=True, processes=2, **options):
        options = {"unshared": "100M", "jitter": 0, "min_lifetime": 0, **options}
        guardrails.size_limit(**options).apply()
        self.browser = self.serve(SpeedLimit("1000/second"), app=self.app)
        found = guardrails.worker.server.Server(server, processes, 1, respawns, 15 if respawns else 0)
        process.current_process().hooks.start(found, self.browser.application_under_test.store)
        return self

    def app(self, environ, start_response):
        self.resident += int(environ.get("QUERY_STRING") or 0) * MB
        return testing.hello(environ, start_response)

    def grow(self, megabytes, path="/"):
        self.clock.advance(2)
        assert self.browser.get(f"{path}?{megabytes}").status_code == 200


@pytest.fixture
def worker(monkeypatch, serve, clock, worker_process):
    return Worker(monkeypatch, serve, clock)


def test_who_is_too_large_retires_and_says_who_grew_it(worker, caplog):
    worker.under()
    worker.grow(30, "/report")
    worker.grow(60, "/export")
    assert worker.signals == []
    worker.grow(20, "/last")

    assert worker.signals == [15]
    (said,) = [record.getMessage() for record in caplog.records if "size:" in record.getMessage()]
    assert re.fullmatch(
        rf"size: worker {os.getpid()} takes 110\.0 MB, 110\.0 MB of them unshared, after 3 requests "
        r"and \d+ s; it grew most, by 60\.0 MB, when 'GET /export' ended: it finishes its requests and "
        r"retires",
        said,
    )
    worker.grow(50)
    assert worker.signals == [15]


def test_who_was_too_large_from_the_start_names_no_request(worker, caplog):
    worker.resident = 200 * MB
    worker.under()
    worker.grow(0)
    assert worker.signals == [15]
    assert "; it has not grown since its first request: it finishes its requests" in caplog.text


def test_what_other_processes_have_too_does_not_count(worker):
    worker.under()
    worker.shared = 150 * MB
    worker.grow(200)
    assert worker.signals == []
    worker.grow(60)
    assert worker.signals == [15]


def test_a_limit_of_all_that_is_in_memory_counts_the_shared_too(worker):
    worker.under(unshared=None, resident="100M")
    worker.shared = 90 * MB
    worker.grow(101)
    assert worker.signals == [15]


def test_too_many_open_files_retire_a_worker_before_it_drops_connections(worker, caplog, monkeypatch):
    monkeypatch.setattr(usage, "open_files", lambda: 10 + worker.resident // MB)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    worker.under(unshared=None, files="50%")
    worker.grow(soft // 2 - 11)
    assert worker.signals == []
    worker.grow(20)
    assert worker.signals == [15]
    assert re.search(rf"has {soft // 2 + 19} open files of {soft}, after 2 requests and", caplog.text)


def test_a_number_of_files_and_of_threads_is_a_limit_too(worker, caplog):
    worker.under(unshared=None, files=100_000, threads=64)
    worker.grow(5000)
    assert worker.signals == []
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(65)]
    for thread in threads:
        thread.start()
    worker.grow(0)
    done.set()
    for thread in threads:
        thread.join()
    assert worker.signals == [15]
    assert re.search(r"size: worker \d+ has \d+ threads, after 2 requests and", caplog.text)


def test_files_and_threads_alone_set_no_limit_of_memory(worker):
    assert guardrails.size_limit(files="90%").share is None
    assert guardrails.size_limit(threads=100).share is None
    assert guardrails.size_limit("80%", files="90%").share == 0.8


def test_the_dear_look_is_taken_only_beyond_the_limit_and_once_a_second(worker):
    worker.under()
    worker.shared = 500 * MB
    worker.grow(50)
    assert worker.dear_looks == 0
    for _ in range(10):
        worker.browser.get("/?100")
    assert worker.dear_looks == 1


def test_it_looks_after_so_many_requests(worker):
    worker.under(every=3)
    worker.grow(200)
    worker.grow(0)
    assert worker.signals == []
    worker.grow(0)
    assert worker.signals == [15]


def test_no_young_worker_retires(worker):
    worker.under(min_lifetime="1h")
    worker.grow(200)
    assert worker.signals == []
    worker.clock.advance(3600)
    worker.grow(0)
    assert worker.signals == [15]


def test_nobody_retires_whom_nobody_would_start_again(worker, caplog):
    worker.under("waitress", respawns=False)
    worker.grow(200)
    worker.grow(1)
    assert worker.signals == []
    said = [record.getMessage() for record in caplog.records if "size:" in record.getMessage()]
    assert len(said) == 1
    assert said[0].endswith("it goes on, since nobody would start waitress again")


def test_it_may_be_put_in_force_after_the_first_request(worker, serve):
    serve(SpeedLimit("9/s")).get("/")
    gunicorn = guardrails.worker.server.Server("gunicorn", 2, 1, True, 15)
    process.current_process().hooks._started_with = (gunicorn, serve().get)
    worker.under()
    worker.grow(200)
    assert worker.signals == [15]


def test_a_forked_process_is_no_worker(worker, monkeypatch):
    worker.under()
    monkeypatch.setattr(process, "_process", process.WorkerProcess(process.current_process()))
    worker.grow(200)
    assert worker.signals == []


def test_one_worker_at_a_time(worker, monkeypatch):
    worker.under()
    store = worker.browser.application_under_test.store
    turns = iter([False, True])
    monkeypatch.setattr(store, "begin_retiring", lambda: next(turns))
    worker.grow(200)
    assert worker.signals == []
    worker.grow(0)
    assert worker.signals == [15]


def test_limits_differ_from_worker_to_worker_within_the_jitter(worker, monkeypatch):
    worker.under(jitter="20%")
    (guard,) = process.current_process().size_guards.values()
    drawn = set()
    for _ in range(1, 30):
        forked = process.WorkerProcess(process.current_process())
        monkeypatch.setattr(process, "_process", forked)
        guard.start(guardrails.worker.server.Server("gunicorn", 2, 1, True, 15), None)
        drawn.add(guard._unshared)
    assert len(drawn) > 20
    assert min(drawn) >= 80 * MB
    assert max(drawn) <= 100 * MB


def test_a_part_of_the_cgroup_is_shared_out_over_the_workers(worker, monkeypatch):
    monkeypatch.setattr(memory, "cgroup_limit", lambda: 1000 * MB)
    worker.under(unshared="80%", processes=4)
    worker.grow(199)
    assert worker.signals == []
    worker.grow(2)
    assert worker.signals == [15]


def test_without_a_limit_of_the_cgroup_a_part_of_it_is_said_to_be_no_size(worker, monkeypatch, caplog):
    monkeypatch.setattr(memory, "cgroup_limit", lambda: None)
    worker.under(unshared=None)
    worker.grow(4000)
    assert worker.signals == []
    assert "size: unshared memory has no limit: 80% of the workers' memory is unknown" in caplog.text
    assert "since nothing limits the memory of this cgroup: name a size" in caplog.text


def test_a_look_that_fails_costs_nobody_a_response(worker, monkeypatch, caplog):
    worker.under()
    monkeypatch.setattr(memory, "resident_bytes", lambda _statm: 1 // 0)
    worker.grow(1)
    worker.grow(1)
    assert caplog.text.count("a hook of the worker raised an exception, and was skipped") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"unshared": "lots"}, "unshared: 'lots' is not a size"),
        ({"unshared": 300}, "unshared: 300 is less than any worker needs"),
        ({"unshared": "120%"}, "unshared: '120%' is not a percentage from 1 to 100"),
        ({"jitter": 0.1}, "jitter: 0.1 is not a percentage from 1 to 100: write such as"),
        ({"resident": "1K"}, "resident: '1K' is less than any worker needs"),
        ({"files": "many"}, "files: 'many' is neither a number nor a percentage: write such as"),
        ({"files": "0%"}, "files: '0%' is not a percentage from 1 to 100"),
        ({"files": 3}, "files: 3 is not a whole number from 16"),
        ({"threads": "90%"}, "threads: '90%' is not a whole number from 2"),
        ({"every": 0}, "every: 0 is not a whole number from 1"),
        ({"jitter": "100%"}, "jitter: '100%' could lower the limit to nothing"),
        ({"evry": 5}, "size_limit: 'evry' is not an option: write every; the options are every, "),
        ({"min_lifetime": "soon"}, "min_lifetime: 'soon' is not a duration"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(options, said):
    with pytest.raises(guardrails.ConfigurationError) as error:
        guardrails.size_limit(**options)
    assert str(error.value).startswith(said)


def group(folder, path, **files):
    place = folder / path
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name.replace("_", ".", 1)).write_text(text)


def test_the_least_of_a_cgroup_and_its_parents_counts(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cgroup").write_text("0::/site.slice/app.service\n")
    group(tmp_path / "cg", "site.slice/app.service", memory_max="max\n")
    group(tmp_path / "cg", "site.slice", memory_max=f"{512 * MB}\n")
    group(tmp_path / "cg", "", memory_max=f"{900 * MB}\n")
    assert memory.cgroup_limit(tmp_path / "proc", tmp_path / "cg") == 512 * MB
    group(tmp_path / "cg", "site.slice/app.service", memory_max=f"{100 * MB}\n")
    assert memory.cgroup_limit(tmp_path / "proc", tmp_path / "cg") == 100 * MB


@pytest.mark.parametrize(
    ("written", "understood"), [(str(64 * MB), 64 * MB), (str(2**63 - 4096), None)]
)
def test_a_cgroup_of_the_first_version_is_understood(tmp_path, written, understood):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cgroup").write_text("5:cpu:/\n4:memory,hugetlb:/docker/abc\n")
    (tmp_path / "cg/memory/docker/abc").mkdir(parents=True)
    (tmp_path / "cg/memory/docker/abc/memory.limit_in_bytes").write_text(written)
    assert memory.cgroup_limit(tmp_path / "proc", tmp_path / "cg") == understood


def test_a_parent_of_the_first_version_counts_too_and_junk_does_not(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cgroup").write_text("junk\n\n4:memory:/docker/abc\n")
    (tmp_path / "cg/memory/docker/abc").mkdir(parents=True)
    (tmp_path / "cg/memory/docker/abc/memory.stat").write_text(
        f"cache 1\nhierarchical_memory_limit {32 * MB}\n"
    )
    assert memory.cgroup_limit(tmp_path / "proc", tmp_path / "cg") == 32 * MB


def test_the_size_is_right_also_when_somebody_takes_its_descriptor(tmp_path):
    statm = memory.Statm()
    before = memory.resident_bytes(statm)
    (tmp_path / "other").write_text("1 1 1\n")
    other = os.open(tmp_path / "other", os.O_RDONLY)
    os.dup2(other, statm.descriptor)
    assert memory.resident_bytes(statm) > before / 2
    os.close(statm.descriptor)
    assert memory.resident_bytes(statm) > before / 2
    os.close(other)


@pytest.mark.parametrize(
    ("groups", "file", "text"),
    [
        ("0::/app.service\n", "app.service/memory.events", "oom 5\noom_kill 3\noom_group_kill 0\n"),
        (
            "5:cpu:/\n4:memory:/docker/abc\n",
            "memory/docker/abc/memory.oom_control",
            "oom_kill_disable 0\noom_kill 3\n",
        ),
    ],
)
def test_the_kills_of_a_cgroup_for_lack_of_memory_are_counted(tmp_path, groups, file, text):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cgroup").write_text(groups)
    assert memory.oom_file(tmp_path / "proc", tmp_path / "cg") is None
    (tmp_path / "cg" / file).parent.mkdir(parents=True)
    (tmp_path / "cg" / file).write_text(text)
    found = memory.oom_file(tmp_path / "proc", tmp_path / "cg")
    assert memory.oom_kills(found) == 3
    found.unlink()
    assert memory.oom_kills(found) is None


def test_no_cgroup_is_no_limit(tmp_path):
    assert memory.cgroup_limit(tmp_path, tmp_path) is None


SHARED = """
import os, sys
from guardrails.worker import memory
ballast = bytearray(os.urandom(64 << 20))
child = os.fork()
if not child:
    before = memory.unshared_bytes()
    own = bytearray(os.urandom(32 << 20))
    print(memory.resident_bytes(memory.Statm()) >> 20, before >> 20, memory.unshared_bytes() >> 20)
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
"""


def test_what_a_fork_left_shared_is_not_unshared():
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SHARED],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    resident, before, after = map(int, ran.stdout.split())
    assert resident >= 96
    assert before < 40
    assert 31 <= after - before <= 40


def test_without_proc_psutil_is_asked_or_missed_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(guardrails.ConfigurationError, match=r"wsgi-guardrails\[psutil\]"):
        memory.resident_bytes(memory.Statm(tmp_path))

    class Psutil:
        class Process:
            def memory_info(self):
                return type("", (), {"rss": 7 * MB})

            def memory_full_info(self):
                return type("", (), {"uss": 5 * MB})

    monkeypatch.setitem(sys.modules, "psutil", Psutil)
    assert memory.resident_bytes(memory.Statm(tmp_path)) == 7 * MB
    assert memory.unshared_bytes(tmp_path) == 5 * MB


def test_the_log_of_a_hostile_path_is_one_line(worker, caplog):
    caplog.set_level(logging.WARNING)
    worker.under()
    worker.clock.advance(2)
    worker.browser.get("/x%0Aforged", query_string="200")
    assert worker.signals == [15]
    assert "\\nforged" in caplog.text
    assert "\nforged" not in caplog.text

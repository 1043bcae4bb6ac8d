"""What the watchdog does about overdue requests: which steps, when, and where it takes none.

Time and processes are the test's own here; real ones are in tests/servers/test_watchdog.py.
"""

import pytest
from watched_host import ABRT, HUP, KILL, TERM, Board, Host

import guardrails
from guardrails.watchdog import stack_dump


def test_a_request_within_its_time_is_left_alone():
    host = Host().worker(7).request(1, 7)
    host.passes(55)
    assert host.events == []
    assert host.sent == []


def test_a_request_beyond_it_is_told_of_once_with_all_that_is_known():
    host = Host(dry_run=True).worker(7).request(1, 7, path="/report")
    host.passes(90)
    (told,) = host.told("overdue")
    assert told.startswith(
        "GET /report from 192.0.2.1, 60 s old, in worker 7, thread 0x7f01: more than 60 s"
    )
    (facts,) = [facts for event, _, facts in host.events if event == "overdue"]
    assert facts["pid"] == 7
    assert (facts["client"], facts["method"], facts["path"]) == ("192.0.2.1", "GET", "/report")
    assert (facts["age"], facts["thread"], facts["store"]) == ("60.0", "0x7f01", "shm:test")


def test_the_steps_follow_one_another():
    host = Host().worker(7).request(1, 7, age=60)
    host.passes(20)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]
    at = [when for when, _, _ in host.sent]
    assert 2 <= at[1] - at[0] < 2.5
    assert 2 <= at[2] - at[1] < 2.5
    assert host.told("killed")[0].endswith("in worker 7: its worker has ended after SIGKILL")


def test_a_server_with_a_way_of_its_own_to_retire_is_asked_that_way_first():
    host = Host().worker(7, server="uWSGI", retire_signal=HUP).request(1, 7, age=60)
    host.passes(20)
    assert host.signals() == [(7, HUP), (7, TERM), (7, ABRT), (7, KILL)]


@pytest.mark.parametrize("number", [0, 45], ids=["none", "not one to retire"])
def test_without_a_way_to_retire_those_beside_it_are_waited_for_first(number):
    host = Host().worker(7, retire_signal=number).request(1, 7, age=60).request(2, 7)
    host.passes(25)
    assert host.sent == []
    assert host.told("step")[0].endswith("waiting for 1 request beside it")
    host.passes(25)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]


@pytest.mark.parametrize("number", [0, 45], ids=["none", "not one to retire"])
def test_without_a_way_to_retire_and_alone_there_is_nothing_to_wait_for(number):
    host = Host().worker(7, retire_signal=number).request(1, 7, age=60)
    host.passes(12)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]
    assert host.sent[0][0] < 1006
    assert not any("waiting" in told for told in host.told("step"))


def test_the_steps_end_when_the_worker_does():
    host = Host().worker(7).request(1, 7, age=60)
    host.deadly = {ABRT}
    host.passes(30)
    assert host.signals() == [(7, TERM), (7, ABRT)]
    assert host.told("killed")[0].endswith("its worker has ended after SIGABRT")


def test_the_steps_end_when_the_request_does():
    host = Host().worker(7).request(1, 7, age=60)
    host.passes(6)
    host.ends(1)
    host.passes(60)
    assert host.signals() == [(7, TERM)]
    assert host.told("ended")[0].endswith("it has ended after retiring (SIGTERM)")


def test_a_worker_that_ends_a_moment_after_its_request_is_told_of_as_killed():
    """An app may unwind at SIGABRT, and its server end the worker right after."""
    host = Host().worker(7).request(1, 7, age=60)
    host.passes(8)
    assert host.signals() == [(7, TERM), (7, ABRT)]
    host.ends(1)
    host.passes(1.5)
    assert (host.told("killed"), host.told("ended")) == ([], [])
    host.workers.clear()
    host.passes(0.2)
    assert host.told("killed")[0].endswith("its worker has ended after SIGABRT")
    assert host.told("ended") == []


def test_what_is_not_told_yet_is_told_when_the_watchdog_is_stopped():
    host = Host().worker(7).request(1, 7, age=60)
    host.passes(6)
    host.ends(1)
    host.look()
    assert host.told("ended") == []
    host.watchdog.close()
    assert host.told("ended")[0].endswith("it has ended after retiring (SIGTERM)")
    host.watchdog.close()
    assert len(host.told("ended")) == 1


def test_one_that_ends_just_before_the_first_signal_has_ended_by_itself():
    host = Host().worker(7).request(1, 7, age=60)

    def send(owner, number):
        host.workers.clear()
        return False

    host.send = send
    host.passes(20)
    assert len(host.told("gone")) == 1
    assert (host.told("step"), host.told("killed")) == ([], [])


def test_a_process_that_took_over_the_pid_is_never_met():
    host = Host().worker(7).request(1, 7, age=60)
    host.passes(5.1)
    assert host.signals() == [(7, TERM)]
    host.workers[7] = host.workers[7]._replace(process_start=999)
    host.passes(60)
    assert host.signals() == [(7, TERM)]


def test_another_request_in_the_same_row_and_process_is_never_met():
    host = Host().worker(7).request(1, 7, age=60)
    host.passes(5.1)
    host.ends(1)
    host.request(2, 7)
    host.passes(30)
    assert host.signals() == [(7, TERM)]


def test_before_the_last_worker_that_accepts_retires_another_one_is_started():
    host = Host().alone().worker(7).worker(8, threads=1).worker(9, state="retiring")
    host.request(1, 7, age=61).request(2, 8, age=60).request(3, 7)
    host.starts_in = 2.0
    host.passes(9.5)
    assert host.added == [(1005, 7)]
    ((at, pid, number),) = host.sent
    assert (pid, number) == (7, TERM)
    assert 1007 <= at < 1007.5
    assert host.handed_back == [at]
    assert "another worker is started first, since no other one accepts" in host.told("step")[0]
    assert "and 1 request beside it have 30 s to end" in host.told("step")[1]


def test_a_worker_that_loads_its_app_for_ever_is_not_waited_for_longer_than_that():
    host = Host().alone().worker(7).request(1, 7, age=60)
    host.starts_in = 1e6
    host.passes(34)
    assert host.sent == []
    host.passes(2)
    assert host.signals() == [(7, TERM)]
    assert len(host.handed_back) == 1


def test_while_another_worker_accepts_none_is_added():
    host = Host().alone().worker(7).worker(8).request(1, 7, age=60)
    host.passes(20)
    assert host.added == []
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]


def test_a_worker_that_accepts_nothing_itself_is_ended_at_once():
    host = Host().alone().worker(7, threads=2).request(1, 7, age=60).request(2, 7, age=60)
    host.passes(5)
    assert host.added == []
    assert host.signals() == [(7, TERM)]


@pytest.mark.parametrize("starts_in", [None, 0.0], ids=["it does not come", "it cannot be asked for"])
def test_where_no_other_can_be_started_the_last_one_accepts_until_those_beside_it_have_ended(starts_in):
    host = Host().alone().worker(7).request(1, 7, age=60).request(2, 7)
    host.can_add, host.starts_in = starts_in is None, starts_in
    host.passes(37)
    assert [number for _, number in host.signals() if number == TERM] == []
    host.ends(2)
    host.passes(10)
    assert host.signals() == [(7, ABRT), (7, KILL)]
    assert len(host.handed_back) == len(host.added)


def test_a_request_that_ends_while_another_worker_is_started_leaves_no_worker_too_many():
    host = Host().alone().worker(7).request(1, 7, age=60)
    host.starts_in = 9.0
    host.passes(7)
    host.ends(1)
    host.passes(9)
    assert (len(host.added), len(host.handed_back), host.sent) == (1, 1, [])


def test_a_watchdog_that_ends_leaves_no_worker_too_many():
    host = Host().alone().worker(7).request(1, 7, age=60)
    host.starts_in = 9.0
    host.passes(7)
    host.watchdog.close()
    assert len(host.handed_back) == 1


def test_those_beside_it_are_counted_and_waited_for():
    host = Host().worker(7).request(1, 7, age=60).request(2, 7).request(3, 7)
    host.passes(5.1)
    assert "; 2 requests more in that worker" in host.told("overdue")[0]
    assert host.told("step")[0].endswith(
        "retiring (SIGTERM), and 2 requests beside it have 30 s to end"
    )
    host.passes(15)
    assert host.signals() == [(7, TERM)]
    host.ends(2)
    host.passes(5)
    assert host.signals() == [(7, TERM)]
    host.ends(3)
    host.passes(1)
    assert host.signals() == [(7, TERM), (7, ABRT)]


def test_those_beside_it_are_lost_when_the_grace_is_over_and_it_is_said():
    host = Host().worker(7).request(1, 7, age=60).request(2, 7)
    host.passes(29)
    assert host.signals() == [(7, TERM)]
    host.passes(10)
    assert host.signals()[:2] == [(7, TERM), (7, ABRT)]
    assert "SIGABRT, and 1 request beside it may be lost; " in host.told("step")[1]


def test_one_look_without_anybody_beside_it_is_not_enough_to_hurry():
    """Another may have queued for the thread that has just become free."""
    host = Host().worker(7).request(1, 7, age=60).request(2, 7)
    host.passes(10)
    host.ends(2)
    host.now += host.watchdog.pause()
    host.look()
    host.request(3, 7)
    host.passes(10)
    assert host.signals() == [(7, TERM)]


def test_those_beside_it_in_another_store_are_waited_for_as_well():
    host = Host().worker(7).request(1, 7, age=60).request(2, 7, store="shm:other")
    host.passes(25)
    assert host.signals() == [(7, TERM)]
    assert host.told("step")[0].endswith("and 1 request beside it have 30 s to end")


def test_while_their_store_fails_nobody_hurries_past_those_beside_it():
    host = Host().worker(7).request(1, 7, age=60).request(2, 7, store="shm:other")
    host.look()
    host.boards["shm:other"].fails = "gone"
    host.passes(5)
    host.boards["shm:other"].fails = None
    host.passes(20)
    assert host.signals() == [(7, TERM)]
    host.passes(20)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]


def test_a_request_that_is_seen_in_two_stores_is_not_beside_itself():
    host = Host().worker(7).request(1, 7, age=60)
    host.request(2, 7, age=50, store="shm:other", thread=0x7F01)
    host.passes(15)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]
    assert host.told("step")[0].endswith("retiring (SIGTERM)")


def test_several_that_are_too_old_in_one_worker_do_not_wait_for_each_other():
    host = Host(ban=300.0).worker(7).request(1, 7, age=60).request(2, 7, age=61, client="192.0.2.2")
    host.passes(12)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]
    assert {client for client, *_ in host.penalized} == {"192.0.2.1", "192.0.2.2"}
    assert len(host.told("killed")) == 2


def test_one_worker_at_a_time_and_a_pause_between():
    host = Host().worker(7).worker(8).request(1, 7, age=61).request(2, 8, age=60)
    host.passes(9.9)
    assert {pid for pid, _ in host.signals()} == {7}
    host.passes(30)
    ended = host.sent[2][0]
    assert host.signals()[:3] == [(7, TERM), (7, ABRT), (7, KILL)]
    assert host.signals()[3:] == [(8, TERM), (8, ABRT), (8, KILL)]
    assert host.sent[3][0] - ended >= 10


def test_the_oldest_is_the_first():
    host = Host().worker(7).worker(8).request(1, 7, age=60).request(2, 8, age=90)
    host.look()
    assert host.signals() == [(8, TERM)]


def test_never_are_fewer_workers_left_than_wanted():
    host = Host(least_workers=2).worker(7).worker(8).request(1, 7, age=60)
    host.passes(100)
    assert host.sent == []
    assert host.told("left-alone")[0].endswith(
        "its worker is not ended, since fewer than 2 would be left"
    )
    host.worker(9)
    host.passes(10)
    assert host.signals()[0] == (7, TERM)


def test_who_retires_is_none_of_those_that_are_left():
    host = Host(least_workers=1).worker(7).worker(8, state="retiring").request(1, 7, age=60)
    host.passes(100)
    assert host.sent == []


@pytest.mark.parametrize(
    ("changes", "parent", "said"),
    [
        (
            {"respawns": False, "server": "waitress"},
            1,
            "since waitress has no supervisor that would restart it",
        ),
        ({"parent": 0}, 1, "since the process that would restart it is unknown"),
        ({"parent": 5}, 0, "since the process that would restart it is unknown"),
    ],
)
def test_who_would_not_be_started_again_is_only_spoken_of(changes, parent, said):
    host = Host().worker(7, **changes).request(1, 7, age=60)
    host.parents[7] = parent
    host.passes(200)
    assert host.sent == []
    assert len(host.told("left-alone")) == 1
    assert said in host.told("left-alone")[0]


def test_a_worker_whose_server_was_killed_is_ended_since_it_only_keeps_the_port():
    host = Host(least_workers=3).worker(7, parent=5).request(1, 7, age=60)
    host.parents[7] = 1
    host.passes(20)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]
    assert "; its server has ended, so nothing takes its place" in host.told("step")[0]


def test_a_worker_of_a_server_that_is_the_first_process_of_its_container_is_no_orphan():
    host = Host(least_workers=3).worker(7, parent=1).request(1, 7, age=60)
    host.parents[7] = 1
    host.passes(20)
    assert "fewer than 3 would be left" in host.told("left-alone")[0]


@pytest.mark.parametrize("parent", [1, 5])
def test_a_server_of_one_process_is_ended_where_something_outside_starts_it_again(parent):
    """Its parent may be a shell that has ended meanwhile."""
    host = Host(respawned=True).worker(7, respawns=False, retire_signal=0, server="waitress", parent=5)
    host.parents[7] = parent
    host.request(1, 7, age=60)
    host.passes(20)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]
    assert not any("nothing takes its place" in told for told in host.told("step"))


def test_while_no_worker_serves_there_is_no_pause_between_two():
    host = Host().alone()
    for pid in (7, 8, 9):
        host.worker(pid, threads=1).request(pid, pid, age=60)
    host.passes(20)
    at = {pid: when for when, pid, number in host.sent if number == TERM}
    assert sorted(host.signals()) == sorted(
        (pid, number) for pid in (7, 8, 9) for number in (TERM, ABRT, KILL)
    )
    assert at[9] - at[7] < 10


def test_workers_whose_other_threads_do_not_run_either_serve_nobody():
    """C code in one thread may hold the interpreter's lock."""
    host = Host().alone()
    for pid in (7, 8):
        host.worker(pid, threads=4, last_seen_seconds=1e6).request(pid, pid, age=60)
    host.passes(12)
    assert {pid for pid, _ in host.signals()} == {7, 8}


def test_as_long_as_one_worker_serves_there_is_a_pause_between_two():
    host = Host().alone()
    for pid in (7, 8):
        host.worker(pid, threads=1).request(pid, pid, age=60)
    host.worker(9, threads=1)
    host.passes(12)
    assert {pid for pid, _ in host.signals()} == {7}


def test_a_worker_that_is_not_on_the_scoreboard_is_only_spoken_of():
    host = Host().worker(7).request(1, 7, age=60)
    host.on_board = False
    host.passes(60)
    assert host.sent == []
    assert "since it is not on the scoreboard" in host.told("left-alone")[0]


def test_a_timeout_of_nothing_is_off():
    host = Host(timeout=0.0).worker(7).request(1, 7, age=99_999)
    host.passes(60)
    assert host.events == []


def test_paths_have_their_own_time_and_some_have_none():
    times = {"/reports": 600.0, "/reports/quick": 10.0, "/upload": 0.0}
    host = Host(path_timeouts=times, dry_run=True, timeout=60.0)
    for number, path in enumerate(["/reports/x", "/reports/quick", "/upload/1", "/reportsX", "/"], 1):
        host.worker(number).request(number, number, age=100, path=path)
    host.look()
    assert {facts["path"] for event, _, facts in host.events if event == "overdue"} == {
        "/reports/quick",
        "/reportsX",
        "/",
    }
    host.passes(505)
    assert any("/reports/x" in told for told in host.told("overdue"))
    assert not any("/upload" in told for told in host.told("overdue"))


@pytest.mark.parametrize("longest_first", [False, True])
def test_the_longest_prefix_wins_wherever_it_is_written(longest_first):
    times = ["/reports=10m", "/reports/quick=10s"]
    described = guardrails.watchdog(path_timeout=reversed(times) if longest_first else times)
    host = Host(path_timeouts=described.policy.path_timeouts, dry_run=True)
    host.worker(7).request(1, 7, age=100, path="/reports/quick/x")
    host.request(2, 7, age=100, path="/reports/long")
    host.look()
    assert len(host.told("overdue")) == 1
    assert "/reports/quick/x" in host.told("overdue")[0]


def test_an_exemption_beyond_ascii_covers_the_path_as_servers_hand_it_over():
    path = "/grüße".encode().decode("latin-1")
    described = guardrails.watchdog(exempt_paths="/grüße")
    host = Host(path_timeouts=described.policy.path_timeouts, dry_run=True)
    host.worker(7).request(1, 7, age=100, path=path).request(2, 7, age=100, path=path + "X")
    host.look()
    assert [f["path"] for event, _, f in host.events if event == "overdue"] == ["/grüßeX"]


def test_nobody_talks_himself_into_an_exemption():
    host = Host(path_timeouts={"/upload": 0.0}, dry_run=True)
    for number, path in enumerate(["/upload/../slow", "/upload//../slow", "/x/../upload"], 1):
        host.worker(number).request(number, number, age=100, path=path)
    host.look()
    assert len(host.told("overdue")) == 3


def test_time_outs_by_path_alone_are_enough():
    host = Host(timeout=0.0, path_timeouts={"/slow": 30.0}, dry_run=True)
    host.worker(7).request(1, 7, age=31).request(2, 7, age=31, path="/other")
    host.look()
    assert len(host.told("overdue")) == 1


def test_where_the_worker_allows_it_one_request_is_ended_first():
    host = Host(interrupt=True).worker(7, interruptible=True).request(1, 7, age=60)
    host.passes(5.1)
    assert host.interrupted == [(7, 1)]
    assert host.sent == []
    host.ends(1)
    host.passes(60)
    assert host.sent == []
    assert host.told("ended")[0].endswith("it has ended after an exception in its thread")
    assert [client for client, _, _ in host.penalized] == ["192.0.2.1"]
    host.request(2, 7, age=60)
    host.look()
    host.ends(2)
    host.passes(6)
    assert host.interrupted == [(7, 1), (7, 2)]


def test_if_the_exception_does_not_end_it_the_next_steps_follow():
    host = Host(interrupt=True).worker(7, interruptible=True).request(1, 7, age=60)
    host.passes(20)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]


def test_an_exception_that_reached_nobody_is_not_told_of():
    host = Host(interrupt=True).worker(7, interruptible=True).request(1, 7, age=60)
    host.takes_commands = False
    host.passes(20)
    assert not any("exception" in told for told in host.told("step"))
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]


def test_what_befell_an_earlier_request_is_not_told_of_a_later_one():
    host = Host(interrupt=True).worker(7, interruptible=True).request(1, 7, age=60)
    host.look()
    host.ends(1)
    host.look()
    host.takes_commands = False
    host.request(2, 7, age=60)
    host.look()
    host.ends(2)
    host.look()
    first, second = host.told("ended")
    assert first.endswith("it has ended after an exception in its thread")
    assert second.endswith("it has ended")


def test_requests_that_an_exception_ends_are_not_kept_apart_as_ends_of_workers_are():
    host = Host(interrupt=True).worker(7, interruptible=True)
    for generation in (1, 2, 3):
        host.request(generation, 7, age=60)
        host.look()
        host.ends(generation)
        host.look()
    assert len(host.told("step")) == 3
    assert host.signals() == []


@pytest.mark.parametrize(("asked", "allowed"), [(False, True), (True, False)])
def test_no_exception_without_both_wanting_it(asked, allowed):
    host = Host(interrupt=asked).worker(7, interruptible=allowed).request(1, 7, age=60)
    host.passes(20)
    assert host.interrupted == []


def test_the_client_of_a_killed_request_is_charged_its_time_and_refused_for_a_while():
    host = Host(ban=600.0).worker(7).request(1, 7, age=60, path="/x/../slow")
    host.passes(20)
    ((client, seconds, ban),) = host.penalized
    assert (client, ban) == ("192.0.2.1", 600)
    assert 60 <= seconds <= 70
    assert "is refused the same path for 600 s" in host.told("blamed")[0]


@pytest.mark.parametrize(
    ("ban", "meters", "told"),
    [
        (0.0, 0, []),
        (0.0, 2, ["192.0.2.1 is charged 60 s"]),
        (600.0, 0, ["192.0.2.1 is refused the same path for 600 s"]),
        (600.0, 2, ["192.0.2.1 is charged 60 s, and is refused the same path for 600 s"]),
    ],
)
def test_only_what_was_done_to_the_client_is_told(ban, meters, told):
    """Where no guard counts CPU, nobody is charged."""
    host = Host(ban=ban).worker(7).request(1, 7, age=60)
    host.meters = meters
    host.look()
    assert host.told("blamed") == told


def test_whoever_its_own_server_ends_after_the_first_step_has_paid_too():
    host = Host(ban=600.0).worker(7).request(1, 7, age=60)
    host.deadly = {TERM}
    host.passes(20)
    assert host.signals() == [(7, TERM)]
    assert len(host.penalized) == len(host.told("blamed")) == 1
    assert host.told("killed")[0].endswith("its worker has ended after retiring (SIGTERM)")


def test_what_its_worker_has_burnt_since_it_was_noticed_is_told():
    host = Host().worker(7).request(1, 7, age=60)
    host.cpu_used = 100.0
    host.look()
    host.cpu_used = 107.0
    host.passes(20)
    first, *later = host.told("step")
    assert first.endswith("retiring (SIGTERM)")
    assert "SIGABRT; its worker has used 7.0 s of CPU in the last 2 s" in later[0]


def test_a_dry_run_touches_nobody():
    host = (
        Host(dry_run=True, interrupt=True, ban=60.0).worker(7, interruptible=True).request(1, 7, age=60)
    )
    host.passes(300)
    assert (host.sent, host.interrupted, host.penalized) == ([], [], [])
    assert len(host.told("overdue")) == 1
    (told,) = host.told("left-alone")
    assert told.endswith("only reported, since this is a dry run")


def test_a_worker_that_ends_by_itself_is_told_of():
    host = Host(dry_run=True).worker(7).request(1, 7, age=60)
    host.look()
    host.workers.clear()
    host.passes(60)
    (told,) = host.told("gone")
    assert told.endswith("its worker has ended by itself")
    assert (host.told("killed"), host.told("ended")) == ([], [])


def test_a_worker_of_another_container_is_not_said_to_have_ended():
    """Nobody sees from here whether it has."""
    host = Host(dry_run=True).worker(7, namespace=2).request(1, 7, age=60, namespace=2)
    host.look()
    host.workers.clear()
    host.passes(60)
    assert len(host.told("ended")) == 1
    assert host.told("gone") == []


def test_the_stack_of_its_thread_is_logged_and_no_other(caplog):
    host = Host(dry_run=True).worker(7).request(1, 7, age=60)
    host.dumps[7] = stack_dump.parse(
        'Thread 0x0000000000007f02 (most recent call first):\n  File "other.py", line 1 in other\n\n'
        "Current thread 0x0000000000007f01 (most recent call first):\n"
        '  File "a\x1b.py", line 2 in stuck\n'
    )
    host.look()
    assert 'overdue: worker 7:   File "a\\x1b.py", line 2 in stuck' in caplog.text
    assert "other.py" not in caplog.text


def test_of_a_deep_stack_sixty_lines_are_logged(caplog):
    host = Host(dry_run=True).worker(7).request(1, 7, age=60)
    deep = "".join(f"  line {number}\n" for number in range(500))
    host.dumps[7] = stack_dump.parse(f"Thread 0x{0x7F01:016x} (most recent call first):\n{deep}")
    host.look()
    assert caplog.text.count("overdue: worker 7: ") == 60
    assert "  line 58\n" in caplog.text


def test_who_cannot_be_asked_for_a_stack_is_ended_all_the_same():
    host = Host().worker(7).request(1, 7, age=60)

    def dump(worker, thread):
        raise PermissionError(1, "Operation not permitted")

    host.dump = dump
    host.passes(20)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]
    assert len(host.told("no-stack")) == 1


def test_without_a_stack_that_is_said():
    host = Host(dry_run=True).worker(7).request(1, 7, age=60)
    host.look()
    assert host.told("no-stack") == ["worker 7 does not show the stack of its thread 0x7f01"]


def test_a_store_that_fails_is_said_once_and_looked_at_again(caplog):
    host = Host(dry_run=True).worker(7).request(1, 7, age=60)
    host.boards["shm:test"].fails = "gone"
    host.passes(20)
    assert caplog.text.count("store shm:test: gone; it is tried again") == 1
    host.boards["shm:test"].fails = None
    host.passes(5)
    assert len(host.told("overdue")) == 1


def test_a_store_that_vanishes_holds_up_nobody():
    host = Host().worker(7).request(1, 7, age=60)
    host.passes(5.1)
    assert host.signals() == [(7, TERM)]

    board = host.boards.pop("shm:test")
    host.passes(10)
    assert host.told("killed") == []
    host.boards["shm:test"] = board
    host.passes(20)
    assert host.told("killed")[0].endswith("its worker has ended after SIGKILL")

    host.worker(8).request(2, 8, age=60)
    host.passes(20)
    host.workers.clear()
    host.boards.clear()
    host.passes(5)
    assert len(host.told("killed")) == 2


def test_a_store_that_takes_neither_mark_nor_penalty_stops_no_steps(caplog):
    host = Host().worker(7).request(1, 7, age=60)
    host.boards["shm:test"].busy = True
    host.passes(20)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]
    assert "the client of an overdue request was not charged: busy" in caplog.text
    assert host.told("blamed") == []
    assert caplog.text.count("it is tried again") == 0


def test_a_worker_that_is_told_to_retire_is_shown_so():
    host = Host().worker(7).request(1, 7, age=60)
    host.look()
    assert host.retiring == [7]


@pytest.mark.parametrize("trouble", ["vanishes", "fails for ever"])
def test_a_store_that_is_lost_between_two_steps_holds_up_nobody_in_another_one(trouble):
    host = Host().worker(7).worker(8).request(1, 7, age=61).request(2, 8, age=60, store="shm:other")
    host.look()
    assert host.signals() == [(7, TERM)]
    if trouble == "vanishes":
        del host.boards["shm:test"]
    else:
        host.boards["shm:test"].fails = "gone"
    host.passes(20)
    assert host.signals()[1:] == [(8, TERM), (8, ABRT), (8, KILL)]


def test_a_store_that_fails_holds_up_no_steps_in_another_one(caplog):
    host = Host().worker(7).request(1, 7, age=60).request(2, 7, store="shm:other")
    host.boards["shm:other"].fails = "gone"
    host.passes(20)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]
    assert caplog.text.count("it is tried again") == 1


def test_requests_of_one_store_are_not_all_before_those_of_another():
    host = Host(kill_interval=1.0)
    for number in range(1, 6):
        host.worker(number)
    host.deadly = {TERM}
    host.request(1, 1, age=90).request(2, 2, age=60, store="shm:other")
    host.request(3, 3, age=70).request(4, 4, age=65).request(5, 5, age=50)
    host.passes(60)
    assert host.signals() == [(1, TERM), (3, TERM), (4, TERM), (2, TERM), (5, TERM)]


def test_workers_that_serve_in_another_store_are_alive_too():
    host = Host(least_workers=1).worker(7).worker(8).request(1, 7, age=60)
    host.boards["shm:test"].shows = {7}
    host.boards["shm:other"] = Board(host)
    host.boards["shm:other"].shows = {8}
    host.passes(20)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]


@pytest.mark.parametrize("fails", ["as it is looked at", "as a step is taken"])
def test_after_a_look_that_failed_the_next_worker_waits_for_its_turn(fails):
    """The one before may be about to end: two would be ended at once."""
    host = Host().worker(7).worker(8).request(1, 7, age=61).request(2, 8, age=60, store="shm:other")
    board = host.boards["shm:test"]
    host.look()
    assert host.signals() == [(7, TERM)]
    if fails == "as it is looked at":
        board.fails = "gone"
    else:
        host.broken = {7}
    host.passes(9)
    assert (8, TERM) not in host.signals()
    host.passes(10)
    assert (8, TERM) in host.signals()


def between(host, one, next_one):
    """Seconds from the last signal to one worker until the first to the next."""
    last = max(when for when, pid, _ in host.sent if pid == one)
    return min(when for when, pid, _ in host.sent if pid == next_one and when >= last) - last


def two_stores(**options):
    """Two workers, each stuck in a store of its own, and the store of the older request."""
    host = Host(**options).worker(7, interruptible=True).worker(8)
    host.request(1, 7, age=61).request(2, 8, age=60, store="shm:other")
    host.look()
    return host, host.boards["shm:test"]


def fails_for(host, board, seconds):
    board.fails = "gone"
    host.passes(seconds)
    board.fails = None


def test_whoever_was_only_interrupted_before_its_store_failed_waits_like_others():
    host, board = two_stores(interrupt=True)
    assert (host.interrupted, host.sent) == ([(7, 1)], [])
    fails_for(host, board, 15)
    host.passes(30)
    assert between(host, 8, 7) >= 10


def test_a_store_that_fails_now_and_again_shortens_no_time_between_two_ends():
    host, board = two_stores()
    fails_for(host, board, 0.1)
    host.passes(5)
    fails_for(host, board, 20)
    assert between(host, 7, 8) >= 10


def test_a_worker_that_ends_while_its_store_fails_keeps_the_next_one_waiting():
    host, board = two_stores()
    board.fails = "gone"
    host.passes(9)
    host.workers.pop(7)
    ended, board.fails = host.now, None
    host.passes(30)
    assert min(when for when, pid, _ in host.sent if pid == 8) >= ended + 10


def test_a_reason_between_two_steps_shortens_no_time_between_two_ends():
    host = Host(least_workers=1).worker(7).worker(9).worker(8, parent=2).worker(10, parent=2)
    host.parents = {8: 2, 10: 2}
    host.request(1, 7, age=61).request(2, 8, age=60).look()
    del host.workers[9]
    host.passes(30)
    assert host.signals()[:2] == [(7, TERM), (8, TERM)]
    assert between(host, 7, 8) >= 10


def test_one_failure_puts_nobody_behind_all_others_for_ever():
    host = Host().worker(7).request(1, 7, age=300)
    host.deadly = {TERM}
    board = host.boards["shm:test"]
    answers = iter([board.requests(), None])  # to the look, and to the last one before the step
    board.requests = lambda: list(next(answers))
    host.look()
    del board.requests
    assert host.sent == []
    for number in range(2, 20):
        host.worker(100 + number).request(number, 100 + number, age=55).passes(10)
    assert (7, TERM) in host.signals()[:5]


def test_a_process_that_cannot_be_looked_at_holds_up_nobody_else(caplog):
    host = Host().worker(7).worker(8).request(1, 7, age=61).request(2, 8, age=60)
    parent = host.parent

    def fails_for_one(pid):
        if pid == 7:
            raise RuntimeError("odd")
        return parent(pid)

    host.parent = fails_for_one
    host.passes(20)
    assert host.signals() == [(8, TERM), (8, ABRT), (8, KILL)]
    assert caplog.text.count("odd; it is tried again") == 1


def test_a_worker_that_ends_is_no_living_one_though_its_store_does_not_say_so():
    host = Host(least_workers=1).worker(7).worker(8)
    host.request(1, 7, age=61).request(2, 8, age=60).request(3, 7)
    del host.retiring  # so that it cannot be marked
    host.look()
    assert host.signals() == [(7, TERM)]
    host.ends(1)  # it goes on with the third until that ends
    host.passes(30)
    assert host.signals() == [(7, TERM)]
    assert "fewer than 1 would be left" in host.told("left-alone")[0]


@pytest.mark.parametrize("options", [{"interrupt": True}, {}], ids=["interrupted", "retiring"])
def test_a_store_that_is_busy_for_a_moment_lets_nobody_off(options):
    host = Host(ban=600.0, **options).worker(7, interruptible=True).request(1, 7, age=60)
    host.boards["shm:test"].busy = True
    host.passes(5.3)
    assert (host.interrupted, host.sent) == ([], [])
    host.boards["shm:test"].busy = False
    host.passes(0.2)
    assert host.interrupted or host.sent
    assert len(host.penalized) == 1


def test_who_is_waited_for_has_paid_before():
    host = Host(ban=600.0).worker(7, retire_signal=0).request(1, 7, age=60).request(2, 7)
    host.passes(8)
    host.ends(1)
    host.passes(5)
    assert len(host.told("blamed")) == 1
    assert host.sent == []


def test_what_befell_one_request_is_not_told_of_another_in_its_worker():
    host = Host(interrupt=True).worker(7, interruptible=True)
    host.request(1, 7, age=61).request(2, 7, age=60).look()
    assert host.interrupted == [(7, 1)]
    host.ends(1)
    host.ends(2)
    host.look()
    assert [told.partition("it has ended")[2] for told in host.told("ended")] == [
        " after an exception in its thread",
        "",
    ]


def test_a_worker_that_was_only_waited_for_is_not_told_of_as_killed():
    host = Host().worker(7, retire_signal=0).request(1, 7, age=60).request(2, 7)
    host.passes(8)
    host.workers.clear()
    host.passes(6)
    assert host.told("killed") == []
    assert host.told("gone")[0].endswith("its worker has ended by itself")


def test_who_ends_with_its_store_between_two_steps_is_told_of_once():
    host = Host().worker(7).request(1, 7, age=60)
    host.look()
    host.boards.clear()
    host.workers.clear()
    host.passes(60)
    assert len(host.told("killed")) == 1
    assert host.told("killed")[0].endswith("its worker has ended after retiring (SIGTERM)")
    assert (host.told("gone"), host.told("ended")) == ([], [])


def test_a_worker_that_leaves_the_scoreboard_between_two_steps_is_ended_all_the_same():
    host = Host().worker(7).request(1, 7, age=60)
    host.look()
    host.on_board = False
    host.passes(20)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]


def test_a_step_that_raises_is_tried_again_and_the_next_ones_follow(caplog):
    host = Host().worker(7).request(1, 7, age=60)
    send, tries = host.send, []

    def failing(owner, number):
        tries.append(number)
        if len(tries) < 3:
            raise RuntimeError("out of luck")
        return send(owner, number)

    host.send = failing
    host.passes(20)
    assert tries == [TERM, TERM, TERM, ABRT, KILL]
    assert caplog.text.count("store shm:test: out of luck; it is tried again") == 1


def test_processes_of_another_container_are_told_of_and_never_touched():
    host = Host(interrupt=True).worker(7, namespace=2, interruptible=True)
    host.request(1, 7, age=61, namespace=2).worker(8).request(2, 8, age=60)
    host.passes(30)
    assert {pid for pid, _ in host.signals()} == {8}
    assert host.asked == [8]
    assert host.told("left-alone")[0].endswith(
        "its worker is not ended, since it runs in another container"
    )


def test_a_servers_watchdog_looks_at_its_own_workers_alone():
    host = Host(scope={"parent": 1}).worker(7, parent=2).request(1, 7, age=60)
    host.parents[7] = 2
    host.passes(30)
    assert (host.events, host.sent) == ([], [])
    host.worker(8).request(2, 8, age=60)
    host.passes(20)
    assert {pid for pid, _ in host.signals()} == {8}


def test_workers_with_a_watchdog_of_their_own_are_left_to_it():
    host = (
        Host(scope={"is_watched": lambda namespace, parent: (namespace, parent) == (1, 2)})
        .worker(7, parent=2)
        .worker(8)
    )
    host.request(1, 7, age=60).request(2, 8, age=60)
    host.passes(20)
    assert {pid for pid, _ in host.signals()} == {8}


def test_how_many_are_left_is_looked_at_before_each_step():
    host = Host(least_workers=1).worker(7).worker(8).request(1, 7, age=60)
    host.passes(5.1)
    assert host.signals() == [(7, TERM)]
    del host.workers[8]
    host.passes(30)
    assert host.signals() == [(7, TERM)]
    assert "fewer than 1 would be left" in host.told("left-alone")[0]


@pytest.mark.parametrize("changes", [{"namespace": 2}, {"parent": 2}])
def test_only_workers_of_its_own_server_are_those_that_are_left(changes):
    host = Host(least_workers=1).worker(7).worker(8, **changes).request(1, 7, age=60)
    host.passes(60)
    assert host.sent == []
    host.worker(9)
    host.passes(20)
    assert host.signals() == [(7, TERM), (7, ABRT), (7, KILL)]


def test_where_nobody_would_start_it_again_a_request_is_ended_by_an_exception_all_the_same():
    host = Host(interrupt=True).worker(7, respawns=False, server="waitress", interruptible=True)
    host.request(1, 7, age=60)
    host.passes(30)
    assert host.interrupted == [(7, 1)]
    assert host.sent == []
    assert "waitress has no supervisor" in host.told("left-alone")[0]


def test_a_request_that_ends_while_its_client_is_charged_is_not_killed():
    host = Host().worker(7).request(1, 7, age=60)
    board = host.boards["shm:test"]
    penalize = board.penalize

    def ends_just_now(request, microseconds, ban_for):
        host.ends(1)
        return penalize(request, microseconds, ban_for)

    board.penalize = ends_just_now
    host.passes(30)
    assert host.signals() == []
    assert host.told("blamed") == []


def test_a_request_that_ends_between_the_penalty_and_the_signal_is_not_killed():
    host = Host(ban=600.0).worker(7).request(1, 7, age=60)
    board = host.boards["shm:test"]
    penalize = board.penalize

    def ends_right_after(request, microseconds, ban_for):
        done = penalize(request, microseconds, ban_for)
        host.ends(1)
        return done

    board.penalize = ends_right_after
    host.passes(30)
    assert len(host.told("blamed")) == 1
    assert host.signals() == []
    assert host.retiring == []
    assert host.told("ended")[0].endswith("it has ended")


def test_of_a_path_that_was_cut_the_rest_must_be_in_its_usual_spelling():
    host = Host(path_timeouts={"/download": 0.0}, dry_run=True)
    cut = "/download/" + "a" * 118
    host.worker(7).request(1, 7, age=100, path=cut, usual_path=True)
    host.request(2, 7, age=100, path=cut, usual_path=False)
    host.request(3, 7, age=100, path="/download/./short", usual_path=False)
    host.look()
    assert [facts["thread"] for event, _, facts in host.events if event == "overdue"] == ["0x7f02"]


def test_when_all_hang_at_once_the_first_step_does_not_wait_for_all_the_stacks():
    host = Host()
    for number in range(1, 50):
        host.worker(number).request(number, number, age=60)
    host.look()
    assert len(host.told("overdue")) == 49
    assert host.signals() == [(1, TERM)]
    assert 1 in host.asked
    assert len(host.asked) <= 5
    host.passes(1.6)
    assert len(host.asked) == 49


def test_a_worker_is_asked_for_its_stack_before_a_step_is_taken():
    """Also where so many hang that it is not among the first that are shown."""
    host = Host()
    for number in range(1, 50):
        host.worker(number).request(number, number, age=60 + number)
    host.look()
    assert host.signals() == [(49, TERM)]
    assert host.sent_before_asking[49] == []


def test_all_that_hang_in_one_worker_are_shown_by_one_dump(caplog):
    host = Host(dry_run=True).worker(7)
    for number in range(1, 9):
        host.request(number, 7, age=60)
    host.dumps[7] = stack_dump.parse(
        "".join(
            f"Thread 0x{0x7F00 + n:016x} (most recent call first):\n  line {n}\n" for n in range(1, 9)
        )
    )
    host.look()
    assert host.asked == [7]
    assert all(f"overdue: worker 7:   line {number}" in caplog.text for number in range(1, 9))


def test_who_survives_sigkill_is_spoken_of_once_and_the_next_has_its_turn():
    host = Host().worker(7).worker(8).request(1, 7, age=61).request(2, 8, age=60)
    host.immortal = {7}
    host.passes(600)
    assert host.told("stands") == ["worker 7 does not end after SIGKILL"]
    assert host.signals() == [(pid, number) for pid in (7, 8) for number in (TERM, ABRT, KILL)]


@pytest.mark.parametrize("way", ["survives", "untouchable"])
def test_the_pause_is_kept_after_a_worker_that_no_signal_ends(way):
    host = Host(poll=0.5).worker(7).worker(8).request(1, 7, age=61).request(2, 8, age=60)
    host.immortal = {7, 8}
    host.untouchable = {7} if way == "untouchable" else set()
    host.passes(60)
    given_up = host.told_at["stands" if way == "survives" else "not-permitted"]
    to_the_next = min(when for when, pid, _ in host.sent if pid == 8)
    assert to_the_next - given_up >= 10


def test_what_is_not_permitted_is_said_once_and_the_next_has_its_turn():
    host = Host().worker(7).worker(8).request(1, 7, age=61).request(2, 8, age=60)
    host.untouchable = {7}
    host.passes(600)
    (told,) = host.told("not-permitted")
    assert told == "worker 7: [Errno 1] Operation not permitted"
    assert host.signals() == [(8, TERM), (8, ABRT), (8, KILL)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": "soon"}, "timeout: 'soon' is not a duration"),
        ({"timeout": "-3m"}, "timeout: '-3m' is not a duration"),
        ({"poll": 0}, "poll: 0 is too often"),
        ({"path_timeout": "/x"}, "path_timeout: '/x' is not a prefix with its time"),
        ({"path_timeout": {"/x": "y"}}, "path_timeout: 'y' is not a duration"),
        ({"exempt_paths": "upload"}, "exempt_paths: 'upload'"),
        ({"least_workers": -1}, "least_workers: -1 is not a whole number"),
        ({"ban": "x"}, "ban: 'x' is not a duration"),
        ({"on_event": "'"}, 'on_event: "\'" cannot be split'),
        ({"store": "redis://x"}, "store: nothing handles"),
        ({"dry_run": "no"}, "dry_run: 'no' is neither True nor False"),
        ({"store": "memory:"}, "store: 'memory:' is in the memory of each worker"),
        (
            {"tiemout": 3},
            "watchdog: 'tiemout' is not an option: write timeout; the options are ban",
        ),
        ({"probe": "ftp://x"}, "probe"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(options, said):
    with pytest.raises(guardrails.ConfigurationError) as error:
        guardrails.watchdog(**options)
    assert str(error.value).startswith(said)

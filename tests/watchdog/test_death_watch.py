"""What the watchdog says of workers that have died: what they served, and what it knows of why."""

import signal

import pytest
from watched_host import Host


def facts_of(host, event):
    return [facts for name, _, facts in host.events if name == event]


def test_a_worker_that_dies_is_told_of_with_the_requests_that_it_served():
    host = Host().worker(7).look()
    host.dies(7, "/report", "/export").passes(5)

    (told,) = host.told("died")
    assert told == (
        "worker 7 has died with 2 requests in flight: GET /report from 192.0.2.1, begun 12 s before; "
        "GET /export from 192.0.2.1, begun 12 s before"
    )
    (facts,) = facts_of(host, "died")
    assert (facts["pid"], facts["in_flight"], facts["path"]) == (7, 2, "/report")
    assert (facts["client"], facts["age"]) == ("192.0.2.1", "12.0")
    host.passes(60)
    assert len(host.told("died")) == 1


def test_what_it_had_used_of_its_cpu_is_told():
    limited = {"cpu_seconds": 597.4, "limits": {"CPU": (600, 610)}}
    host = Host().worker(7, **limited).look()
    host.dies(7, "/report").passes(5)
    (told,) = host.told("died")
    assert told.endswith("; 5 s before it was found dead it had used 597 s of its 610 s of CPU")
    (facts,) = facts_of(host, "died")
    assert (facts["cpu"], facts["cpu_limit"]) == ("597.4", 610)


@pytest.mark.parametrize("killed", [0, 2])
def test_what_the_kernel_killed_for_lack_of_memory_is_told(killed):
    host = Host().worker(7).look()
    host.killed_by_kernel += killed
    host.dies(7, "/report").passes(5)
    said = f"the kernel has killed {killed} of its cgroup for lack of memory"
    assert host.told("died")[0].endswith(said) == bool(killed)
    assert facts_of(host, "died")[0]["oom_kills"] == killed


def test_a_worker_that_dies_idle_is_told_of_where_it_would_have_said_that_it_exits():
    host = Host().worker(7).worker(8, server="uWSGI").look()
    host.dies(7).dies(8).passes(5)
    assert host.told("died") == ["worker 7 has died with no request in flight"]


def test_a_worker_that_the_watchdog_ends_has_not_died():
    host = Host().worker(7).request(1, 7, age=60)
    host.deadly = {signal.SIGTERM}
    host.passes(5.1)
    host.dies(7, "/slow").passes(10)
    assert len(host.told("killed")) == 1
    assert host.told("died") == []


def test_deaths_from_before_the_watchdog_began_are_not_told():
    host = Host().dies(7, "/report", seconds_ago=60.0).worker(8).look()
    host.dies(8, "/export").passes(5)
    (told,) = host.told("died")
    assert "/export" in told


def test_a_death_between_the_beginning_and_the_first_look_is_told():
    """A site may make its store, and lose a worker, before the watchdog has looked."""
    host = Host().worker(7)
    host.now += 2
    host.dies(7, "/report", seconds_ago=1.0).look()
    assert len(host.told("died")) == 1


def test_workers_of_other_servers_are_left_to_their_own_watchdogs():
    host = Host({"parent": 1}).worker(7, parent=5).worker(8).look()
    host.dies(7, "/report").dies(8, "/export").passes(5)
    (told,) = host.told("died")
    assert "/export" in told


def test_a_worker_with_two_stores_has_died_once():
    host = Host().worker(7).request(1, 7, store="shm:other").look()
    host.dies(7, "/report").dies(7, "/report", "/x", store="shm:other").passes(5)
    (told,) = host.told("died")
    assert "2 requests in flight" in told


def test_many_deaths_in_a_short_time_are_told_of_with_what_was_in_flight_most_often():
    host = Host()
    for pid in range(10, 14):
        host.worker(pid).look()
        host.dies(pid, "/report").passes(5)
    assert host.told("dying-often") == []
    host.worker(20).look()
    host.dies(20).passes(5)
    assert host.told("dying-often") == [
        "5 workers of server 1 have died within 5 minutes; GET /report was in flight in 4 of them"
    ]
    host.worker(21).look()
    host.dies(21, "/report").passes(5)
    assert len(host.told("dying-often")) == 1


def test_deaths_that_are_far_apart_are_not_many():
    host = Host()
    for pid in range(10, 16):
        host.worker(pid).look()
        host.dies(pid, "/report").passes(100)
    assert host.told("dying-often") == []

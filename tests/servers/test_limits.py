"""Limits in real workers: what the client sees, that the server goes on, what is logged."""

import json
import resource
import threading
from dataclasses import replace

import pytest
from troubled import GEVENT, GTHREAD, KINDS, SYNC, UWSGI, UWSGI_THREADS

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def limited(trouble, kind, **limits):
    return trouble(kind, TROUBLE_LIMITS=json.dumps(limits))


@every_kind
def test_at_the_soft_limit_of_cpu_a_worker_finishes_and_retires(trouble, kind):
    """A request that burns past it is answered, and so is one beside it; another worker follows."""
    site = limited(trouble, kind, CPU="1:")
    first = site.pid()
    beside = []
    if kind.threads > 1:
        thread = threading.Thread(
            target=lambda: beside.append(site.ask("/sleep?seconds=3").status), daemon=True
        )
        thread.start()

    burnt = site.ask("/burn?seconds=1.4")

    assert (burnt.status, burnt.text) == (200, str(first))
    if kind.threads > 1:
        thread.join(30)
        assert beside == [200]
    site.until(lambda: site.pid() not in (0, first), "another worker serves")
    assert "1 s, its soft limit: it finishes its requests and retires" in site.log()
    assert site.goes_on()


@every_kind
def test_the_hard_limit_of_cpu_kills_a_spinner_and_the_server_goes_on(trouble, kind):
    site = limited(trouble, kind, CPU="1:2")
    first = site.pid()

    spun = site.ask("/spin?seconds=60", seconds=30)

    assert spun.status == 0
    assert site.goes_on()
    assert site.pid() != first


@every_kind
def test_a_memory_hog_meets_a_memory_error_and_its_worker_lives(trouble, kind):
    site = limited(trouble, kind, DATA="600M:")
    first = site.pid()

    assert site.ask("/hog").text == "MemoryError"
    assert site.pid() == first


@every_kind
def test_memory_that_creeps_costs_its_own_request_at_the_most(trouble, kind):
    site = limited(trouble, kind, DATA="400M:")

    assert site.ask("/creep").status in (0, 500)
    assert site.goes_on()
    assert site.ask("/usage").status == 200


@every_kind
def test_a_file_that_is_too_large_and_too_many_files_are_errors_in_the_app(trouble, kind):
    site = limited(trouble, kind, FSIZE="8M:", NOFILE="200:")
    first = site.pid()

    assert site.ask("/file").text == "File too large after 8 MB"
    assert site.ask("/files").text == "Too many open files"
    assert site.pid() == first
    used = json.loads(site.ask("/usage").text)
    assert used["FSIZE"][1] == 8 << 20
    assert 3 < used["NOFILE"][0] < 200


@pytest.mark.parametrize("kind", [SYNC, UWSGI], ids=lambda kind: kind.name)
def test_a_budget_per_request_ends_the_request_and_the_worker_lives(trouble, kind):
    site = limited(trouble, kind, cpu_per_request="1s")
    first = site.pid()

    # More than a budget together, but none of them by itself.
    assert [site.ask("/burn?seconds=0.6").status for _ in range(3)] == [200] * 3
    ended = site.ask("/burn?seconds=20", seconds=15)

    assert ended.status in (0, 500)
    assert "this request has burnt its 1 s of CPU" in site.log()
    assert site.pid() == first


@pytest.mark.parametrize("kind", [GTHREAD, GEVENT, UWSGI_THREADS], ids=lambda kind: kind.name)
def test_a_budget_per_request_is_refused_where_requests_share_a_process(trouble, kind):
    said = "serves several requests at once, or may do, and the kernel counts their CPU together"
    if kind is UWSGI_THREADS:  # it starts all the same when a postfork function raises
        assert said in limited(trouble, kind, cpu_per_request="1s").log()
    else:
        with pytest.raises(AssertionError, match=said):
            limited(trouble, kind, cpu_per_request="1s")


@pytest.mark.parametrize(
    "kind",
    [
        replace(GTHREAD, name="gunicorn gthread --preload", options=("--preload",), hook="import"),
        replace(GEVENT, name="gunicorn gevent --preload", options=("--preload",), hook="import"),
        replace(GEVENT, name="gunicorn gevent apply", hook="import"),
        replace(UWSGI, name="uWSGI apply", hook="import"),
        replace(UWSGI_THREADS, name="uWSGI --threads 4 apply", hook="import"),
    ],
    ids=lambda kind: kind.name,
)
def test_applied_where_the_app_is_loaded_the_workers_have_it_and_not_their_parent(trouble, kind):
    site = limited(trouble, kind, CPU="1:")
    first = site.pid()

    assert resource.prlimit(site.process.pid, resource.RLIMIT_CPU)[0] == -1
    assert [worker.limits["CPU"] for worker in site.workers()] == [(1, -1)]
    assert site.ask("/burn?seconds=1.4").text == str(first)
    site.until(lambda: site.pid() not in (0, first), "another worker serves")
    assert site.goes_on()


@every_kind
def test_defaults_are_set_and_printed(trouble, kind):
    site = limited(trouble, kind, defaults=True)

    (worker,) = site.workers()
    used = json.loads(site.ask("/usage").text)
    assert worker.limits["CPU"] == tuple(used["CPU"][1:]) == (600, -1)
    assert worker.limits["CORE"][0] == 0
    if "gunicorn" in kind.name:
        assert "rlimits: CPU soft 600 hard unlimited (was unlimited, unlimited; default)" in site.log()

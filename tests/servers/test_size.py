"""The size guard in real workers: a worker that leaks is replaced, and no request is lost."""

import json
import re
from dataclasses import replace

import pytest
from troubled import GEVENT, GTHREAD, MOD_WSGI, SYNC, UWSGI, UWSGI_THREADS


@pytest.mark.parametrize(
    "kind", [SYNC, GTHREAD, GEVENT, UWSGI, UWSGI_THREADS, MOD_WSGI], ids=lambda kind: kind.name
)
def test_a_worker_that_leaks_is_replaced_and_no_request_is_lost(trouble, kind):
    size = {"unshared": "150M", "min_lifetime": 0, "jitter": 0}
    site = trouble(kind, TROUBLE_SIZE=json.dumps(size))
    before = {site.pid()}
    answers = []

    def leaks_until_replaced():
        answers.append(site.ask("/leak?seconds=4"))
        return answers[-1].status != 200 or int(answers[-1].text) not in before

    site.until(leaks_until_replaced, "another worker answers")

    assert {answer.status for answer in answers} == {200}
    said = re.findall(
        r"size: worker (\d+) takes [\d.]+ MB, ([\d.]+) MB of them unshared, after \d+ requests and "
        r"\d+ s; it grew most, by (\d+)\.\d MB, when 'GET /leak' ended: it finishes its requests and "
        r"retires",
        site.whole_log(),
    )
    assert said
    assert {int(pid) for pid, _, _ in said} <= before
    # What others leaked before it was looked is seen with it.
    assert all(float(unshared) > 150 and int(grown) >= 3 for _, unshared, grown in said)


def test_where_a_worker_could_not_finish_what_it_is_about_it_goes_on(trouble):
    """UWSGI's own asynchronous mode drops its requests when it is told to retire."""
    size = {"unshared": "60M", "min_lifetime": 0, "jitter": 0}
    kind = replace(UWSGI, name="uWSGI --async 10", options=("--async", "10"))
    site = trouble(kind, TROUBLE_SIZE=json.dumps(size))
    pids = {site.ask("/leak?seconds=16").text for _ in range(8)}

    said = "it goes on, since uWSGI has no way to let a worker finish"
    site.until(lambda: pids.add(site.ask("/pid").text) or said in site.whole_log(), said)

    assert len(pids) == 1
    assert [worker.retire_signal for worker in site.workers()] == [0]

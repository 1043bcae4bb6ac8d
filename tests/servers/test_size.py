"""The size guard in real workers: who leaks is replaced, and no request is lost."""

import json
import re

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
        answers.append(site.ask("/leak?seconds=16"))
        return answers[-1].status != 200 or int(answers[-1].text) not in before

    site.until(leaks_until_replaced, "another worker answers")

    assert {answer.status for answer in answers} == {200}
    said = re.findall(
        r"size: worker (\d+) takes [\d.]+ MB, ([\d.]+) MB of them unshared, after \d+ requests and "
        r"\d+ s; 'GET /leak' grew it most, by (\d+)\.\d MB: it finishes its requests and retires",
        site.whole_log(),
    )
    assert said
    assert {int(pid) for pid, _, _ in said} <= before
    assert all(float(unshared) > 150 and 15 <= int(grown) <= 40 for _, unshared, grown in said)

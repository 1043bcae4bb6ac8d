"""The monitor beside a real gunicorn: logrotate rotates its log, and a probe sees it stop."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import count, islice

import pytest
from troubled import GTHREAD, NOBODY, SYNC

BATCH = 100  # requests between two looks at what the monitor did

# As in docs/watchdog.md. Everybody may write to the folder of the test, so logrotate asks for su.
ROTATION = """\
{folder}/access.log {{
    su root root
    rotate 50
    compress
    delaycompress
    create
    postrotate
        kill -USR1 $(cat {folder}/gunicorn.pid)
    endscript
}}
"""


def lines_of(folder):
    """Every access line, over the log and all that it was renamed to."""
    text = b""
    for path in sorted(folder.glob("access.log*")):
        text += gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return re.findall(rb"GET /numbered/(\d+) ", text)


@pytest.mark.skipif(
    shutil.which("logrotate", path="/usr/sbin:/usr/bin") is None, reason="logrotate is not installed"
)
@pytest.mark.parametrize("kind", [SYNC, NOBODY], ids=["its own workers", "workers of another user"])
def test_logrotate_rotates_gunicorns_log_and_no_request_and_no_line_is_lost(trouble, kind):
    """A new log that the workers could not open would end them in the middle of their requests."""
    site = trouble(
        kind,
        workers=2,
        GUNICORN_CMD_ARGS="--access-logfile access.log --pid gunicorn.pid",
        TROUBLE_WATCHDOG=json.dumps(
            {"log": ["access.log"], "log_max": "12K", "logrotate": "rotation.conf"}
        ),
        TROUBLE_ROTATION=ROTATION,
    )
    logs = site.folder
    owner = (logs / "access.log").stat().st_uid
    site.until(lambda: "watchdog: begins" in site.whole_log(), "the watchdog begins")
    numbers = count()
    asked = []

    def is_rotated_for_the_third_time():
        for number in islice(numbers, BATCH):
            assert site.ask(f"/numbered/{number}").status == 200
            asked.append(number)
        return site.whole_log().count("log-rotated") >= 3

    site.until(is_rotated_for_the_third_time, "the log is rotated while it is written to", seconds=120)

    assert len(list(logs.glob("access.log.*.gz"))) >= 2
    # The last line is written after its response.
    site.until(lambda: len(lines_of(logs)) >= len(asked), "the last line is written")
    assert sorted(map(int, lines_of(logs))) == asked
    assert {log.stat().st_uid for log in logs.glob("access.log*")} == {owner}
    assert "exited with code" not in site.whole_log()


def test_a_probe_sees_that_nobody_answers_and_runs_the_operators_command(trouble, tmp_path):
    site = trouble(GTHREAD)
    told = tmp_path / "told"
    command = (
        f"{sys.executable} -c \"import os; open('{told}', 'a').write(os.environ['GUARDRAILS_ERROR'])\""
    )
    log = (site.folder / "watchdog.log").open("w")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "guardrails", "watch", f"--store={site.store_url}"),
            *(
                f"--probe=http://127.0.0.1:{site.port}/pid",
                "--probe-every=200ms",
                "--probe-timeout=500ms",
            ),
            *("--probe-failures=2", f"--on-failure={command}", "run"),
        ],
        stderr=log,
    )
    try:
        worker = site.pid()
        os.kill(worker, signal.SIGSTOP)
        site.until(lambda: told.exists() and told.read_text(), "the command is run")
        os.kill(worker, signal.SIGCONT)
        site.until(lambda: "it answers again" in log_text(site), "it is told that it answers")
        assert "2 failures in a row" in log_text(site)
        assert told.read_text().startswith("no complete answer within 0.5 s")
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def log_text(site):
    return (site.folder / "watchdog.log").read_text()

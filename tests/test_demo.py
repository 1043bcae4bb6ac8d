import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "examples" / "three_services" / "demo.py"
LONGEST_DEMO_SECONDS = 240
LONGEST_STOP_SECONDS = 90

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the demo looks into /proc")


@contextmanager
def demo_running(temporary_folder):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GUARDRAILS")}
    with subprocess.Popen(
        [sys.executable, str(DEMO)],
        env={**environ, "TMPDIR": str(temporary_folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as demo:
        try:
            yield demo
        finally:
            if demo.poll() is None:
                demo.terminate()


def store_name(demo):
    return f"demo-three-services-{demo.pid}-"


def store_files(demo):
    folders = [Path("/dev/shm"), Path(tempfile.gettempdir())]  # noqa: S108 - looked at only
    return [path for folder in folders for path in folder.glob(f"guardrails-*/{store_name(demo)}*")]


def processes(demo):
    """Whoever has the name of this demo's store in its environment: gunicorn and its workers."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if store_name(demo).encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not happened in time"
        time.sleep(0.05)


def assert_nothing_left(demo, temporary_folder):
    assert processes(demo) == []
    assert store_files(demo) == []
    assert list(temporary_folder.iterdir()) == []


def test_the_demo_sees_all_that_it_claims_and_leaves_nothing(tmp_path):
    with demo_running(tmp_path) as demo:
        output, _ = demo.communicate(timeout=LONGEST_DEMO_SECONDS)

    assert demo.returncode == 0, output
    assert "NOT SEEN" not in output
    assert "slots held at the end: 0" in output
    for table in ("Guards", "Who sent it", "busiest clients", "Response times of /news/"):
        assert table in output
    for guard in ("block-agents", "speed-limit client", "cpu-throttle client", "max-concurrent"):
        assert guard in output
    assert_nothing_left(demo, tmp_path)


@pytest.mark.parametrize("ctrl_cs", [1, 2])
def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path, ctrl_cs):
    with demo_running(tmp_path) as demo:
        if ctrl_cs == 1:
            wait_until(lambda: store_files(demo), seconds=60)
        else:
            wait_until(lambda: len(processes(demo)) >= 3, seconds=60)
        time.sleep(1)
        for _ in range(ctrl_cs):
            demo.send_signal(signal.SIGINT)
            time.sleep(0.2)
        output, _ = demo.communicate(timeout=LONGEST_STOP_SECONDS)

    assert demo.returncode == 130, output
    assert "Traceback" not in output
    assert_nothing_left(demo, tmp_path)

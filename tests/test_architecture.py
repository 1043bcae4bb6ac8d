"""What holds for the whole package: importing it is light, starts nothing, and its face is explicit."""

import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import guardrails

SOURCE = Path(guardrails.__file__).parent

LOOK = """
import json, os, sys, threading
opened, audited = [], []
sys.addaudithook(lambda event, arguments: audited.append((event, str(arguments[:1]))))
{code}
print(json.dumps({{
    "threads": threading.active_count(),
    "modules": sorted(sys.modules),
    "sockets": [event for event, _ in audited if event.startswith("socket.")],
    "processes": [event for event, _ in audited if event in
                  ("os.fork", "subprocess.Popen", "os.posix_spawn")],
    "written": [a for event, a in audited if event in ("open", "os.mkdir") and "/dev/shm" in a],
}}))
"""

IMPORTED = "import guardrails"
BUILT = """
import guardrails
from guardrails import BlockAgents, CPUThrottle, MaxConcurrentReqs, SpeedLimit
app = guardrails.throttle(
    lambda environ, start_response: [],
    BlockAgents("x"), SpeedLimit("1/s"), MaxConcurrentReqs(1), CPUThrottle("20%"),
)
"""


def looked_at(code):
    """What a fresh Python has and did after that code."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK.format(code=code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=[IMPORTED, BUILT], ids=["imported", "built"])
def fresh(request):
    return looked_at(request.param)


def test_importing_and_building_start_no_thread(fresh):
    assert fresh["threads"] == 1


def test_importing_and_building_start_no_process(fresh):
    assert fresh["processes"] == []


def test_importing_and_building_open_no_socket(fresh):
    assert fresh["sockets"] == []


def test_importing_and_building_touch_no_shared_memory(fresh):
    assert fresh["written"] == []


@pytest.mark.parametrize(
    "module", ["werkzeug", "flask", "django", "redis", "asyncio", "multiprocessing"]
)
def test_importing_and_building_load_nothing_heavy(fresh, module):
    assert module not in fresh["modules"]


def test_everything_public_is_there_and_documented():
    for name in guardrails.__all__:
        assert inspect.getdoc(getattr(guardrails, name)), name


@pytest.mark.parametrize(
    "code",
    [
        "import guardrails",
        "import guardrails.watchdog.loop",
        "from guardrails.watchdog import loop; assert loop.__name__ == 'guardrails.watchdog.loop'",
        "import guardrails; from guardrails.watchdog.policy import Policy",
    ],
)
def test_watchdog_is_a_function_of_the_package_whatever_is_imported_of_its_own_package(code):
    fresh = f"{code}\nimport guardrails\nprint(type(guardrails.watchdog('3m')).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", fresh], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout == "Watchdog\n"


def test_nothing_public_is_left_out_of_all():
    public = {
        name
        for name, value in vars(guardrails).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }

    assert public == set(guardrails.__all__)
    assert len(guardrails.__all__) == len(public)


def test_the_version_is_that_of_the_distribution():
    assert guardrails.__version__ == importlib.metadata.version("wsgi-guardrails")


def test_the_package_says_that_it_is_typed():
    assert (SOURCE / "py.typed").exists()


def test_every_module_says_what_it_is():
    for file in SOURCE.rglob("*.py"):
        assert file.read_text(encoding="utf-8").startswith('"""'), file


def test_no_concrete_guard_is_known_to_the_middleware():
    """It knows the protocol only: a guard of one's own is as good as those that come with it."""
    text = (SOURCE / "request" / "middleware.py").read_text(encoding="utf-8")

    for guard in ("agents", "concurrency", "cpu", "rate"):
        assert f"guardrails.guards.{guard}" not in text


def test_no_store_knows_wsgi_or_http():
    for file in (SOURCE / "store").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "werkzeug" not in text, file
        assert "wsgiref" not in text, file
        assert "environ[" not in text.replace("os.environ[", ""), file


def test_process_numbers_are_compared_in_one_place():
    """What a process has is renewed by one fork hook; stores keep their own until they are C."""
    comparing = {
        str(file.relative_to(SOURCE))
        for file in SOURCE.rglob("*.py")
        if re.search(r"[!=]= os\.getpid\(\)|os\.getpid\(\) [!=]=", file.read_text(encoding="utf-8"))
        and SOURCE / "store" not in file.parents
    }

    # process_signal.py asks whether it would signal itself.
    assert comparing == {"worker/process.py", "watchdog/process_signal.py"}

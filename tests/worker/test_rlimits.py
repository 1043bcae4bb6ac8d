"""rlimits(): limits as a value, set only where it is applied. Each in a process of its own."""

import inspect
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import guardrails
from guardrails.store.processes import limit_numbers
from guardrails.worker.limit_values import LimitOptions

APP = """
import json, resource

NAMES = ("CORE", "DATA", "NOFILE", "AS")

def app(environ, start_response):
    limits = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in NAMES}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(limits).encode()]
"""


AWAIT_WARNING = """
import logging, threading
warned = threading.Event()
class Warned(logging.StreamHandler):
    def emit(self, record):
        super().emit(record)
        if "its soft limit" in record.getMessage():
            warned.set()
logging.getLogger("guardrails").addHandler(Warned())
"""
"""For a program that waits until a thread has warned of the soft limit: `warned.wait(60)`."""


def run(program, **environ):
    """A Python of its own that has run a program."""
    return subprocess.run(
        [sys.executable, "-c", "import json, os, resource, guardrails\n" + program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environ,
    )


def in_a_process(program, **environ):
    """What a Python of its own prints, as JSON."""
    ran = run(program, **environ)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def limits_after(program, name, **environ):
    return in_a_process(
        f"{program}\nprint(json.dumps(resource.getrlimit(resource.RLIMIT_{name})))", **environ
    )


def test_building_sets_nothing():
    before, after = in_a_process(
        "before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "guardrails.rlimits(NOFILE=64)\n"
        "print(json.dumps([before, resource.getrlimit(resource.RLIMIT_NOFILE)]))"
    )
    assert before == after


@pytest.mark.parametrize("call", [".apply()", "()", "('server', 'worker')", "(1, 2, 3, name=4)"])
def test_applying_or_calling_with_anything_sets_the_limit(call):
    assert limits_after(f"guardrails.rlimits(NOFILE=64){call}", "NOFILE") == [64, 64]


HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("NOFILE", "64", [64, 64]),
        ("NOFILE", "64:128", [64, 128]),
        ("NOFILE", "64:", [64, HARD]),
        ("NOFILE", ":128", [128, 128]),
        ("CPU", "2m:360", [120, 360]),
        ("CPU", "90:unlimited", [90, -1]),
        ("CPU", 3600, [3600, 3600]),
        ("FSIZE", "10M:", [10 << 20, -1]),
        ("STACK", "4M:unlimited", [4 << 20, -1]),
        ("MEMLOCK", "16K:16K", [16 << 10, 16 << 10]),
        ("RTTIME", "2s:", [2_000_000, -1]),
        ("DATA", "1G:2G", [2**30, 2**31]),
        ("AS", "4096M:unlimited", [2**32, -1]),
        ("CORE", 0, [0, 0]),
        ("CORE", "0:0", [0, 0]),
    ],
)
def test_soft_and_hard_units_and_unlimited(name, value, expected):
    assert limits_after(f"guardrails.rlimits({name}={value!r}).apply()", name) == expected


def test_every_limit_that_the_system_has_is_known():
    names = [name.removeprefix("RLIMIT_") for name in dir(resource) if name.startswith("RLIMIT_")]
    assert len(names) > 10
    for name in names:
        guardrails.rlimits(**{name: "unlimited"})


def test_a_hard_limit_alone_leaves_a_soft_one_below_it():
    program = "guardrails.rlimits(NOFILE='64:').apply()\nguardrails.rlimits(NOFILE=':128').apply()"
    assert limits_after(program, "NOFILE") == [64, 128]


def test_it_reports_what_was_asked_for_what_was_and_what_is():
    first, second = in_a_process(
        "print(json.dumps(guardrails.rlimits(NOFILE='64:128', CORE='0:').apply()))"
    )
    assert first == [
        "NOFILE",
        64,
        128,
        [*resource.getrlimit(resource.RLIMIT_NOFILE)],
        [64, 128],
        "argument",
    ]
    core = resource.getrlimit(resource.RLIMIT_CORE)
    assert second == ["CORE", 0, None, [*core], [0, core[1]], "argument"]


def test_the_report_is_logged():
    ran = run(
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "guardrails.rlimits(NOFILE='64:128').apply()"
    )
    was = ", ".join(
        "unlimited" if limit < 0 else str(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    assert f"rlimits: NOFILE soft 64 hard 128 (was {was}; argument)" in ran.stderr


def test_so_are_the_priority_and_the_budget_of_a_request():
    ran = run(
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from guardrails.worker.server import Server\n"
        "limits = guardrails.rlimits(cpu_per_request='2s', nice=19)\n"
        "limits._apply(Server('gunicorn (sync)', 2, 1, True, 15), logging)"
    )
    was = os.getpriority(os.PRIO_PROCESS, 0)
    assert "rlimits: cpu_per_request 2 s (argument)" in ran.stderr
    assert f"rlimits: nice 19 (was {was}; argument)" in ran.stderr


def test_a_second_time_in_a_process_it_only_reports():
    reports, again, limit = in_a_process(
        "limits = guardrails.rlimits(NOFILE='64:')\n"
        "reports = limits.apply()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (70, 4000))\n"
        "print(json.dumps([reports, limits(), resource.getrlimit(resource.RLIMIT_NOFILE)[0]]))"
    )
    assert reports == again
    assert limit == 70


def test_arguments_win_over_a_mapping_and_that_over_the_environment():
    found = in_a_process(
        "limits = guardrails.rlimits({'NOFILE': '65:', 'FSIZE': '20M:'}, NOFILE='64:')\n"
        "print(json.dumps([report[:2] + report[5:] for report in limits.apply()]))",
        GUARDRAILS_RLIMIT_NOFILE="66",
        GUARDRAILS_RLIMIT_FSIZE="30M",
        GUARDRAILS_RLIMIT_CPU="120:360",
    )
    assert sorted(found) == [
        ["CPU", 120, "environment"],
        ["FSIZE", 20 << 20, "mapping"],
        ["NOFILE", 64, "argument"],
    ]


def test_defaults_fill_in_what_was_not_asked_for():
    found = in_a_process(
        "reports = guardrails.rlimits(NOFILE=64, defaults=True).apply()\n"
        "print(json.dumps([[each.name, each.soft, each.hard, each.origin] for each in reports]))"
    )
    assert ["NOFILE", 64, 64, "argument"] in found
    defaults = {name: (soft, hard) for name, soft, hard, origin in found if origin == "default"}
    # Nothing here starts the process again, and nobody knows of how many workers it is one.
    assert defaults in ({}, {"CORE": (0, None)})


@pytest.mark.parametrize("value", ["10M:", "0:"])
def test_a_default_never_overrides_what_was_asked(value):
    asked = limits_after(f"guardrails.rlimits(CORE={value!r}, defaults=True).apply()", "CORE")
    assert asked[0] == {"10M:": 10 << 20, "0:": 0}[value]


def test_defaults_come_from_the_environment_too():
    ran = run(
        "resource.setrlimit(resource.RLIMIT_CORE, (4096, -1))\n"
        "guardrails.rlimits().apply(); print(resource.getrlimit(resource.RLIMIT_CORE)[0])",
        GUARDRAILS_RLIMIT_DEFAULTS="On",
    )
    assert ran.stdout.strip() == "0"


def test_within_a_with_block_soft_limits_are_set_and_then_are_as_before():
    within, after = in_a_process(
        "with guardrails.rlimits(NOFILE=64):\n"
        "    within = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "print(json.dumps([within, resource.getrlimit(resource.RLIMIT_NOFILE)]))"
    )
    assert within == [64, HARD]
    assert after == [*resource.getrlimit(resource.RLIMIT_NOFILE)]


def test_nice_sets_the_priority_and_only_root_may_go_below_it():
    assert (
        in_a_process("guardrails.rlimits(nice=5).apply(); print(os.getpriority(os.PRIO_PROCESS, 0))")
        == 5
    )
    said = in_a_process(
        "os.setgroups([]) if os.getuid() == 0 else None\n"
        "os.setpriority(os.PRIO_PROCESS, 0, 0) if os.getuid() == 0 else None\n"
        "os.setuid(65534) if os.getuid() == 0 else None\n"
        "try: guardrails.rlimits(nice=-5).apply()\n"
        "except guardrails.ConfigurationError as error: print(json.dumps(str(error)))"
    )
    assert said.startswith("nice: the system refuses -5")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"GPU": 1}, "rlimits: 'GPU' is not an option: write CPU; the options are AS, CORE, CPU, "),
        ({"nofiles": 9}, "rlimits: 'nofiles' is not an option: write NOFILE; the options are AS, "),
        ({"nicer": 5}, "rlimits: 'nicer' is not an option: write nice; the options are AS, "),
        ({"xyz": 5}, "rlimits: 'xyz' is not an option: leave it out; the options are AS, "),
        ({"cpu": "120:360"}, "rlimits: 'cpu' is not an option: write CPU"),
        ({"RLIMIT_CPU": 60}, "rlimits: 'RLIMIT_CPU' is not an option: write CPU"),
        ({"DATA": "64X"}, "DATA: '64X' is not a size: write bytes"),
        ({"DATA": -1}, "DATA: -1 is not a size"),
        ({"CPU": "100M"}, "CPU: '100M' has a capital M, as sizes have: write 100m for minutes"),
        ({"CPU": "600:1M"}, "CPU: '1M' has a capital M"),
        ({"CPU": "soon"}, "CPU: 'soon' is not a duration"),
        ({"CPU": 0.5}, "CPU: 0.5 is not whole seconds"),
        ({"NOFILE": "12k"}, "NOFILE: '12k' is not a whole number"),
        ({"NOFILE": True}, "NOFILE: True is not a whole number"),
        ({"CORE": ""}, "CORE: '' is not a size"),
        ({"CORE": ":"}, "CORE: ':' has neither a soft nor a hard limit: write \"SOFT:HARD\""),
        ({"NOFILE": "2:1"}, "NOFILE: '2:1' has a soft limit above the hard one"),
        ({"CPU": "unlimited:5"}, "CPU: 'unlimited:5' has a soft limit above the hard one"),
        ({"DATA": 2**63}, "DATA: 9223372036854775808 is more than the system can count"),
        ({"defaults": "off"}, "defaults: 'off' is neither True nor False"),
        ({"nice": 20}, "nice: 20 is not a whole number from -20 to 19"),
        ({"cpu_per_request": "0s"}, "cpu_per_request: '0s' is less than a second"),
        ({"cpu_per_request": "0.5s"}, "cpu_per_request: '0.5s' is not whole seconds"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments, said):
    with pytest.raises(guardrails.ConfigurationError) as error:
        guardrails.rlimits(**arguments)
    assert str(error.value).startswith(said)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have SWAP")
def test_a_limit_of_other_systems_is_refused_as_such():
    said = r"^rlimits: 'SWAP' is a limit of other systems: leave it out; this one has AS, CORE, "
    with pytest.raises(guardrails.ConfigurationError, match=said):
        guardrails.rlimits(SWAP="1G")


def test_a_wrong_name_in_a_mapping_or_the_environment_is_said_to_be_there(monkeypatch):
    said = "^rlimits, in the mapping: 'DATE' is not an option: write DATA; the options are AS"
    with pytest.raises(guardrails.ConfigurationError, match=said):
        guardrails.rlimits({"DATE": "1G"})
    monkeypatch.setenv("GUARDRAILS_RLIMIT_DEFAULT", "on")
    said = "^GUARDRAILS_RLIMIT_ in the environment: 'DEFAULT' is not an option: write DEFAULTS;"
    with pytest.raises(guardrails.ConfigurationError, match=said):
        guardrails.rlimits()


def test_editors_and_help_know_every_limit_that_the_system_has():
    explained = set(re.findall(r"\b[A-Z]+\b", inspect.getdoc(guardrails.rlimits)))
    assert set(limit_numbers()) <= set(LimitOptions.__annotations__)
    assert set(LimitOptions.__annotations__) <= explained


def test_what_is_wrong_in_the_environment_names_the_variable(monkeypatch):
    monkeypatch.setenv("GUARDRAILS_RLIMIT_DATA", "lots")
    with pytest.raises(guardrails.ConfigurationError, match=r"^GUARDRAILS_RLIMIT_DATA: 'lots' is not"):
        guardrails.rlimits()


DEFAULTS = """
from guardrails.worker.server import Server
from guardrails.worker import limit_defaults, memory, rlimits
memory.cgroup_limit = lambda: {room}
server = Server("gunicorn (gthread)", {processes}, {threads}, True, 15)
found = limit_defaults.default_limits(rlimits.rlimits({asked}).limits, server)
print(json.dumps({{limit.name: [limit.soft, limit.hard] for limit in found}}))
"""


def defaults(room=None, processes=2, threads=1, asked=""):
    program = DEFAULTS.format(room=room, processes=processes, threads=threads, asked=asked)
    return in_a_process("resource.setrlimit(resource.RLIMIT_CORE, (4096, -1))\n" + program)


def test_the_defaults_are_no_core_a_retirement_and_a_share_of_the_cgroup_with_the_stacks():
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stack = 8 << 20 if stack < 0 else stack
    assert defaults() == {"CORE": [0, None], "CPU": [600, None]}
    found = defaults(room=8 << 30, processes=4, threads=10)
    assert found["DATA"] == [round((8 << 30) * 0.8) // 4 + 10 * stack, None]


def test_no_default_takes_the_place_of_another_limit_of_memory_or_of_a_lower_one():
    assert "DATA" not in defaults(room=8 << 30, asked="AS='9G:'")
    assert "CPU" not in in_a_process(
        "resource.setrlimit(resource.RLIMIT_CPU, (50, -1))\n"
        + DEFAULTS.format(room=None, processes=2, threads=1, asked="")
    )


def test_a_share_that_no_worker_could_live_with_is_no_default():
    ran = run(DEFAULTS.format(room=64 << 20, processes=8, threads=1, asked=""))
    assert "DATA" not in json.loads(ran.stdout)
    assert "rlimits: DATA has no default: 80% of the cgroup's memory" in ran.stderr


def test_defaults_are_printed_where_nobody_has_set_up_a_log():
    ran = run(
        "resource.setrlimit(resource.RLIMIT_CORE, (4096, -1))\n"
        "guardrails.rlimits(defaults=True, NOFILE='64:').apply()"
    )
    assert ran.stderr.splitlines() == [
        "rlimits: CORE soft 0 hard unlimited (was 4096, unlimited; default)"
    ]


def test_of_two_values_in_one_process_the_smaller_limit_of_cpu_counts():
    ran = run(
        f"import time\n{AWAIT_WARNING}"
        "guardrails.rlimits(CPU='1:').apply(); guardrails.rlimits(CPU='300:').apply()\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (1, -1))\n"
        "while time.process_time() < 1.3: pass\n"
        "warned.wait(60); print('alive')"
    )
    assert ran.stdout == "alive\n"
    assert "has used 1 s, its soft limit" in ran.stderr


def test_an_apps_own_handler_is_left_in_place():
    ran = run(
        "import signal, time\n"
        "signal.signal(signal.SIGXCPU, lambda *_: print('mine', flush=True))\n"
        "guardrails.rlimits(CPU='1:').apply()\n"
        "while time.process_time() < 1.3: pass"
    )
    assert ran.stdout == "mine\n"
    assert "SIGXCPU has a handler already" in ran.stderr


def test_a_limit_that_is_passed_already_kills_nobody():
    ran = run(
        "import time\n"
        "while time.process_time() < 1.2: pass\n"
        "guardrails.rlimits(CPU='1:').apply()\n"
        "while time.process_time() < 1.5: pass\n"
        "print('alive')"
    )
    assert ran.stdout == "alive\n"


RESERVED = """
import logging, mmap
logging.basicConfig(format="%(levelname)s %(message)s")
reserved = mmap.mmap(-1, 300 << 20, flags=mmap.MAP_PRIVATE)  # as a library does when it is imported
"""


@pytest.mark.parametrize("apply", [".apply()", "()", "(gunicorn_arbiter, gunicorn_worker)"])
@pytest.mark.parametrize(
    ("value", "limit"), [("200M:", 200 << 20), (":200M", 200 << 20), ("200M", 200 << 20)]
)
def test_a_limit_below_what_the_process_has_is_not_set_and_both_figures_are_logged(apply, value, limit):
    """Otherwise each allocation fails, and each request with it."""
    ran = run(
        RESERVED
        + f"""
class gunicorn_arbiter: log = logging.getLogger("gunicorn.error")
class gunicorn_worker: pass
before = resource.getrlimit(resource.RLIMIT_DATA)
reports = guardrails.rlimits(DATA={value!r}, NOFILE="90:"){apply}
assert resource.getrlimit(resource.RLIMIT_DATA) == before
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 90
print([report.name for report in reports], len(bytes(50 << 20)))
"""
    )

    assert ran.stdout == "['NOFILE'] 52428800\n", ran.stderr
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
    said = re.fullmatch(
        rf"ERROR rlimits: this limit is not set: DATA: {limit} is less than the (\d+) that this "
        "process already has, so each request would fail: write more, or let the process reserve less",
        line,
    )
    assert int(said[1]) > 300 << 20


def test_a_limit_below_what_the_process_has_is_refused_where_an_exception_stops_no_site():
    """In a process that forks the workers, before it forks any, and in a `with` block."""
    ran = run(
        RESERVED
        + """
from guardrails.worker import rlimits as module
limits = guardrails.rlimits(DATA="200M:")
said = []
try:
    with limits:
        pass
except guardrails.ConfigurationError as error:
    said.append(str(error))
module.is_master = lambda: True
try:
    limits.apply()
except guardrails.ConfigurationError as error:
    said.append(str(error))
print([sentence[:28] for sentence in said])
"""
    )

    assert ran.stdout == f"{['DATA: 209715200 is less than'] * 2}\n", ran.stderr


def test_a_limit_of_files_below_those_that_are_open_is_not_set():
    ran = run(
        """
files = [open("/dev/null") for _ in range(50)]
guardrails.rlimits(NOFILE="20:").apply()
print(open("/dev/null").read() == "")
"""
    )

    assert ran.stdout == "True\n", ran.stderr
    assert re.search(r"NOFILE: 20 is less than the 5\d that this process already has", ran.stderr)


def test_an_empty_limit_in_the_environment_is_none():
    """A compose file hands on a variable that is not set as an empty one."""
    assert in_a_process(
        "print(json.dumps([limit.name for limit in guardrails.rlimits(NOFILE='99:').limits]))",
        GUARDRAILS_RLIMIT_CPU="",
        GUARDRAILS_RLIMIT_DATA=" ",
        GUARDRAILS_RLIMIT_DEFAULTS="",
    ) == ["NOFILE"]


def test_what_is_refused_leaves_all_as_it_was():
    before, after, cpu = in_a_process(
        "import threading\n"
        "before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "try: guardrails.rlimits(NOFILE='64:', MEMLOCK=':9999999999999').apply()\n"
        "except guardrails.ConfigurationError: pass\n"
        "after = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "def refused():\n"
        "    try: guardrails.rlimits(CPU='1:').apply()\n"
        "    except guardrails.ConfigurationError: pass\n"
        "thread = threading.Thread(target=refused); thread.start(); thread.join()\n"
        "print(json.dumps([before, after, resource.getrlimit(resource.RLIMIT_CPU)]))"
    )
    assert before == after
    assert cpu[0] == -1


NOBODY = """
if os.getuid() == 0:
    os.setgroups([])
    os.setpriority(os.PRIO_PROCESS, 0, 0)  # whatever this test runs with
    os.setuid(65534)
before = [resource.getrlimit(resource.RLIMIT_NOFILE), os.getpriority(os.PRIO_PROCESS, 0)]
try: guardrails.rlimits(NOFILE='64:', {refused}).apply()
except guardrails.ConfigurationError: refused = True
after = [resource.getrlimit(resource.RLIMIT_NOFILE), os.getpriority(os.PRIO_PROCESS, 0)]
print(json.dumps([refused, before == after]))
"""


@pytest.mark.parametrize("refused", ["nice=-5", f"nice=5, MEMLOCK=':{2**60}'"])
def test_also_where_it_is_the_priority_or_that_was_to_be_set_too(refused):
    assert in_a_process(NOBODY.format(refused=refused)) == [True, True]


@pytest.mark.parametrize("limits", ["CPU='1:'", "NOFILE=':64'", "NOFILE=64, nice=1", "defaults=True"])
def test_what_a_with_block_cannot_do_is_refused(limits):
    ran = run(f"with guardrails.rlimits({limits}): pass")
    assert "ConfigurationError: with: only soft limits other than CPU" in ran.stderr


WITHOUT_POSIX = """
import sys
for name in ("fcntl", "resource", "pwd", "grp"):
    sys.modules[name] = None
import guardrails
from guardrails import SpeedLimit, testing
app = SpeedLimit("9/s")(testing.hello, store="memory:")
print(testing.Client(app).get("/").status_code)
try: guardrails.rlimits(defaults=True).apply()
except guardrails.ConfigurationError as error: print(error)
print(guardrails.usage())
"""


def test_where_there_is_no_posix_it_is_imported_and_says_what_is_not_there():
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.splitlines() == [
        "200",
        "rlimits: this system has no resource limits: leave it out, or use a POSIX system",
        "{}",
    ]


@pytest.mark.parametrize(
    ("limits", "warned"),
    [
        ("AS='64G:'", "rlimits: AS misleads: it counts addresses"),
        ("RSS='1G:'", "rlimits: RSS misleads: Linux ignores it"),
        ("NPROC='4000:'", "rlimits: NPROC misleads: it counts all processes"),
        ("CPU=600", "rlimits: CPU has one limit of 600 s for soft and hard"),
    ],
)
def test_limits_that_mislead_are_warned_of(limits, warned):
    assert warned in run(f"guardrails.rlimits({limits}).apply()").stderr


def test_limits_that_do_not_mislead_are_not_warned_of():
    assert run("guardrails.rlimits(DATA='64G:', CORE='0:', CPU='600:').apply()").stderr == ""


def test_where_nobody_starts_the_server_again_it_is_said_at_the_first_request():
    ran = run(
        "from guardrails import SpeedLimit, testing\n"
        "guardrails.rlimits(CPU='600:').apply()\n"
        "app = SpeedLimit('1/s')(testing.hello, store='memory:')\n"
        "client = testing.Client(app)\n"
        "client.get('/', environ_base={'SERVER_SOFTWARE': 'waitress'})\n"
        "client.get('/', environ_base={'SERVER_SOFTWARE': 'waitress'})"
    )
    assert ran.stderr.count("rlimits: nobody starts waitress again") == 1


def test_the_soft_limit_of_cpu_kills_nobody_where_nobody_starts_it_again():
    """The process logs the soft limit and goes on; only the hard limit kills."""
    ran = run(
        f"import time\n{AWAIT_WARNING}"
        "guardrails.rlimits(CPU='1:4').apply()\n"
        "while time.process_time() < 1.5: pass\n"
        "warned.wait(60); print('alive', flush=True)\n"
        "while True: pass"
    )
    assert ran.stdout == "alive\n"
    assert ran.returncode == -signal.SIGKILL
    assert ran.stderr.count("its soft limit, and goes on: nobody would start") == 1


def test_a_budget_per_request_is_refused_where_requests_are_served_together():
    ran = run("guardrails.rlimits(cpu_per_request='2s').apply()")
    assert "cpu_per_request: unknown with an unknown number of processes" in ran.stderr
    assert ran.returncode == 1


SPENDING = """
import time
from guardrails import CPULimitError, MaxConcurrentReqs, testing
from guardrails.worker.server import Server
from guardrails.store.memory import MemoryStore
from guardrails.worker import cpu_limit

def spend(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass

class Slow(MemoryStore):
    def leave(self, visit, debits=()):
        spend(float(visit.path[1:]) - spent)
        super().leave(visit, debits)

def spender(environ, start_response):
    global spent
    spend(spent)
    return testing.hello(environ, start_response)

store = Slow()
app = guardrails.throttle(spender, MaxConcurrentReqs(1), store=store, trusted_proxies=())
cpu_limit.watch(Server("plain", threads=1), None, 1)
client = testing.Client(app)

def ended(path):
    try:
        with client.get(path) as response:
            return response.status
    except CPULimitError:
        return "ended"

spent = 0
leaving = ended("/2.5")
spent = 2.5
spending = ended("/2.5")
print(json.dumps([leaving, spending, dict(app.errors), len(store.requests())]))
"""


def test_a_request_beyond_its_budget_is_ended_in_its_app_and_gives_back_what_it_holds():
    """One request uses the CPU while it leaves the store, and one in the app."""
    assert in_a_process(SPENDING) == ["200 OK", "ended", {}, 0]


def test_cpu_is_refused_in_a_thread_that_could_not_watch_it():
    ran = run(
        "import threading\n"
        "def begin():\n"
        "    try: guardrails.rlimits(CPU='600:').apply()\n"
        "    except guardrails.ConfigurationError as error: print(error)\n"
        "thread = threading.Thread(target=begin); thread.start(); thread.join()"
    )
    assert ran.stdout.startswith(
        "CPU: a soft limit can only be watched when it is set in the main thread"
    )


def test_usage_says_what_is_used_of_each_limit():
    found = in_a_process(
        "kept = open(os.devnull); ballast = bytearray(50_000_000)\n"
        "guardrails.rlimits(DATA='1G:', CPU='600:', NOFILE='64:').apply()\n"
        "usage = guardrails.usage()\n"
        "print(json.dumps([usage, usage['NOFILE'].share, len(os.listdir('/proc/self/fd')) - 1]))"
    )
    usage, share, files = found
    assert usage["NOFILE"] == [files, 64, HARD]
    assert share == files / 64
    assert usage["CPU"][1:] == [600, -1]
    assert 50_000_000 < usage["DATA"][0] < 1 << 30
    assert usage["AS"][0] > usage["DATA"][0]
    assert usage["FSIZE"][0] is None
    assert set(usage) >= {"CORE", "STACK", "MEMLOCK", "NPROC"}


def test_a_memory_hog_meets_its_limit_as_a_memory_error():
    assert in_a_process(
        "guardrails.rlimits(DATA='512M:').apply()\n"
        "try: bytearray(2**30); met = False\n"
        "except MemoryError: met = True\n"
        "print(json.dumps(met))"
    )


def test_a_limit_that_the_system_refuses_is_said_in_a_sentence():
    said = in_a_process(
        "guardrails.rlimits(NOFILE='64:64').apply()\n"
        "try: guardrails.rlimits(NOFILE='65').apply()\n"
        "except guardrails.ConfigurationError as error: print(json.dumps(str(error)))"
    )
    assert said.startswith("NOFILE: the system refuses soft 65 and hard 65")


def test_equal_limits_are_equal_values():
    assert guardrails.rlimits(NOFILE=64) == guardrails.rlimits(NOFILE="64:64")


def test_as_gunicorns_post_fork_hook_every_worker_has_the_limits(tmp_path):
    (tmp_path / "limited.py").write_text(APP)
    (tmp_path / "gunicorn.conf.py").write_text(
        "import guardrails\npost_fork = guardrails.rlimits(NOFILE=96, CORE=0)\n"
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        server = subprocess.Popen(
            [
                Path(sys.executable).with_name("gunicorn"),
                *("--bind", f"fd://{listener.fileno()}", "--workers", "1", "--log-level", "error"),
                "limited:app",
            ],
            cwd=tmp_path,
            pass_fds=[listener.fileno()],
        )
        try:
            limits = _ask(listener.getsockname()[1])
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)
    assert limits["NOFILE"][0] == 96
    assert limits["CORE"][0] == 0


@pytest.mark.parametrize("hook", ["post_fork", "post_worker_init"])
@pytest.mark.parametrize("value", ["rlimits(NOFILE='96:')", "size_limit('300M')"])
def test_gunicorn_takes_them_as_its_hooks(tmp_path, value, hook):
    (tmp_path / "limited.py").write_text(APP)
    call = f"guardrails.{value}"
    if hook == "post_worker_init":
        call = f"lambda worker: {call}(None, worker)"
    (tmp_path / "gunicorn.conf.py").write_text(f"import guardrails\n{hook} = {call}\n")
    gunicorn = Path(sys.executable).with_name("gunicorn")
    checked = subprocess.run(
        [gunicorn, "--check-config", "limited:app"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def _ask(port):
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as response:
                return json.load(response)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_what_is_refused_changes_nothing_before_it():
    """Neither the limits before it, nor the handling of SIGXCPU."""
    found = in_a_process(
        "import signal, threading\n"
        "core = resource.getrlimit(resource.RLIMIT_CORE)\n"
        "try: guardrails.rlimits(CORE=0, CPU='600:', NOFILE=2**40).apply()\n"
        "except guardrails.ConfigurationError as error: said = str(error)\n"
        "print(json.dumps([said.partition(':')[0], core == resource.getrlimit(resource.RLIMIT_CORE),\n"
        "  len(signal.pthread_sigmask(signal.SIG_BLOCK, ())), threading.active_count(),\n"
        "  signal.getsignal(signal.SIGXCPU) == signal.SIG_DFL,\n"
        "  len(os.listdir('/proc/self/task'))]))"
    )
    assert found == ["NOFILE", True, 0, 1, True, 1]


def test_a_default_never_overrides_what_another_value_asked_for():
    found = in_a_process(
        "guardrails.rlimits(CORE='1M:').apply()\n"
        "guardrails.rlimits(NOFILE='500:', defaults=True).apply()\n"
        "print(json.dumps(resource.getrlimit(resource.RLIMIT_CORE)[0]))"
    )
    assert found == 2**20


def test_within_a_with_block_two_names_of_one_limit_are_put_back_as_they_were():
    if not hasattr(resource, "RLIMIT_OFILE"):
        pytest.skip("this system has one name for it")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with guardrails.rlimits(NOFILE="64:", OFILE="128:"):
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 128
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before

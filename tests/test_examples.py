"""The examples: tested as one tests an app of one's own, and then run as their first lines say."""

import ast
import http.client
import importlib
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from guardrails import testing
from guardrails.store import directory

pytestmark = pytest.mark.one_python

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
LONGEST_SECONDS = 90

# Pyramid imports pkg_resources, which newer setuptools deprecate and which then complains of Paste;
# its WebOb imports cgi, which Python 3.11 and 3.12 deprecate.
of_pyramids_own = [
    pytest.mark.filterwarnings("ignore:pkg_resources is deprecated as an API"),
    pytest.mark.filterwarnings("ignore:Deprecated call to .pkg_resources:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning"),
]

FRAMEWORKS = [
    pytest.param("bottle", id="bottle"),
    pytest.param("django", id="django"),
    pytest.param("falcon", id="falcon"),
    pytest.param("flask", id="flask"),
    pytest.param("plain", id="plain"),
    pytest.param("pyramid", id="pyramid", marks=of_pyramids_own),
]


@pytest.fixture(scope="module", params=FRAMEWORKS)
def program(request):
    """The name of an example whose framework is installed."""
    if request.param != "plain":
        pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return f"{request.param}_app"


@pytest.fixture(scope="module", autouse=True)
def _refusals_are_logged_as_before():
    """The programs set a level for their own process, not for the other tests."""
    log = logging.getLogger("guardrails")
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture
def create_app(program, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(program).create_app


# With guardrails on: a store on a clock that the test moves.


def test_the_sixth_search_in_a_row_has_to_wait(create_app):
    clock = testing.Clock()
    client = testing.Client(create_app(store=testing.memory_store(clock)))
    for remaining in (4, 3, 2, 1, 0):
        assert f"{remaining} more would be answered now" in client.get("/search").text

    refused = client.get("/search")
    testing.assert_refused(refused, 429, guard="speed-limit /search client", retry_after=12)
    clock.advance(12)

    assert client.get("/search").status_code == 200


def test_one_who_has_to_wait_keeps_nobody_else_waiting(create_app, store):
    shop = create_app(store=store)
    hasty = testing.Client(shop, address="192.0.2.7")
    for _ in range(6):
        refused = hasty.get("/search")

    testing.assert_refused(refused, 429)
    assert testing.Client(shop, address="192.0.2.8").get("/search").status_code == 200


def test_who_is_refused_the_front_page_still_gets_what_is_exempt(create_app, store):
    client = testing.Client(create_app(store=store))
    for _ in range(120):
        assert client.get("/").status_code == 200

    testing.assert_refused(client.get("/"), 429, guard="speed-limit client")

    assert client.get("/healthz").text == "ok\n"
    style = client.get("/static/site.css")
    assert style.status_code == 200
    assert style.mimetype == "text/css"


def test_a_blocked_agent_is_refused_for_good(create_app, store):
    client = testing.Client(create_app(store=store), agent="Mozilla/5.0 zgrab/0.x")

    refused = client.get("/")

    testing.assert_refused(refused, 403, guard="block-agents")
    assert "Retry-After" not in refused.headers


# With guardrails off: the tests that are about something else.


@pytest.mark.parametrize("switched_by", ["the argument", "the environment"])
def test_with_guardrails_off_nobody_is_counted_or_refused(create_app, switched_by, monkeypatch):
    if switched_by == "the environment":
        monkeypatch.setenv("GUARDRAILS", "off")
        client = testing.Client(create_app())
    else:
        client = testing.Client(create_app(enabled=False))

    for _ in range(10):
        assert client.get("/search").text == "Nothing was found. Nobody counts.\n"


# All six are one program.


def sources():
    found = sorted(EXAMPLES.glob("*_app.py"))
    assert len(found) == len(FRAMEWORKS)
    return found


def test_the_guards_are_the_same_in_all_of_them():
    def guards(source):
        (call,) = [
            node
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "guardrails.throttle"
        ]
        return ast.unparse(ast.Call(call.func, call.args[1:], call.keywords))

    assert len({guards(source) for source in sources()}) == 1


def test_the_first_lines_promise_the_same_of_all_of_them():
    def promise(source):
        text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
        return text.partition("\n")[2].replace(source.stem, "this")

    assert len({promise(source) for source in sources()}) == 1


# Under the server of their first lines. Behind it everybody is on the loopback, which is a trusted
# proxy, so a test can be any client.


class Server:
    """An example under the command of its first lines, but on a free port."""

    def __init__(self, program, folder, store_url):
        self.lines = ast.get_docstring(
            ast.parse((EXAMPLES / f"{program}.py").read_text(encoding="utf-8"))
        ).splitlines()
        self.log = folder / "log"
        command, *arguments = shlex.split(self.after("Run"))
        # Its control socket would be a file outside of the test's own folder.
        (folder / "gunicorn.conf.py").write_text("control_socket_disable = True\n")
        # The port is taken before the server starts, so nobody else can take it in between.
        with socket.create_server(("127.0.0.1", 0)) as listener, self.log.open("wb") as log:
            self.port = listener.getsockname()[1]
            self.process = subprocess.Popen(
                [
                    *(Path(sys.executable).with_name(command), *arguments),
                    *("--config", folder / "gunicorn.conf.py", "--bind", f"fd://{listener.fileno()}"),
                ],
                cwd=ROOT,
                env={
                    **{name: value for name, value in os.environ.items() if name != "GUARDRAILS"},
                    "GUARDRAILS_STORE": store_url,
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def after(self, word):
        (line,) = [line for line in self.lines if line.startswith(f"{word} ")]
        return line.removeprefix(word).strip()

    def wait_until_it_answers(self):
        deadline = time.monotonic() + LONGEST_SECONDS
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return self.ask("/healthz")
            except OSError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)

    def ask(self, path, client="192.0.2.1", agent="a test"):
        """Status, headers and text."""
        with closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONGEST_SECONDS)
        ) as connection:
            connection.request("GET", path, headers={"X-Forwarded-For": client, "User-Agent": agent})
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()

    def run(self, command):
        """What a command of the first lines prints when it is typed while the server runs."""
        return subprocess.run(
            ["sh", "-c", command.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")],
            env={**os.environ, "no_proxy": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            check=True,
        ).stdout

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def server(program, tmp_path_factory):
    if sys.platform == "win32":
        pytest.skip("gunicorn needs POSIX")
    name = f"test-examples-{secrets.token_hex(8)}"
    running = Server(program, tmp_path_factory.mktemp(program), f"shm:{name}?private&clients=100")
    try:
        running.wait_until_it_answers()
        yield running
    finally:
        running.stop()
        # A server that had to be killed leaves its private store.
        for folder in directory.folders():
            for path in folder.glob(f"{name}*"):
                path.unlink()


def test_a_real_server_shows_the_shop(server):
    status, headers, page = server.ask("/", client="198.51.100.1")

    assert status == 200
    assert headers.get_content_type() == "text/html"
    assert '<a href="/search">' in page


def test_a_real_server_refuses_the_sixth_search_whichever_worker_is_asked(server):
    answers = [server.ask("/search", client="198.51.100.2") for _ in range(6)]

    assert [status for status, _, _ in answers] == [200, 200, 200, 200, 200, 429]
    for remaining, (_, _, text) in zip((4, 3, 2, 1, 0), answers, strict=False):
        assert f"{remaining} more would be answered now" in text
    assert 1 <= int(answers[-1][1]["Retry-After"]) <= 12
    assert server.ask("/search", client="198.51.100.3")[0] == 200
    assert "REJECTED by speed-limit /search client: 198.51.100.2 from" in server.log.read_text()


def test_a_real_server_makes_one_report_at_a_time(server):
    with ThreadPoolExecutor(4) as clients:
        answers = [*clients.map(lambda _: server.ask("/report", client="198.51.100.4"), range(4))]

    assert {status for status, _, _ in answers} == {200, 503}
    for status, headers, text in answers:
        if status == 200:
            assert text == "All is well.\n"
        else:
            assert int(headers["Retry-After"]) >= 1


def test_a_real_server_gives_everybody_what_is_exempt(server):
    robot = {"client": "198.51.100.5", "agent": "zgrab/0.x"}

    assert server.ask("/", **robot)[0] == 403
    assert [server.ask("/healthz", **robot)[0] for _ in range(150)] == [200] * 150
    status, headers, _ = server.ask("/static/site.css", **robot)
    assert status == 200
    assert headers.get_content_type() == "text/css"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on this machine")
def test_what_the_first_lines_say_is_seen(server):
    pairs = re.findall(r"^Ask +(.+)\nSee +(.+)$", "\n".join(server.lines), re.MULTILINE)

    assert len(pairs) == 3
    for command, outcome in pairs:
        seen = server.run(command)
        for words in re.findall(r'"(.+?)"', outcome):
            assert words in seen

"""Behind a real nginx: set up as the README says, each client counts by its own address.

Set up wrongly, no client is refused for what others do, and the log says what is wrong.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from figures import START_SECONDS, STOP_SECONDS
from setups import BIN, HERE, which_server
from wire import Wire, free_port

NGINX = which_server("nginx")
FORGED = "203.0.113.66"
FIRST = "127.0.0.99"
"""The client that asks until the server answers."""

CONFIGURATION = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 64; }}
http {{
    access_log off; {outer}
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; uwsgi_temp_path {folder}/uwsgi;
    fastcgi_temp_path {folder}/fastcgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
{location}
        }}
    }}
}}
"""
X_FORWARDED_FOR = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"


class Behind(NamedTuple):
    """A server behind nginx: its command, what nginx is told, and which proxies the site declares."""

    command: list[str]
    location: str
    declared: dict[str, object]
    needs: str = "gunicorn"
    outer: str = ""


def gunicorn(bind):
    return [
        *(sys.executable, "-m", "gunicorn", "behind:application", "--bind", bind),
        *("--config", str(HERE / "gunicorn_settings.py"), "--workers", "2"),
    ]


WAYS = {
    "gunicorn on a unix socket": Behind(
        gunicorn("unix:{folder}/site.sock"),
        "proxy_pass http://unix:{folder}/site.sock; " + X_FORWARDED_FOR,
        {"trusted_proxies": ["unix"]},
    ),
    "gunicorn on a TCP port": Behind(
        gunicorn("127.0.0.1:{inner}"),
        "proxy_pass http://127.0.0.1:{inner}; " + X_FORWARDED_FOR,
        {"trusted_proxies": ["127.0.0.1"]},
    ),
    "uWSGI by uwsgi_pass": Behind(
        [
            *(
                str(BIN / "uwsgi"),
                "--uwsgi-socket",
                "127.0.0.1:{inner}",
                "--master",
                "--processes",
                "2",
            ),
            *("--home", sys.prefix, "--die-on-term"),
            *("--wsgi-file", str(HERE / "behind.py")),
        ],
        "uwsgi_pass 127.0.0.1:{inner}; uwsgi_param REQUEST_METHOD $request_method;"
        " uwsgi_param PATH_INFO $document_uri; uwsgi_param REMOTE_ADDR $remote_addr;"
        " uwsgi_param SERVER_NAME $server_name; uwsgi_param SERVER_PORT $server_port;"
        " uwsgi_param SERVER_PROTOCOL $server_protocol;",
        {"trusted_proxies": []},
        needs="uwsgi",
    ),
    "granian, with Forwarded and underscores let through": Behind(
        [
            *(str(BIN / "granian"), "--interface", "wsgi", "--host", "127.0.0.1"),
            *("--port", "{inner}", "--workers", "2", "--no-ws", "behind:application"),
        ],
        'proxy_pass http://127.0.0.1:{inner}; proxy_set_header Forwarded "for=$remote_addr";',
        {"trusted_proxies": ["127.0.0.1"], "forwarded": "forwarded"},
        needs="granian",
        outer="underscores_in_headers on;",
    ),
}


def ask(port, source, headers):
    """A request from one of this host's own addresses."""
    with closing(Wire(port, source=source)) as wire:
        wire.send("GET", "/", [*headers, ("Connection", "close")])
        answer = wire.answer()
        return answer.status, answer.text


def started(stack, command, folder, environ=None):
    """Start a process that is ended with the test."""
    log = stack.enter_context((folder / "log").open("ab"))
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )

    def end():
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    stack.callback(end)


@contextmanager
def running(way):
    """The port of nginx in front of a server, and the file with the server's log."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    if shutil.which(str(BIN / way.needs)) is None:
        pytest.skip(f"{way.needs} is not installed")
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="guardrails-nginx-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        places = {"folder": str(folder), "inner": str(free_port()), "port": str(free_port())}
        settings = CONFIGURATION.format(
            location=way.location.format(**places), outer=way.outer, **places
        )
        (folder / "nginx.conf").write_text(settings)
        environ = {key: value for key, value in os.environ.items() if not key.startswith("GUARDRAILS")}
        environ |= {"DECLARED": json.dumps(way.declared), "PYTHONPATH": str(HERE)}
        environ |= {"SITE_STORE": f"shm:nginx-{secrets.token_hex(6)}?private"}
        command = [part.format(**places) if "{" in part else part for part in way.command]
        started(stack, command, folder, environ)
        started(stack, [NGINX, "-c", str(folder / "nginx.conf")], folder)
        port = int(places["port"])
        await_answer(port, folder)
        yield port, folder / "log"


@pytest.fixture(params=WAYS)
def nginx(request):
    """The port of nginx in front of a server, set up as the README says."""
    with running(WAYS[request.param]) as (port, _):
        yield port


def await_answer(port, folder):
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if ask(port, FIRST, [])[0] == 200:
                return
        except (OSError, ValueError):
            pass
        logs = [file.read_text(errors="replace")[-2000:] for file in folder.glob("*log")]
        assert time.monotonic() < deadline, f"nginx does not answer: {json.dumps(logs)}"
        time.sleep(0.05)


FORGERIES = [
    [],
    [("X-Forwarded-For", FORGED)],
    [("X_Forwarded_For", FORGED)],
    [("X-Forwarded-For", FORGED), ("X_FORWARDED_FOR", FORGED), ("X-Real-IP", FORGED)],
    [("Forwarded", f"for={FORGED}"), ("REMOTE_ADDR", FORGED)],
]


def test_each_client_is_counted_apart_and_none_can_be_another(nginx):
    """Five requests of each, with other forged headers every time: three are admitted."""
    for source in ("127.0.0.5", "127.0.0.6"):
        answers = [ask(nginx, source, forgery) for forgery in FORGERIES]

        assert answers[:3] == [(200, source)] * 3
        assert [status for status, _ in answers[3:]] == [429, 429]


def behind(location, **declared):
    """Gunicorn on a TCP port behind nginx."""
    location = "proxy_pass http://127.0.0.1:{inner}; " + location
    return Behind(gunicorn("127.0.0.1:{inner}"), location, declared)


WRONG = {
    "nginx does not send the header": (
        behind("", trusted_proxies=["loopback"], exempt=["loopback"]),
        [200] * 8,
        "127.0.0.1 is a trusted proxy, and its request has no x-forwarded-for: ",
        "[client-is-proxy]",
    ),
    "nginx sends another header": (
        behind("proxy_set_header X-Real-IP $remote_addr;", trusted_proxies=["loopback"]),
        [200] * 8,
        "and its request has x-real-ip '127.0.0.8' and no x-forwarded-for: ",
        "[client-is-proxy]",
    ),
    "one proxy more is declared": (
        behind(X_FORWARDED_FOR, proxy_hops=2),
        [200] * 8,
        "and its x-forwarded-for '127.0.0.8' has fewer entries than proxy_hops=2: ",
        "[client-is-proxy]",
    ),
    "the networks of clients are declared": (
        behind(X_FORWARDED_FOR, trusted_proxies=["127.0.0.0/8"]),
        [200] * 8,
        "and its x-forwarded-for '127.0.0.8' names no address but those of trusted proxies: ",
        "[client-is-proxy]",
    ),
    "no proxy is declared": (
        behind(X_FORWARDED_FOR),
        [200] * 8,
        "127.0.0.1 sends a forwarding header and trusted_proxies was not given: ",
        "[undeclared-proxy]",
    ),
    "other networks are declared": (
        behind(X_FORWARDED_FOR, trusted_proxies=["10.0.0.0/8"]),
        [200, 200, 429, 429, 429, 429, 429, 429],
        "127.0.0.1 sends a forwarding header and is not in trusted_proxies=['10.0.0.0/8']: ",
        "[undeclared-proxy]",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_set_up_is_found_by_the_line_that_it_makes(wrong):
    way, statuses, seen, code = WRONG[wrong]
    with running(way) as (port, log):
        assert [ask(port, "127.0.0.8", [])[0] for _ in statuses] == statuses
        said = [line for line in log.read_text().splitlines() if code in line]

    # Each of the two workers says it once.
    assert 1 <= len(said) <= 2
    assert all(seen.replace("127.0.0.8", FIRST) in line or seen in line for line in said)


def test_junk_that_makes_the_server_empty_the_header_evades_no_limit():
    """Granian empties a header with bytes outside of ASCII, and the proxy's entry with it."""
    way = WAYS["granian, with Forwarded and underscores let through"]
    way = way._replace(
        command=["1" if part == "2" else part for part in way.command],
        location="proxy_pass http://127.0.0.1:{inner}; " + X_FORWARDED_FOR,
        declared={"trusted_proxies": ["127.0.0.1"]},
    )
    with running(way) as (port, log):
        junk = [("X-Forwarded-For", "\xff")]
        statuses = [ask(port, "127.0.0.8", junk)[0] for _ in range(5)]

        assert statuses == [200, 200, 200, 429, 429]
        assert ask(port, "127.0.0.8", []) == (200, "127.0.0.8")
        assert "[client-is-proxy]" not in log.read_text()


def test_a_cdn_before_nginx_is_found_by_its_many_visitors():
    """All that nginx sees is the CDN, whose visitors have many agents."""
    way = behind(X_FORWARDED_FOR, trusted_proxies=["127.0.0.1"])
    with running(way) as (port, log):
        for number in range(2100):
            ask(port, "127.0.0.8", [("User-Agent", f"Browser/{number % 40}")])
        said = [line for line in log.read_text().splitlines() if "[one-client]" in line]

    assert said
    assert all(line.startswith("127.0.0.8 is the client of ") for line in said)

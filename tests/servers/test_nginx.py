"""Behind a real nginx, set up as the README says, each client counts by its own address."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import pytest
from figures import START_SECONDS, STOP_SECONDS
from setups import BIN, HERE, which_server
from wire import Wire, free_port

NGINX = which_server("nginx")
FORGED = "203.0.113.66"

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
    """A server behind nginx: its command, what nginx is told, and how the site is set up."""

    command: list[str]
    location: str
    environ: dict[str, str]
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
        {"TRUSTED_PROXIES": '["unix"]'},
    ),
    "gunicorn on a TCP port": Behind(
        gunicorn("127.0.0.1:{inner}"),
        "proxy_pass http://127.0.0.1:{inner}; " + X_FORWARDED_FOR,
        {"TRUSTED_PROXIES": '["127.0.0.1"]'},
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
        {"TRUSTED_PROXIES": "[]"},
        needs="uwsgi",
    ),
    "granian, with Forwarded and underscores let through": Behind(
        [
            *(str(BIN / "granian"), "--interface", "wsgi", "--host", "127.0.0.1"),
            *("--port", "{inner}", "--workers", "2", "--no-ws", "behind:application"),
        ],
        'proxy_pass http://127.0.0.1:{inner}; proxy_set_header Forwarded "for=$remote_addr";',
        {"TRUSTED_PROXIES": '["127.0.0.1"]', "FORWARDED": "forwarded"},
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
        command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )

    def end():
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)

    stack.callback(end)


@pytest.fixture(params=WAYS)
def nginx(request):
    """The port of nginx in front of a server."""
    way = WAYS[request.param]
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
        environ |= way.environ
        environ |= {"SITE_STORE": f"shm:nginx-{secrets.token_hex(6)}?private", "PYTHONPATH": str(HERE)}
        command = [part.format(**places) if "{" in part else part for part in way.command]
        started(stack, command, folder, environ)
        started(stack, [NGINX, "-c", str(folder / "nginx.conf")], folder)
        port = int(places["port"])
        await_answer(port, folder)
        yield port


def await_answer(port, folder):
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if ask(port, "127.0.0.99", [])[0] == 200:
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

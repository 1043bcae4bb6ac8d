"""What a real browser sends for a page of another site, and what becomes of it.

`127.0.0.1` and `localhost` are two sites to a browser, and one host to the tests.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from html import escape

import pytest
from werkzeug.serving import make_server
from wire import ask, free_port

import guardrails
from guardrails import SpeedLimit, testing

PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
CHROMIUM = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
SECONDS = 90

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: none of " + ", ".join(PROGRAMS)
)


@contextmanager
def served(app):
    """Serve an app in threads of this process; its port."""
    server = make_server("127.0.0.1", free_port(), app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def visit(url, folder):
    """Open a page in a browser with a profile of its own."""
    browser = subprocess.Popen(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--no-proxy-server", "--disable-background-networking", "--disable-dev-shm-usage"),
            *("--remote-debugging-port=0", f"--user-data-dir={folder}", url),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()


def until(condition, what):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never in {SECONDS} s: {what}"
        time.sleep(0.05)


def html(start_response, text):
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
    return [f"<!DOCTYPE html><title>page</title>{text}".encode()]


def page_of_forms(target, count):
    """A page that posts so many forms to a login, and shows so many images of that site."""
    form = f'<form method="post" target="frame{{0}}" action="{escape(target)}/login"></form>'
    frame = f'<iframe name="frame{{0}}"></iframe><img src="{escape(target)}/image?{{0}}">'
    parts = "".join((frame + form).format(number) for number in range(count))
    return parts + "<script>for (const form of document.forms) form.submit()</script>"


@pytest.mark.parametrize("foreign", [True, False], ids=["foreign page", "own page"])
def test_a_page_has_its_visitors_banned_only_if_it_is_the_sites_own(tmp_path, foreign):
    came = []

    def site(environ, start_response):
        return html(start_response, page_of_forms("", 8) if environ["PATH_INFO"] == "/" else "")

    guarded = guardrails.throttle(
        site,
        SpeedLimit("5/minute", path="/login", methods=["POST"], ban="20m"),
        SpeedLimit("5/minute", path="/image", ban="20m"),
        store=testing.memory_store(),
        trusted_proxies=(),
    )

    def noting(environ, start_response):
        response = guarded(environ, start_response)
        came.append((environ["PATH_INFO"], environ["guardrails.decision"].admitted))
        return response

    def foreign_site(environ, start_response):
        return html(start_response, page_of_forms(f"http://localhost:{port}", 8))

    def all_came():
        return all([path for path, _ in came].count(page) == 8 for page in ("/login", "/image"))

    with served(noting) as port, served(foreign_site) as foreign_port:
        home = f"http://127.0.0.1:{foreign_port}/" if foreign else f"http://localhost:{port}/"
        with visit(home, tmp_path):
            until(all_came, "8 forms and 8 images have come")
        refused = [path for path, admitted in came if not admitted]
        status = ask(port, "/").status

    if foreign:
        assert sorted(refused) == ["/image"] * 3 + ["/login"] * 3
        assert status == 200
    else:
        assert status == 429


def test_a_page_of_another_origin_makes_ten_calls_at_ten_a_minute(tmp_path):
    """The app has its own CORS within; the page tells its own site which statuses it has read."""
    methods, told = [], []

    def api(environ, start_response):
        methods.append(environ["REQUEST_METHOD"])
        headers = [("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Methods", "PUT")]
        start_response("200 OK", headers)
        return [b"done"]

    guarded = guardrails.throttle(
        api,
        SpeedLimit("10/minute", ban="1h"),
        store=testing.memory_store(),
        trusted_proxies=(),
    )

    def front(environ, start_response):
        if environ["PATH_INFO"] == "/told":
            told.append(environ["QUERY_STRING"])
        script = f"""<script>(async () => {{
            const read = []
            for (let number = 0; number < 10; number++)
                read.push(await fetch(`http://localhost:{port}/items/${{number}}`, {{method: "PUT"}})
                    .then(answer => answer.status, () => "failed"))
            await fetch("/told?" + read.join())
        }})()</script>"""
        return html(start_response, script)

    with (
        served(guarded) as port,
        served(front) as front_port,
        visit(f"http://127.0.0.1:{front_port}/", tmp_path),
    ):
        until(lambda: told, "the page has told what it has read")

    assert told == [",".join(["200"] * 10)]
    assert methods == ["OPTIONS", "PUT"] * 10

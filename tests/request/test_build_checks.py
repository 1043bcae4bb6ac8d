"""Set-ups that do nothing or cannot work: an error when they are built, or a warning under a code."""

import functools
import importlib.util

import flask
import pytest

import guardrails
from guardrails import BlockAgents, ConfigurationError, SpeedLimit, testing, throttle
from guardrails.request import place_of_call
from support import Browser, Exchange, lines

LIMIT = SpeedLimit("1/minute")


def refusal_of(build):
    with pytest.raises(ConfigurationError) as caught:
        build()
    return str(caught.value)


def test_a_throttle_without_guards_is_said(caplog):
    throttle(testing.hello)

    (line,) = lines(caplog, level="WARNING")
    assert line.startswith("throttle() was given no guards, so it refuses nothing: ")
    assert line.endswith("[no-guards]")


@pytest.mark.parametrize("options", [{"enabled": False}, {"interruptible": True}])
def test_a_throttle_without_guards_that_is_off_or_serves_a_watchdog_is_not_remarked_on(caplog, options):
    throttle(testing.hello, **options)

    assert lines(caplog, level="WARNING") == []


@pytest.mark.parametrize("build", [lambda: throttle(LIMIT), lambda: LIMIT(LIMIT)])
def test_a_guard_in_the_place_of_the_app_is_refused(build):
    assert refusal_of(build) == (
        f"throttle: {LIMIT!r} is a guard, and the app comes before the guards: write "
        "throttle(app, guard)"
    )


class ASGIClass:
    async def __call__(self, scope, receive, send):
        pass


class ASGIClassWithoutAsync:
    def __call__(self, scope, receive, send):
        pass


async def asgi_function(scope, receive, send):
    pass


async def async_function(environ, start_response):
    pass


ASGI_APPS = [
    ASGIClass(),
    ASGIClassWithoutAsync(),
    asgi_function,
    async_function,
    functools.partial(asgi_function),
]


@pytest.mark.parametrize("app", ASGI_APPS, ids=lambda app: getattr(app, "__name__", type(app).__name__))
def test_an_asgi_app_is_refused_when_built(app):
    for message in (refusal_of(lambda: throttle(app, LIMIT)), refusal_of(lambda: LIMIT(app))):
        assert (
            " is an ASGI app, as those of Starlette and FastAPI are, and guardrails guards WSGI "
            in (message)
        )
        assert "a2wsgi.ASGIMiddleware" in message


def flask_app():
    app = flask.Flask("shop")
    app.add_url_rule("/", view_func=lambda: "hello")
    return app


def test_a_flask_app_that_calls_its_own_throttle_is_an_error_with_the_remedy(store):
    app = flask_app()
    app.wsgi_app = throttle(app, SpeedLimit("9/minute"), store=store)

    for _ in range(2):
        with pytest.raises(ConfigurationError) as caught:
            Exchange(app).finish()
        assert str(caught.value) == (
            f"throttle: {app!r} calls the throttle that wraps it, for ever: write "
            "app.wsgi_app = guardrails.throttle(app.wsgi_app, ...)"
        )
    assert not store.requests()


def test_a_flask_app_may_be_wrapped_whole(store):
    assert Browser(throttle(flask_app(), LIMIT, store=store)).statuses(2) == [200, 429]


def test_a_flask_app_may_call_the_throttle_before_it_for_another_path(store):
    """An internal redirect, as some apps make one."""
    app = flask_app()
    guarded = throttle(app, SpeedLimit("9/minute"), store=store)

    @app.route("/old")
    def old():
        answers = []
        environ = {**flask.request.environ, "PATH_INFO": "/"}
        return b"".join(guarded(environ, lambda status, *_: answers.append(status)))

    assert Browser(guarded).get("/old").text == "hello"


@pytest.mark.parametrize("pattern", ["badagents.txt", "/etc/guardrails/agents.conf", "robots.LIST"])
def test_a_file_name_in_the_place_of_a_pattern_is_refused(pattern):
    assert refusal_of(lambda: BlockAgents("curl", pattern)) == (
        f"patterns: {pattern!r} looks like the name of a file: write "
        f"BlockAgents.from_file({pattern!r}), or escape the dot if it is a pattern"
    )


def test_a_path_of_a_file_that_is_there_is_refused_whatever_its_name(tmp_path):
    (tmp_path / "agents").write_text("curl\n")

    assert "looks like the name of a file" in refusal_of(lambda: BlockAgents(str(tmp_path / "agents")))


def test_a_file_without_patterns_is_said(tmp_path, caplog):
    (tmp_path / "agents.txt").write_text("# none yet\n\n")
    BlockAgents.from_file(tmp_path / "agents.txt")

    assert lines(caplog, level="WARNING") == [
        f"block-agents: {tmp_path}/agents.txt has no pattern, so it refuses nothing until it has one"
    ]


@pytest.mark.parametrize("pattern", ["Mozilla/5.0", r"fetcher\.txt", "curl", "/bot.html"])
def test_a_pattern_that_is_no_file_name_is_taken(pattern):
    BlockAgents(pattern)


@pytest.mark.parametrize(
    ("guard", "options", "exempt"),
    [
        (SpeedLimit("1/s", path="/api", exempt_paths="/api"), {}, ["/api"]),
        (SpeedLimit("1/s", path=["/a/x", "/b"]), {"exempt_paths": ["/a", "/b"]}, ["/a", "/b"]),
        (SpeedLimit("1/s"), {"exempt_paths": "/"}, ["/"]),
    ],
)
def test_exempt_paths_that_leave_a_guard_nothing_are_refused(guard, options, exempt):
    assert refusal_of(lambda: throttle(testing.hello, guard, **options)) == (
        f"exempt_paths: {exempt} exempts all that {guard.default_name()} covers, so this guard would "
        "do nothing: leave it out, or exempt less"
    )


def test_exempt_paths_that_leave_a_guard_something_are_taken():
    throttle(testing.hello, SpeedLimit("1/s", path=["/a", "/b"]), exempt_paths=["/a", "/b/x"])


@pytest.mark.parametrize("several", [True, False])
def test_a_store_in_memory_under_several_workers_is_said(caplog, several):
    site = Browser(throttle(testing.hello, LIMIT, store="memory:"))
    site.get("/", environ_overrides={"wsgi.multiprocess": several})
    site.get("/", environ_overrides={"wsgi.multiprocess": several})

    said = lines(caplog, level="WARNING")
    assert len(said) == several
    for line in said:
        assert line == (
            'store="memory:" counts in each process alone, and there are several: each of them admits '
            'all that the guards allow: write store="shm:NAME", which all processes share '
            "[memory-store-per-worker]"
        )


def test_an_inner_throttle_without_a_store_of_its_own_uses_the_outer_ones(caplog, shared):
    inner = throttle(testing.hello, SpeedLimit("1/minute", name="inner"), store=None)
    site = Browser(throttle(inner, LIMIT, store=shared))
    site.get("/", environ_overrides={"wsgi.multiprocess": True})

    assert lines(caplog, level="WARNING") == []


def load(path):
    spec = importlib.util.spec_from_file_location("app_of_a_release", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


APP = """
from guardrails import SpeedLimit, testing, throttle
application = throttle(testing.hello, SpeedLimit("1/minute"), store={store!r})
"""


@pytest.mark.parametrize(
    "folder",
    [
        "releases/one",
        "versions/42/shop",
        "release-8",
        "20261128093000",
        "2026-11-28T09-30",
        "v1.4.2",
        "3f9c2a17d0b84e5566aa77bb88cc99dd00ee11ff",
        "deploy/3f9c2a1/shop",
    ],
)
def test_an_unnamed_store_in_the_folder_of_a_release_is_said(tmp_path, caplog, folder):
    path = tmp_path / folder / "wsgi.py"
    path.parent.mkdir(parents=True)
    path.write_text(APP.format(store=None))
    load(path)

    (line,) = lines(caplog, level="WARNING")
    assert line.startswith(f"the store has no name, so it is named after {path}, in a folder of one ")
    assert line.endswith(
        "the next release begins with empty counts and no bans: name the store, as in "
        'store="shm:shop", or with GUARDRAILS_STORE in the environment [unnamed-store-moves]'
    )


def test_an_unnamed_store_behind_a_link_to_the_release_is_said(tmp_path, caplog):
    (tmp_path / "shop-a").mkdir()
    (tmp_path / "shop-a" / "wsgi.py").write_text(APP.format(store=None))
    (tmp_path / "current").symlink_to("shop-a")
    load(tmp_path / "current" / "wsgi.py")

    assert [line.rpartition(" ")[2] for line in lines(caplog, level="WARNING")] == [
        "[unnamed-store-moves]"
    ]


@pytest.mark.parametrize(
    ("folder", "store", "environment"),
    [
        ("shop", None, ""),
        ("python3.11/site-packages/shop", None, ""),
        ("defaced", None, ""),
        ("2026", None, ""),
        ("releases/one", "shm:shop", ""),
        ("releases/one", None, "shm:shop"),
    ],
)
def test_a_store_that_stays_where_it_is_is_not_remarked_on(
    tmp_path, caplog, monkeypatch, folder, store, environment
):
    monkeypatch.setenv("GUARDRAILS_STORE", environment)
    path = tmp_path / folder / "wsgi.py"
    path.parent.mkdir(parents=True)
    path.write_text(APP.format(store=store))
    load(path)

    assert lines(caplog, level="WARNING") == []


@pytest.mark.parametrize(
    "build",
    [
        lambda: throttle(testing.hello, LIMIT, store="memory:"),
        lambda: LIMIT(testing.hello, store="memory:"),
    ],
)
def test_a_throttle_that_is_built_for_each_request_is_said_once(caplog, build):
    def app(environ, start_response):
        return build()(environ, start_response)

    assert Browser(app).statuses(30) == [200] * 30

    (line,) = lines(caplog, level="WARNING")
    assert line.startswith(f"{__file__}, line ")
    assert "throttle() has been called 10 times within requests: " in line
    assert line.endswith("[built-in-a-request]")


def test_throttles_that_are_built_outside_of_requests_are_not_remarked_on(caplog):
    """A dispatcher that builds its few apps when each is first asked for is none either."""
    apps = [throttle(testing.hello, LIMIT, store="memory:") for _ in range(30)]
    lazy = {}

    def app(environ, start_response):
        if environ["PATH_INFO"] not in lazy:
            lazy[environ["PATH_INFO"]] = throttle(testing.hello, LIMIT, store="memory:")
        return lazy[environ["PATH_INFO"]](environ, start_response)

    site = Browser(app)
    for number in range(place_of_call.MOST_IN_REQUESTS - 1):
        site.statuses(3, f"/{number}")

    assert len(apps) == 30
    assert lines(caplog, level="WARNING") == []


@pytest.mark.parametrize("agent", ["", None])
def test_the_empty_agent_is_found_by_its_pattern(serve, agent):
    site = serve(BlockAgents("^$"), agent=agent)

    assert site.get("/").status_code == 403
    assert site.at(agent="Mozilla/5.0").get("/").status_code == 200


def test_an_empty_agent_in_which_nothing_is_found_passes_or_not_as_missing_says(serve):
    assert serve(BlockAgents("zgrab"), agent="").get("/").status_code == 200
    assert serve(BlockAgents("zgrab", missing="refuse"), agent=None).get("/").status_code == 403
    assert guardrails.BlockAgents("zgrab").missing == "allow"

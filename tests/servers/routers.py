"""A site before the routers of real frameworks, each behind guards on /guarded and open for /free.

The header `Router: NAME` chooses one of them, which answers with the view that it chose. `Router: *`
asks them all about one and the same request, as the server delivered it, and tells in JSON what each
said. A framework is imported when it is first asked, so that servers start as fast as without them.
"""

import importlib.util
import json
import os
import threading
from functools import cache
from typing import NamedTuple
from urllib.parse import quote, unquote

import guardrails
from guardrails import SpeedLimit
from guardrails.store.urls import store_from_url

MOST_GUARDED = 100_000
"""Whoever has more left than that was not counted by the guard on /guarded."""


def by_hand():
    """No router at all, as in the small apps of one file."""

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        view = "other"
        if path in ("/guarded", "/deep/guarded") or path.startswith("/guarded/"):
            view = "guarded"
        elif path == "/free" or path.startswith("/free/"):
            view = "free"
        return spoken(start_response, view, path)

    return app


def by_shift_path_info():
    """The standard library's own way down a path, from one segment to the next."""
    from wsgiref.util import shift_path_info

    def app(environ, start_response):
        name = shift_path_info(environ)
        if name == "deep":
            name = shift_path_info(environ)
        view = name if name in ("guarded", "free") else "other"
        return spoken(start_response, view, environ["SCRIPT_NAME"] + environ["PATH_INFO"])

    return app


def by_dispatcher():
    """Apps mounted below one another by werkzeug."""
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    def part(view):
        def app(environ, start_response):
            return spoken(start_response, view, environ["SCRIPT_NAME"] + environ["PATH_INFO"])

        return app

    mounts = {"/guarded": part("guarded"), "/free": part("free"), "/deep": by_werkzeug(strictly=False)}
    return DispatcherMiddleware(by_werkzeug(strictly=False), mounts)


def by_werkzeug(*, strictly=True):
    from werkzeug.routing import Map, Rule
    from werkzeug.wrappers import Request, Response

    rules = [
        Rule("/guarded", endpoint="guarded"),
        Rule("/guarded/<name>", endpoint="guarded"),
        Rule("/guarded/<int:number>/", endpoint="guarded"),
        Rule("/deep/guarded", endpoint="guarded"),
        Rule("/free", endpoint="free"),
        Rule("/free/<name>", endpoint="free"),
    ]
    if not strictly:
        rules.append(Rule("/<path:rest>", endpoint="other"))
    urls = Map(rules, strict_slashes=strictly, merge_slashes=strictly)

    def app(environ, start_response):
        request = Request(environ)

        def answer(endpoint, _values):
            return Response(words(endpoint, request.root_path.rstrip("/") + request.path))

        response = urls.bind_to_environ(environ).dispatch(answer, catch_http_exceptions=True)
        return response(environ, start_response)

    return app


def by_flask():
    from flask import Flask, request

    app = Flask("routers", static_folder=None)

    def view(name):
        return lambda **_arguments: words(name, request.path)

    app.add_url_rule("/guarded", "static", view("guarded"))
    app.add_url_rule("/guarded/<name>", "dynamic", view("guarded"))
    app.add_url_rule("/guarded/below/", "with a slash", view("guarded"))
    app.add_url_rule("/guarded/below/<path:rest>", "a path", view("guarded"))
    app.add_url_rule("/deep/guarded", "deep", view("guarded"))
    app.add_url_rule("/free", "free", view("free"))
    app.add_url_rule("/free/<name>", "free dynamic", view("free"))
    return app


def by_django():
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpResponse
    from django.urls import include, path, re_path

    def view(name):
        return lambda request, **_arguments: HttpResponse(words(name, request.path_info))

    guarded, free = view("guarded"), view("free")
    urls = (
        path("guarded", guarded),
        path("guarded/", include([path("", guarded), path("<str:name>", guarded)])),
        path("guarded/below/<path:rest>", guarded),
        re_path(r"^guarded$", guarded),
        re_path(r"^guarded/?$", guarded),
        # Where the end is not the pattern's last character, Django does not ask for a full match.
        re_path(r"^(?:guarded$)", guarded),
        re_path(r"^guarded/(?P<name>\w+$)", guarded),
        path("deep/", include([path("guarded", guarded)])),
        path("free", free),
        path("free/<str:name>", free),
        re_path(r"^free$", free),
        re_path(r"", view("other")),
    )
    if not settings.configured:
        settings.configure(ROOT_URLCONF=urls, LOGGING_CONFIG=None)

    class Handler(WSGIHandler):
        def resolve_request(self, request):
            # A process has one set of settings, which other code may have configured before.
            request.urlconf = urls
            return super().resolve_request(request)

    return Handler()


def by_falcon():
    import falcon

    class View:
        def __init__(self, name):
            self.name = name

        def on_get(self, request, response, **_arguments):
            response.text = words(self.name, request.path)

    app = falcon.App()
    app.req_options.strip_url_path_trailing_slash = True
    app.add_route("/guarded", View("guarded"))
    app.add_route("/guarded/{name}", View("guarded"))
    app.add_route("/deep/guarded", View("guarded"))
    app.add_route("/free", View("free"))
    app.add_route("/free/{name}", View("free"))
    app.add_sink(View("other").on_get, "/")
    return app


def by_bottle():
    """Bottle below Bottle, with a middleware in between: there both decode the path."""
    app, below = bottle_app(), bottle_app()

    def in_between(environ, start_response):
        return below(environ, start_response)

    app.mount("/deep/", in_between)
    app.get("/<rest:path>", callback=lambda rest: words("other", "/" + rest))
    return app


def bottle_app():
    from bottle import Bottle, request

    app = Bottle()

    def view(name):
        return lambda **_arguments: words(name, request.path)

    app.get("/guarded", callback=view("guarded"))
    app.get("/guarded/<name>", callback=view("guarded"))
    app.get("/<kind:re:guarded>", callback=view("guarded"))
    app.get("/<kind:re:guarded>/", callback=view("guarded"))
    app.get("/free", callback=view("free"))
    app.get("/free/<name>", callback=view("free"))
    return app


def by_pyramid():
    from pyramid.config import Configurator
    from pyramid.response import Response

    def view(name):
        return lambda request: Response(words(name, request.path_info))

    with Configurator() as config:
        for number, (pattern, name) in enumerate(
            [
                ("/guarded", "guarded"),
                ("/guarded/{name}", "guarded"),
                ("/guarded/below/*rest", "guarded"),
                ("/deep/guarded", "guarded"),
                ("/free", "free"),
                ("/free/{name}", "free"),
                ("/*rest", "other"),
            ]
        ):
            config.add_route(str(number), pattern)
            config.add_view(view(name), route_name=str(number))
    return config.make_wsgi_app()


def by_pyramids_traversal():
    """Without routes: Pyramid walks a tree of resources, and the rest of the path names a view."""
    from pyramid.config import Configurator
    from pyramid.response import Response

    def view(name):
        def answer(request):
            rest = (*request.traversed, request.view_name, *request.subpath)
            return Response(words(name, "/" + "/".join(rest)))

        return answer

    with Configurator(root_factory=lambda _request: {"deep": {}}) as config:
        config.add_view(view("guarded"), name="guarded")
        config.add_view(view("free"), name="free")
        config.add_view(view("other"))
        config.add_notfound_view(view("other"))
    return config.make_wsgi_app()


class Router(NamedTuple):
    """How an app is made, and the package that it needs."""

    make: object
    needs: str


ROUTERS = {
    "plain": Router(by_hand, "wsgiref"),
    "shift-path-info": Router(by_shift_path_info, "wsgiref"),
    "dispatcher": Router(by_dispatcher, "werkzeug"),
    "werkzeug": Router(by_werkzeug, "werkzeug"),
    "werkzeug-lenient": Router(lambda: by_werkzeug(strictly=False), "werkzeug"),
    "flask": Router(by_flask, "flask"),
    "django": Router(by_django, "django"),
    "falcon": Router(by_falcon, "falcon"),
    "bottle": Router(by_bottle, "bottle"),
    "pyramid": Router(by_pyramid, "pyramid"),
    "pyramid-traversal": Router(by_pyramids_traversal, "pyramid"),
}


def words(view, path):
    """What a view answers: its name, and the path as its framework understood it."""
    return f"{view} {quote(path, errors='replace')}"


def spoken(start_response, view, path):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [words(view, path).encode()]


class Told(NamedTuple):
    """What a router made of a request: `view` is empty where none was called."""

    view: str
    path: str
    covered: bool
    exempt: bool

    def leads_round(self):
        """Whether a view was called past its guard, or by an exemption that is not its own."""
        if self.view == "guarded":
            return self.exempt or not self.covered
        return self.view == "other" and self.exempt and not f"{self.path}/".startswith("/free/")


def build(name, store):
    """A router's app behind the guards. Its answers say in headers what the guards decided."""
    return guardrails.throttle(
        saying_what_was_decided(ROUTERS[name].make()),
        SpeedLimit(f"{MOST_GUARDED}/day", by="all", path=["/guarded", "/deep/guarded"], name="guarded"),
        SpeedLimit(f"{10 * MOST_GUARDED}/day", by="all", name="everything"),
        store=store,
        exempt_paths=["/free"],
        trusted_proxies="loopback",
        forwarded="clientaddress",
    )


def saying_what_was_decided(app):
    def saying(environ, start_response):
        remaining = environ["guardrails.decision"].remaining
        covered = remaining is not None and remaining <= MOST_GUARDED
        said = [("Covered", str(covered)), ("Exempt", str(remaining is None))]

        def start(status, headers, exc_info=None):
            return start_response(status, [*headers, *said], *([exc_info] if exc_info else []))

        return app(environ, start)

    return saying


def tell(app, environ):
    """Ask one router about a request."""
    said = {}

    def start_response(status, headers, exc_info=None):
        said.update(headers, status=status)

    response = app(dict(environ), start_response)
    try:
        text = b"".join(response).decode()
    finally:
        getattr(response, "close", int)()
    view, path = text.split(" ") if said["status"].startswith("200") else ("", "")
    return Told(view, unquote(path), said["Covered"] == "True", said["Exempt"] == "True")


def tell_or_say_why(app, environ):
    """The same, where the framework may raise: then no view was called."""
    try:
        return tell(app, environ)
    except Exception as error:
        return Told("", repr(error), False, False)


def installed():
    return [name for name, router in ROUTERS.items() if importlib.util.find_spec(router.needs)]


@cache
def store():
    return store_from_url(os.environ["SITE_STORE"] + "-router")


built = {}
one_at_a_time = threading.Lock()


def router(name):
    with one_at_a_time:
        if name not in built:
            built[name] = build(name, store())
        return built[name]


def site(environ, start_response):
    chosen = environ["HTTP_ROUTER"]
    if chosen != "*":
        return router(chosen)(environ, start_response)
    for name in installed():
        if name not in built:
            # All of them at once would take longer than some servers give a request.
            router(name)
            return answer(start_response, "503 Service Unavailable", "ask again")
    told = {name: tell_or_say_why(router(name), environ) for name in installed()}
    return answer(start_response, "200 OK", {"path": environ["PATH_INFO"], "told": told})


def answer(start_response, status, what):
    body = json.dumps(what).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]

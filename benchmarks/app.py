"""A Flask app for gunicorn: bare, behind guardrails, behind Flask-Limiter."""

import os

import peers
from subjects import four_guards

import guardrails


def bare():
    return peers.flask_app()


def behind_guardrails():
    app = peers.flask_app()
    app.wsgi_app = guardrails.throttle(
        app.wsgi_app, *four_guards(), store=os.environ["BENCHMARK_STORE"], trusted_proxies=()
    )
    return app


def behind_flask_limiter():
    return peers.limited_flask_app()

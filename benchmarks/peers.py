"""What guardrails is measured against: limits, and Flask-Limiter with four limits in memory."""

from flask import Flask
from limits import (
    RateLimitItemPerDay,
    RateLimitItemPerHour,
    RateLimitItemPerMinute,
    RateLimitItemPerSecond,
)
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

PLENTY = 1_000_000_000


def limits_hit():
    """One `hit()` of one fixed window in the memory of one process."""
    limiter = FixedWindowRateLimiter(MemoryStorage())
    item = RateLimitItemPerMinute(PLENTY)

    def hit():
        limiter.hit(item, "203.0.113.7")

    return hit


def four_limits():
    """Four fixed windows for one client, which is what Flask-Limiter keeps for four limits."""
    limiter = FixedWindowRateLimiter(MemoryStorage())
    items = [
        RateLimitItemPerSecond(PLENTY, 3600),
        RateLimitItemPerMinute(PLENTY),
        RateLimitItemPerHour(PLENTY),
        RateLimitItemPerDay(PLENTY),
    ]

    def hit(client):
        for item in items:
            limiter.hit(item, client)

    return hit


def flask_app():
    app = Flask("benchmark")

    @app.get("/<path:path>")
    def page(path):
        return "hello\n"

    return app


def limited_flask_app():
    """The same with four limits, in memory, by fixed windows: Flask-Limiter's default."""
    from flask_limiter import Limiter
    from flask_limiter.util import get_remote_address

    app = flask_app()
    Limiter(
        get_remote_address,
        app=app,
        storage_uri="memory://",
        default_limits=[f"{PLENTY} per {period}" for period in ("second", "minute", "hour", "day")],
    )
    return app


def round_trips(app, send):
    """How often Flask-Limiter calls its storage for one request."""
    calls = 0
    incr = MemoryStorage.incr

    def counting(*arguments, **options):
        nonlocal calls
        calls += 1
        return incr(*arguments, **options)

    MemoryStorage.incr = counting
    try:
        send(app)
    finally:
        MemoryStorage.incr = incr
    return calls

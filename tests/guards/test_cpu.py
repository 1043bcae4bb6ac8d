import time

import pytest

from guardrails import CPUThrottle, testing, throttle
from support import Browser, Exchange, nothing_is_left_in


def test_a_client_may_use_its_window_ahead_and_is_then_refused(serve, cpu):
    """20 % over 15 s are 3 s of CPU at once."""
    site = serve(CPUThrottle("20%", window="15s"), app=cpu.app(1.01))

    assert site.statuses(4) == [200, 200, 200, 503]


def test_an_app_that_really_spins_is_refused_too(serve):
    """Without a clock by hand: 1 % over a second are 10 ms of CPU."""
    site = serve(CPUThrottle("1%", window="1s"), app=testing.spinning(0.02))

    assert site.statuses(2) == [200, 503]


def test_retry_after_names_the_instant_when_half_of_the_window_is_left(serve, cpu, clock):
    """4 s of CPU at 20 % are 20 s; half of 15 s is 7.5 s: the client waits for 12.5 s."""
    site = serve(CPUThrottle("20%", window="15s"), app=cpu.app(4.0))
    site.get("/")

    testing.assert_refused(site.get("/"), 503, retry_after=13)

    clock.advance(12.4)
    assert site.get("/").status_code == 503
    clock.advance(0.2)
    assert site.get("/").status_code == 200


def test_who_was_not_refused_needs_no_such_pause(serve, cpu, clock):
    """The bucket is down to three quarters: enough for who was never refused."""
    site = serve(CPUThrottle("20%", window="15s"), app=cpu.app(4.0))
    site.get("/")
    clock.advance(8.75)

    assert site.get("/").status_code == 200


def test_resume_says_how_much_of_the_window_may_be_left(serve, cpu, clock):
    """3.9 s of CPU at 20 % are 19.5 s, and nothing may be left of them."""
    site = serve(CPUThrottle("20%", window="15s", resume=0), app=cpu.app(3.9))
    site.get("/")

    testing.assert_refused(site.get("/"), 503, retry_after=20)


def test_at_most_four_windows_beyond_the_first_are_owed(serve, cpu, clock):
    """An hour of CPU at 20 % would be five hours; five windows are 75 s, less the half: 67.5 s."""
    site = serve(CPUThrottle("20%", window="15s"), app=cpu.app(3600.0))
    site.get("/")

    testing.assert_refused(site.get("/"), 503, retry_after=68)

    clock.advance(68)
    assert site.get("/").status_code == 200


def test_each_client_has_a_share_of_its_own(serve, cpu):
    site = serve(CPUThrottle("20%"), app=cpu.app(9.0))
    site.get("/")

    assert site.get("/").status_code == 503
    assert site.at("192.0.2.2").get("/").status_code == 200


def test_a_percent_may_depend_on_the_request(serve, cpu):
    def share(environ):
        return {"house": None, "gold": "100%"}.get(environ.get("HTTP_X_TIER"), "10%")

    site = serve(CPUThrottle(share, window="15s", by="header:X-Tier"), app=cpu.app(2.0))

    assert site.statuses(2) == [200, 503]
    assert site.statuses(2, headers={"X-Tier": "gold"}) == [200, 200]
    assert site.statuses(9, headers={"X-Tier": "house"}) == [200] * 9


def test_at_once_caps_the_requests_of_one_client(serve, cpu):
    """CPU is charged after it is burnt: until then only their number holds a client back."""
    site = serve(CPUThrottle("20%", at_once=2))

    with site.hold(), site.hold():
        assert site.get("/").status_code == 503
        assert site.at("192.0.2.2").get("/").status_code == 200


def test_a_request_that_raised_is_charged(serve, cpu):
    def app(environ, start_response):
        cpu.burn(9.0)
        raise LookupError("the app's own")

    site = serve(CPUThrottle("20%"), app=app)
    with pytest.raises(LookupError):
        site.get("/")

    assert site.get("/").status_code == 503


@pytest.mark.parametrize("when", ["in the call", "in a step", "in close"])
def test_cpu_is_charged_wherever_the_response_burns_it(cpu, store, when):
    class Body:
        def __init__(self):
            self.left = 2

        def __iter__(self):
            return self

        def __next__(self):
            if not self.left:
                raise StopIteration
            self.left -= 1
            cpu.burn(2.0 if when == "in a step" else 0)
            return b"x"

        def close(self):
            cpu.burn(4.0 if when == "in close" else 0)

    def app(environ, start_response):
        cpu.burn(4.0 if when == "in the call" else 0)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Body()

    guarded = throttle(app, CPUThrottle("20%", window="15s"), store=store)
    Exchange(guarded).finish()

    testing.assert_refused(Browser(guarded).get("/"), 503, retry_after=13)


def test_cpu_between_the_steps_is_the_servers_and_not_charged(cpu, store):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter([b"one", b"two"])

    guarded = throttle(app, CPUThrottle("20%"), store=store)
    exchange = Exchange(guarded).call()
    for _chunk in exchange.response:
        cpu.burn(60.0)
    exchange.close()

    assert Browser(guarded).get("/").status_code == 200


def test_a_long_stream_is_charged_while_it_goes_on(cpu, store, monkeypatch):
    """About once a second, by the wall clock, so that a client cannot hide behind an open stream."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])

        def endless():
            while True:
                cpu.burn(2.0)
                now[0] += 0.6
                yield b"x"

        return endless() if environ["PATH_INFO"] == "/stream" else [b"short"]

    guarded = throttle(app, CPUThrottle("20%", window="15s"), store=store)
    exchange = Exchange(guarded, "/stream").call()
    for _ in range(4):
        next(exchange.response)

    assert Browser(guarded).get("/").status_code == 503
    exchange.close()
    assert nothing_is_left_in(store)


def test_a_stream_is_charged_once_for_all_it_burnt(cpu, store, monkeypatch, clock):
    """What was charged on the way is not charged again at the end: 4 s are 20 s, and 12.5 s to wait."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])

        def steps():
            for _ in range(4):
                cpu.burn(1.0)
                now[0] += 0.6
                yield b"x"

        return steps()

    guarded = throttle(app, CPUThrottle("20%", window="15s"), store=store)
    Exchange(guarded).finish()

    testing.assert_refused(Browser(guarded).get("/"), 503, retry_after=13)


def test_at_once_is_held_for_as_long_as_a_response_streams(serve, cpu, store, clock, monkeypatch):
    """After a second the stream is charged for its CPU so far; its place stays taken."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])

        def endless():
            while True:
                cpu.burn(0.001)
                now[0] += 0.6
                clock.advance(0.6)
                yield b"x"

        return endless()

    guarded = throttle(app, CPUThrottle("100%", at_once=1), store=store)
    exchange = Exchange(guarded).call()
    for _ in range(10):
        next(exchange.response)

    assert Browser(guarded).get("/", buffered=False).status_code == 503
    exchange.close()
    with Browser(guarded).hold() as response:
        assert response.status_code == 200


def test_a_fraction_of_a_microsecond_counts_as_a_whole_one(serve, cpu):
    """A second of CPU is all that the window holds; one nanosecond more is too much."""
    burnt = iter([1.0, 1e-9])
    site = serve(CPUThrottle("100%", window="1s"), app=cpu.app(lambda _environ: next(burnt)))

    assert site.statuses(3) == [200, 200, 503]

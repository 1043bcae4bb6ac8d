import pytest

from guardrails import MaxConcurrentReqs, testing, throttle
from support import Browser, Exchange, nothing_is_left_in


def streaming(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return (chunk for chunk in [b"one", b"two"])


def test_more_requests_at_once_than_the_limit_are_refused(serve):
    site = serve(MaxConcurrentReqs(2))

    with site.hold(), site.hold():
        testing.assert_refused(site.get("/"), 503, guard="max-concurrent all")


def test_a_slot_is_free_again_when_the_response_is_closed(serve):
    site = serve(MaxConcurrentReqs(1))
    open_response = site.hold()
    assert site.get("/").status_code == 503

    open_response.close()

    assert site.get("/").status_code == 200


def test_a_slot_is_held_while_the_response_streams(store):
    app = throttle(streaming, MaxConcurrentReqs(1), store=store)
    exchange = Exchange(app).call()
    assert next(exchange.response) == b"one"

    assert Browser(app).get("/").status_code == 503

    exchange.read()
    exchange.close()
    assert Browser(app).get("/").status_code == 200


def test_hold_call_gives_the_slot_back_when_the_app_returns(serve):
    """Slow readers of a stream hold nothing."""
    site = serve(MaxConcurrentReqs(1, hold="call"), app=streaming)

    with site.hold():
        assert site.get("/").status_code == 200


def test_hold_call_holds_the_slot_during_the_call(store):
    """The app that is called asks the site itself, in the midst of its own call."""
    statuses = []

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/outer":
            statuses.append(site.get("/inner").status_code)
        return testing.hello(environ, start_response)

    site = Browser(throttle(app, MaxConcurrentReqs(1, hold="call"), store=store))
    site.get("/outer")

    assert statuses == [503]


def test_hold_call_leaves_nothing_behind(serve, store):
    site = serve(MaxConcurrentReqs(1, hold="call"), app=streaming)
    site.statuses(3)

    assert nothing_is_left_in(store)


def test_the_limit_is_for_everybody_together(serve):
    site = serve(MaxConcurrentReqs(1))

    with site.hold():
        assert site.at("192.0.2.2").get("/").status_code == 503


def test_the_limit_may_be_for_each_client(serve):
    site = serve(MaxConcurrentReqs(1, by="client"))

    with site.hold():
        assert site.get("/").status_code == 503
        assert site.at("192.0.2.2").get("/").status_code == 200


def test_requests_that_the_guard_does_not_cover_hold_nothing(serve):
    site = serve(MaxConcurrentReqs(1, path="/export"))

    with site.hold("/"), site.hold("/exports"):
        assert site.get("/export").status_code == 200


def test_a_limit_may_depend_on_the_request(serve):
    def limit(environ):
        return {"/none": None}.get(environ["PATH_INFO"], 1)

    site = serve(MaxConcurrentReqs(limit))

    with site.hold("/a"):
        assert site.get("/a").status_code == 503
        assert site.get("/none").status_code == 200


def test_retry_after_is_a_second_while_nobody_knows_how_long_a_slot_is_held(serve):
    site = serve(MaxConcurrentReqs(1))

    with site.hold():
        testing.assert_refused(site.get("/"), 503, retry_after=1)


@pytest.mark.parametrize(("limit", "seconds"), [(1, 12), (2, 6), (4, 3)])
def test_retry_after_follows_littles_law(serve, clock, limit, seconds):
    """Slots held for 12 s each come free every 12 s over how many there are."""
    site = serve(MaxConcurrentReqs(limit))
    with site.hold():
        clock.advance(12)
    held = [site.hold() for _ in range(limit)]

    testing.assert_refused(site.get("/"), 503, retry_after=seconds)

    for response in held:
        response.close()


def test_retry_after_is_never_below_a_second(serve, clock):
    site = serve(MaxConcurrentReqs(1))
    with site.hold():
        clock.advance(0.01)

    with site.hold():
        testing.assert_refused(site.get("/"), 503, retry_after=1)


def test_a_slot_that_nobody_gave_back_is_free_after_max_hold(serve, clock):
    site = serve(MaxConcurrentReqs(1, max_hold="1m"))

    with site.hold():
        clock.advance(60)
        assert site.get("/").status_code == 503
        clock.advance(0.3)
        assert site.get("/").status_code == 200


def test_a_slot_that_was_freed_by_max_hold_is_not_given_back_twice(serve, clock, store):
    """Its holder comes at last: the new holder's slot must stay."""
    site = serve(MaxConcurrentReqs(1, max_hold="1m"))
    forgotten = site.hold()
    clock.advance(61)
    holder = site.hold()
    assert holder.status_code == 200

    forgotten.close()

    assert site.get("/").status_code == 503
    holder.close()
    assert nothing_is_left_in(store)


def test_two_caps_may_cover_one_request(serve, store):
    site = serve(MaxConcurrentReqs(5), MaxConcurrentReqs(1, path="/export"))

    with site.hold("/export"):
        testing.assert_refused(site.get("/export"), 503, guard="max-concurrent /export all")
        assert site.get("/").status_code == 200
    assert nothing_is_left_in(store)

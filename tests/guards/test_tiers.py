"""Figures that are callables of the environ: tiers, and the bounds of what is remembered of them."""

import pytest

from guardrails import CPUThrottle, MaxConcurrentReqs, SpeedLimit, testing, throttle
from support import Exchange


@pytest.mark.thorough
@pytest.mark.parametrize(
    "guard",
    [
        MaxConcurrentReqs(lambda environ: int(environ["HTTP_X"]) % 5000 + 1),
        CPUThrottle(lambda environ: int(environ["HTTP_X"]) % 5000 + 1),
        SpeedLimit("9/second", cost=lambda environ: int(environ["HTTP_X"]) % 9),
        SpeedLimit(lambda environ: f"{int(environ['HTTP_X']) + 1}/second"),
    ],
)
def test_what_callables_say_is_remembered_within_bounds(shared, guard):
    app = throttle(testing.hello, guard, store=shared)
    for number in range(5000):
        Exchange(app, HTTP_X=str(number)).finish()

    assert len(shared._file.compiled) <= 4096
    assert len(app._bound_guards[0].tiers) <= 256
    assert not app.errors


NOTHING = [
    pytest.param(SpeedLimit, "10/minute", figure, 429, id=f"rate {figure}")
    for figure in ("0/minute", "0 per 2 hours", "5/second; 0/hour", "5/second burst 0", 0, 0.0)
]
NOTHING += [pytest.param(MaxConcurrentReqs, 5, 0, 503, id="limit 0")]
NOTHING += [
    pytest.param(CPUThrottle, "20%", figure, 503, id=f"percent {figure}")
    for figure in ("0%", "0", "0.0 %", 0, 0.0)
]


@pytest.mark.parametrize(("guard", "something", "nothing", "status"), NOTHING)
def test_a_figure_of_nothing_refuses_and_says_of_no_time_to_come_back(
    serve, guard, something, nothing, status
):
    """A plan that is not paid for: `plans[None] = "0/minute"`."""
    site = serve(
        guard(lambda environ: something if environ.get("paid") else nothing), on_store_error="refuse"
    )

    for _ in range(2):
        refused = site.get("/")
        testing.assert_refused(refused, status)
        assert "Retry-After" not in refused.headers
    assert site.get("/", environ_overrides={"paid": "yes"}).status_code == 200


def test_a_figure_of_nothing_in_a_dry_run_is_only_said(serve):
    site = serve(SpeedLimit(lambda _environ: "0/minute", dry_run=True))

    response = site.get("/")

    assert response.status_code == 200
    assert response.request.environ["guardrails.decision"].outcome == "REJECTED_DRY_RUN"


@pytest.mark.parametrize(
    "guard",
    [
        lambda figure, **options: SpeedLimit(lambda _environ: figure, **options),
        lambda figure, **options: MaxConcurrentReqs(lambda _environ: figure, **options),
        lambda figure, **options: CPUThrottle(lambda _environ: figure, **options),
    ],
)
@pytest.mark.parametrize("figure", ["nothing", "0/fortnight", "5/0 seconds", True])
def test_a_figure_that_does_not_parse_is_a_callable_that_failed(serve, caplog, guard, figure):
    assert serve(guard(figure)).get("/").status_code == 200
    assert "a callable raised, so the guard does not apply" in caplog.text

    refusing = serve(guard(figure, on_error="refuse"))
    assert refusing.get("/").status_code in {429, 503}


def test_none_still_means_that_the_guard_does_not_apply(serve):
    site = serve(
        *(guard(lambda _environ: None) for guard in (SpeedLimit, MaxConcurrentReqs, CPUThrottle))
    )

    assert site.statuses(3) == [200, 200, 200]

"""What was measured, in rows: held against what the design wants to reach."""

from statistics import median

from report import Row, megabytes, microseconds
from timing import quiet

BESIDES = ("what", "measured")
PARTS = ("part", "takes", "share", "what it is")
SERVERS = ("server", "app", "requests/s", "lost", "CPU per request", "adds")
CLIENTS = ("clients", "added to a request", "against 1,000", "store's file")

NAMES = {
    "bare": "Flask",
    "behind_guardrails": "Flask + guardrails, 4 guards",
    "behind_flask_limiter": "Flask + Flask-Limiter, 4 limits in memory",
}


def costs(taken):
    """From micro.py: what one request costs."""
    ours = _added(taken, "app + guardrails", "app")
    floor = _added(taken, "app + guardrails, no lock", "app")
    limiter = _added(taken, "Flask + Flask-Limiter", "Flask")
    hit, enter, refusal = (quiet(taken[name]) for name in ("limits hit()", "enter", "refusal"))
    whole = "middleware added to a request, 4 guards"
    return [
        _compared(whole, ours, floor, "the same without any lock", 1.6),
        _compared(whole, ours, hit, "one hit() of limits in memory", 3),
        _compared(whole, ours, limiter, "Flask-Limiter adds, 4 limits in memory", 1 / 25),
        _compared("enter, 4 guards", enter, hit, "one hit() of limits in memory", 1),
        _compared("a refusal of a banned client", refusal, ours, "an admission adds", 1),
    ]


def besides(taken):
    """From micro.py: figures that nothing was promised about, and that explain the others."""
    alone = ("limits hit()", "enter", "enter, no lock", "leave", "app", "Flask")
    rows = [(name, microseconds(quiet(taken[name]))) for name in alone]
    for name, bare in (
        ("app + guardrails", "app"),
        ("app + guardrails, flock", "app"),
        ("app + guardrails, memory store", "app"),
        ("Flask + guardrails", "Flask"),
        ("Flask + Flask-Limiter", "Flask"),
    ):
        rows.append((f"{name}: adds", microseconds(_added(taken, name, bare))))
    return rows


def parts(found):
    """From parts.py."""
    whole = sum(seconds for _, seconds, _ in found)
    rows = [(name, microseconds(part), f"{part / whole:.0%}", what) for name, part, what in found]
    return [*rows, ("together", microseconds(whole), "100%", "")]


def losses(servers):
    """From server.py: requests per second lost."""
    rows = []
    for kind, apps in servers.items():
        bare = apps["bare"]["rate"]
        for app, most in (("behind_guardrails", 0.05), ("behind_flask_limiter", None)):
            rate = apps[app]["rate"]
            lost = _lost(rate, bare)
            rows.append(
                Row(
                    f"gunicorn, 2 {kind} workers, {NAMES[app]}",
                    f"{median(rate):.0f} requests/s",
                    f"{median(bare):.0f} requests/s: Flask",
                    f"{lost:.0%} lost",
                    f"at most {most:.0%} lost" if most else "",
                    lost <= most if most else None,
                )
            )
    return rows


def servers(found):
    """From server.py: the same with the CPU time that the workers used."""
    return [
        (
            kind,
            NAMES[app],
            f"{median(figures['rate']):.0f}",
            f"{_lost(figures['rate'], apps['bare']['rate']):.0%}",
            microseconds(quiet(figures["cpu"])),
            microseconds(quiet(figures["cpu"]) - quiet(apps["bare"]["cpu"])),
        )
        for kind, apps in found.items()
        for app, figures in apps.items()
    ]


def beside_threads(threads):
    """From threads.py: the tail of `enter` beside busy threads."""
    rows = []
    for lock, most in (("mutex", 10), ("flock", None), ("no lock", None)):
        tail, middle = threads[lock]["p99"], threads[lock]["median"]
        rows.append(
            Row(
                f"p99 of enter beside 2 busy threads, {lock}",
                microseconds(tail),
                f"{microseconds(middle)}: its median",
                f"{tail / middle:.1f} x",
                f"at most {most} x" if most else "",
                tail <= most * middle if most else None,
            )
        )
    return rows


def calls(ours, theirs):
    """From micro.py: calls to the store for one request."""
    said = ", ".join(f"{count} {verb}" for verb, count in ours.items() if count)
    expected = "1 enter, 1 leave"
    against = f"{theirs}: Flask-Limiter, 4 limits"
    what = "calls to the store per request, 4 guards"
    return [Row(what, said, against, "", expected, said == expected)]


def memory(found):
    """From clients.py: what a client takes."""
    cell, files = found["cell"], found["files"]
    return [
        Row(
            "memory, one copy for all workers",
            f"{cell} bytes a cell",
            f"{found['limiter']:.0f} bytes: limits, 4 limits, a client and worker",
            "",
            "16 bytes a cell",
            cell == 16,
        ),
        Row("the store's file for 50,000 clients", megabytes(files["50000"]), "", "", "fixed", True),
    ]


def growth(found):
    """From clients.py: cost by how many clients there are."""
    few, many = (_added(found["taken"], count, "0") for count in ("1000", "1000000"))
    what = "added to a request, 1,000,000 clients at random, memo misses included"
    return [_compared(what, many, few, "1,000 clients", 2)]


def by_clients(found):
    """The same for the populations between, with the size of the store's file."""
    taken, files = found["growth"]["taken"], found["memory"]["files"]
    few = _added(taken, "1000", "0")
    rows = []
    for count in sorted({int(count) for count in (*taken, *files)} - {0}):
        costs = _added(taken, str(count), "0") if str(count) in taken else None
        rows.append(
            (
                f"{count:,}",
                microseconds(costs) if costs else "",
                f"{costs / few:.2f} x" if costs else "",
                megabytes(files[str(count)]) if str(count) in files else "",
            )
        )
    return rows


def _added(taken, with_it, without_it):
    return quiet(taken[with_it]) - quiet(taken[without_it])


def _compared(what, figure, against, name, most):
    found = figure / against
    return Row(
        what,
        microseconds(figure),
        f"{microseconds(against)}: {name}",
        f"{found:.2f} x" if most >= 1 else f"1/{1 / found:.1f}",
        f"at most {most} x" if most >= 1 else f"at most 1/{1 / most:.0f}",
        found <= most,
    )


def _lost(rates, bare):
    """The part of the requests per second that is lost, round by round."""
    return 1 - median(rate / whole for rate, whole in zip(rates, bare, strict=True))

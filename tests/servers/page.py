"""Writes docs/servers.md from what was seen under each set-up: `page.py write` or `page.py check`.

The tests leave their observations in .servers. `write` keeps them in observed.json and makes the page
from that file. `check` compares a fresh run with observed.json. It fails where a promise of guardrails
differs, and prints where a server behaved differently.
"""

import json
import os
import sys
import textwrap
from pathlib import Path

from setups import OWN_TIMEOUT, SETUPS
from troubled import KINDS, MOD_WSGI, TROUBLES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FRESH = Path(os.environ.get("SERVERS_OBSERVED", ROOT / ".servers"))
KEPT = HERE / "observed.json"
PAGE = ROOT / "docs" / "servers.md"
PROMISES = {
    "cap": "test_exact: full, and never exceeded, over all workers",
    "rate": "test_exact: as many as it says, over all workers",
    "cpu of burn": "test_cpu: each client is charged its own CPU",
    "cpu of burn-stream": "test_cpu: also what a stream burns",
    "learnt": "test_models: what guardrails finds out about the server",
    "refused with 1 kB": "test_refusals: guardrails reads small bodies, so that a client sees its 429",
    "refused with 100 kB": "test_refusals: as above",
    "kept after GET with 0 kB": "test_refusals: a refusal ends no connection that the server would keep",
    "kept after POST with 1 kB": "test_refusals: as above",
    "kept after POST with 100 kB": "test_refusals: as above, but for granian",
    "stack": "test_watchdog: the stack of a request that never ends is in the log",
}
"""What guardrails promises: the test that asserts it. `check` fails where one of them differs."""

OBSERVATIONS = {
    "Expect": "the server decides; the 429 comes in either case (test_refusals)",
    "endings": "the status is the server's, the same as without guardrails; the slot comes back (test_slots)",
    "killed": "the server decides; the slot comes back (test_slots)",
    "timed out": "the server decides; the slot comes back (test_slots)",
    "refused with 5 MB": "depends on how fast both sides are; guardrails reads no more than 256 kB",
    "spellings": "the server and the frameworks decide; no spelling avoids a guard (test_spelling)",
    "file": "the server decides; the same as without guardrails (test_responses)",
    "stream": "the server decides; the same as without guardrails (test_responses)",
    "underscores": "the server decides; with the advice no client can choose its address (test_identity)",
    "imported": "the set-up says so (test_models)",
    "hook": "the set-up says so; every worker has its limits (test_models)",
    "reload": "the set-up says so; the state is kept (test_restarts)",
    "command": "the set-up says so",
    "client": "the server decides; the worker has ended (test_watchdog)",
    "by": "depends on how fast the worker ends; it does end (test_watchdog)",
    "seconds": "depends on the machine",
}
"""What a server does by itself, or how it is set up, and what guardrails promises there. Differences are printed."""

INTRODUCTION = """\
# Under real servers

`make servers` runs guardrails under each server. What the tables say that a server does was seen in such a run. Each
run is compared with the tables: it prints where a server behaves differently, and fails if guardrails breaks a promise.
The tables also have the set-ups and our advice. The app and its guards are in [tests/servers/app.py](../tests/servers/app.py), the commands in
[tests/servers/setups.py](../tests/servers/setups.py).

Under all of these servers the following is true, and a test checks each:

- Caps and rates are exact over all workers, wherever the app is imported.
- Slots are freed after every way in which a request can end.
- A slow reader holds no slot with `hold="call"`, and otherwise for no longer than `max_hold`.
- Responses pass unchanged, and a reload or a new start keeps the state.
- A refused client that sends its body byte by byte holds no thread for more than two seconds. Under mod_wsgi it does, for
  as long as Apache's `RequestReadTimeout` allows.
- Behind the recommended proxy, no client can choose its address.
"""

WATCHDOG = """\
One of two workers gets stuck. A [watchdog](watchdog.md) runs with `--timeout 1500ms --poll 100ms --signal-interval 1s`.
Seconds count from the time-out: until the stack of the request was in the log (noticed), until its worker had ended, and
until another worker answered. They vary from run to run. So does the signal that ended the worker. The printer prints its
pid and then a NUL byte each second.
"""

TABLES = [
    (
        "Recommended set-ups",
        (
            "Let the proxy in front write the header in the second column. Under some servers `X_Forwarded_For`, with "
            "underscores, becomes the real header, so a client could choose its address. A header without a hyphen has "
            "no other spelling."
        ),
        {
            "proxy writes": lambda setup, seen: f"`{setup.proxy_writes}`",
            "`X_Forwarded_For` becomes": lambda setup, seen: seen["underscores"],
            "advice": lambda setup, seen: setup.advice or "as above",
        },
    ),
    (
        "Workers",
        (
            "guardrails needs no hook, since it sets up a worker at its first request. The third column says where "
            "`rlimits()` was called. guardrails uses what it finds out about the server (learnt) for advice alone."
        ),
        {
            "app imported": lambda setup, seen: f"{seen['imported']} the fork".replace(
                "without a fork the fork", "without a fork"
            ),
            "hook": lambda setup, seen: f"`{seen['hook']}`".replace(" and ", "` and `"),
            "learnt": lambda setup, seen: seen["learnt"],
            "state kept over": lambda setup, seen: f"{seen['reload']} and a new start".replace(
                "a new start and a new start", "a new start"
            ),
        },
    ),
    (
        "Caps, rates and CPU",
        (
            "Eight clients sent 24 requests for a page with a cap of 2, and 40 for a page with a rate of 20. The app counted "
            "them. For CPU, some clients used 20 ms and others 200 ms at the same time, in the app's call and in a stream."
        ),
        {
            "cap of 2": lambda setup, seen: seen["cap"],
            "rate of 20": lambda setup, seen: seen["rate"],
            "CPU of a call": lambda setup, seen: seen["cpu of burn"],
            "CPU of a stream": lambda setup, seen: seen["cpu of burn-stream"],
        },
    ),
    (
        "Slots",
        (
            "After each of these events the slot of a cap of one was free again. The cells have the status that the client "
            'saw; a dash, or "nothing", means that no answer came. Servers that can end a request that hangs had a '
            f"time-out of {OWN_TIMEOUT} s."
        ),
        {
            **{
                ending: lambda setup, seen, ending=ending: seen["endings"][ending] or "-"
                for ending in ("the app raises", "the app raises in the body", "write()", "304")
            },
            "worker killed": lambda setup, seen: seen["killed"],
            "own time-out": lambda setup, seen: seen.get("timed out", "has none"),
        },
    ),
    (
        "Paths",
        (
            "The tests sent many spellings of guarded and exempt paths (asked). The server let some of them through. Some of "
            "those reached a guarded view of at least one of eleven routers, such as Flask's, Django's, Falcon's, Bottle's, "
            "Pyramid's and werkzeug's. The guard counted all of these, and none was exempt."
        ),
        {
            "asked": lambda setup, seen: seen["spellings"]["asked"],
            "let through": lambda setup, seen: seen["spellings"]["let through"],
            "reached a guarded view": lambda setup, seen: seen["spellings"]["reached guarded"],
        },
    ),
    (
        "Refusals and responses",
        (
            "A client sends its whole body, and then reads the answer. The first columns have what it sees of a 429. "
            "With 5 MB that depends on the speed of both sides, since guardrails reads 256 KB at most. `connection kept` "
            "says whether the client can use the connection again after 100 kB. guardrails reads nothing under granian "
            "and mod_wsgi, whose `read` waits without an end, nor under waitress and bjoern, which have the whole body."
        ),
        {
            "1 kB": lambda setup, seen: seen["refused with 1 kB"],
            "100 kB": lambda setup, seen: seen["refused with 100 kB"],
            "5 MB": lambda setup, seen: seen["refused with 5 MB"],
            "Expect: 100-continue": lambda setup, seen: seen["Expect"],
            "connection kept": lambda setup, seen: (
                "yes" if seen["kept after POST with 100 kB"] else "no"
            ),
            "a file is": lambda setup, seen: seen["file"],
            "a stream comes": lambda setup, seen: seen["stream"],
        },
    ),
]


def page(observed):
    """Return the text of the page, given the observations by set-up."""
    setups = [(setup, observed[setup.slug]) for setup in SETUPS if setup.slug in observed]
    parts = [INTRODUCTION]
    for title, text, columns in TABLES:
        rows = [["set-up", *columns], ["---"] * (1 + len(columns))]
        rows += [
            [setup.name, *(str(tell(setup, seen)) for tell in columns.values())]
            for setup, seen in setups
        ]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"## {title}\n\n{textwrap.fill(text, 118)}\n\n{table}\n")
    parts.append(f"## Requests that never end\n\n{WATCHDOG}\n{watchdog_table(observed)}\n")
    commands = "\n".join(seen["command"] for _, seen in setups)
    parts.append(f"## How they were started\n\n```text\n{commands}\n```\n")
    return "\n".join(parts)


def fresh():
    return {file.stem: json.loads(file.read_text()) for file in sorted(FRESH.glob("*.json"))}


def watchdog_table(observed):
    """Return the table of what the watchdog did, by server and page."""
    rows = [
        ["server", "request", "noticed", "stack", "the client saw", "ended by", "ended", "replaced"],
        ["---"] * 8,
    ]
    for kind in [*KINDS, MOD_WSGI]:
        for page, called in TROUBLES.items():
            seen = observed.get(f"watchdog {kind.name} {page}", {}).get("seen")
            if seen is not None:
                noticed, ended, replaced = (f"{seconds:.1f} s" for seconds in seen["seconds"])
                rows.append(
                    [
                        kind.name,
                        called,
                        noticed,
                        seen["stack"],
                        seen["client"],
                        seen["by"],
                        ended,
                        replaced,
                    ]
                )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def differences(kept, seen):
    """Yield the field and a sentence for each observation that differs from the kept one."""
    for slug, facts in seen.items():
        known = kept.get(slug, {})
        known = known.get("seen", known)  # by a watchdog
        for field, now in facts.get("seen", facts).items():
            before = known.get(field)
            if isinstance(now, dict) and isinstance(before, dict):
                for name, value in now.items():
                    if value != before.get(name):
                        yield field, _differs(f"{slug}: {field}: {name}", value, before.get(name))
            elif now != before and field != "seconds":
                yield field, _differs(f"{slug}: {field}", now, before)


def _differs(what, now, before):
    return f"{what} is {now!r}, docs/servers.md has {before!r}"


def expected():
    """Return what must be observed on this machine: everything whose server is installed."""
    slugs = [setup.slug for setup in SETUPS if not setup.missing()]
    kinds = [kind for kind in [*KINDS, MOD_WSGI] if not kind.setup.missing()]
    return slugs + [f"watchdog {kind.name} {page}" for kind in kinds for page in TROUBLES]


def check(kept, seen):
    """Print how a fresh run differs; return what is wrong, as sentences."""
    found = list(differences(kept, seen))
    observed = [sentence for field, sentence in found if field in OBSERVATIONS]
    wrong = [f"{slug} is installed, and was not seen" for slug in expected() if slug not in seen]
    wrong += [sentence for field, sentence in found if field in PROMISES]
    wrong += [
        f"{sentence}: say in page.py whether {field} is promised"
        for field, sentence in found
        if field not in PROMISES and field not in OBSERVATIONS
    ]
    absent = [slug for slug in kept if slug not in seen and slug not in expected()]
    if absent:
        print("Not seen, for want of the server:", ", ".join(absent))
    if observed:
        print("Servers did what docs/servers.md does not say. `make servers-page` renews it.")
        print("\n".join(observed))
    return wrong


def main():
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if sys.argv[1:] == ["write"]:
        kept |= fresh()
        KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        PAGE.write_text(page(kept))
        return 0
    wrong = check(kept, fresh())
    for sentence in wrong:
        print("WRONG:", sentence)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

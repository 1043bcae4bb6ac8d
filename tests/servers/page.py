"""Writes docs/servers.md from what was seen under each set-up: `page.py write` or `page.py check`.

The matrix leaves its observations in .servers; `write` keeps them in observed.json and makes the page
of that. `check` compares a fresh run with what is kept.
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
VARIES = ("refused with 5 MB", "spellings", "timed out")
"""What depends on how fast both sides are, or on the versions of many frameworks."""

INTRODUCTION = """\
# Under real servers

What these tables say of a server was seen under it by `make servers`, which fails where it sees something else; how it
was set up, and the advice, stand beside that.
The app and its guards are in [tests/servers/app.py](../tests/servers/app.py), the commands in
[tests/servers/setups.py](../tests/servers/setups.py).

What holds under all of them, with a test each: caps and rates are exact over all workers, wherever the app is imported;
slots come back after every way in which a request can end; a slow reader holds nothing with `hold="call"`, and no longer
than `max_hold` otherwise; responses pass untouched; a reload and a new start keep the state; no client can choose who it
is behind the recommended proxy.
"""

WATCHDOG = """\
Two workers, one of which gets stuck, and a [watchdog](watchdog.md) with
`--timeout 1500ms --poll 100ms --signal-interval 1s`. Seconds count from the time-out: until the request was noticed and its
stack in the log, until its worker had ended, and until another worker answered; they vary from run to run, and with them
which signal was the last. The printer prints its pid and then a NUL byte each second.
"""

TABLES = [
    (
        "Recommended set-ups",
        (
            "The proxy in front should write the header in the second column. Where `X_Forwarded_For`, with underscores, "
            "becomes the real header, a client could choose its address; a header without a hyphen has no such twin."
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
            "Nothing relies on a hook: a worker is set up at its first request. `rlimits()` was called from where the third "
            "column says. What guardrails learns is used for advice alone."
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
            "Eight clients at once, counted at the app: 24 requests for a page with a cap of 2, and 40 with a rate of 20. Of "
            "two clients at once, one burns 20 ms of CPU and one 200, in the app's call and in a stream."
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
            "After each of these the slot of a cap of one was free again. The status is what the client saw, a dash that "
            f"nothing came. Servers that end a request that hangs were told to after {OWN_TIMEOUT} s."
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
            "Spellings of guarded and exempt paths, sent as they stand: how many the server let through, and how many of "
            "those reached a guarded view of at least one of eleven routers (Flask's, Django's, Falcon's, Bottle's, Pyramid's "
            "and werkzeug's among them). All of these were counted, and none was exempt."
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
            "What a client that sends its whole body first sees of a 429, and whether the connection can be used again. "
            "At 5 MB it depends on the speed of both sides."
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
    """The page, of what was seen by set-up."""
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
    """What the watchdog did, of what was seen by server and page."""
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
    """Sentences about what was seen otherwise than it is kept."""
    for slug, facts in seen.items():
        for what, now in facts.items():
            known = kept.get(slug, {}).get(what)
            if known and "watchdog" in slug:
                # Which signal was the last is a matter of seconds too, and with it the answer.
                varies = ("seconds",) if now["by"] == known["by"] else ("seconds", "by", "client")
                known = {**known, **{name: now[name] for name in varies}}
            if now != known and what not in VARIES:
                yield f"{slug}: {what} is {now!r}, and docs/servers.md was made of {known!r}"


def main():
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if sys.argv[1:] == ["write"]:
        kept |= fresh()
        KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        PAGE.write_text(page(kept))
        return 0
    seen = fresh()
    missing = [slug for slug in kept if slug not in seen]
    if missing:
        print("Not seen this time, for want of the server:", ", ".join(missing))
    if not seen:
        return 1
    found = list(differences(kept, seen))
    for sentence in found:
        print(sentence)
    if found:
        print("If that is right, run `make servers-page`.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

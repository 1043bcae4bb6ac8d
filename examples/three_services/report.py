"""The demo's tables."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from claims import AT_ONCE, BLOCK, CPU, SPEED, Claim, Evidence, times
from clients import Answer
from replay import mask
from rich.console import Console
from rich.table import Table

BUSIEST = 10


def show(console: Console, evidence: Evidence, claims: Sequence[Claim]) -> None:
    for table in (guards(evidence), sources(evidence), clients(evidence), news(evidence)):
        console.print(table)
    seen = Table.grid(padding=(0, 2))
    for claim in claims:
        missing = "[bold red]NOT SEEN[/]" if claim.fails else "[yellow]slow machine[/]"
        seen.add_row("[green]seen[/]" if claim.holds else missing, claim.text)
    console.print("[bold]What is claimed[/]", seen, sep="\n")
    if any(claim.fails for claim in claims):
        console.print(f"alarms of the store: {evidence.alarms}", evidence.server_log, markup=False)


def guards(evidence: Evidence) -> Table:
    table = titled(
        "Guards, over both workers (a request that several refuse is counted by each)",
        *("guard", "admitted", "refused", "answers", "told to wait"),
    )
    for guard in (BLOCK, SPEED, CPU, AT_ONCE):
        counted = evidence.counters.get(guard)
        if counted is None:
            continue
        refused = [a for a in evidence.guarded.crowd.answers if a.refused_by == guard]
        status = "/".join(sorted({str(answer.status) for answer in refused}))
        named = f"{len(refused)} x {status}" if refused else "0"
        table.add_row(guard, str(counted.admitted), str(counted.refused), named, waits(refused))
    table.add_section()
    table.add_row("slots held at the end", "", "", "", str(evidence.slots_held))
    return table


def sources(evidence: Evidence) -> Table:
    table = titled(
        "Who sent it",
        *("source", "requests", "admitted", "refused", "by"),
    )
    table.caption = (
        "In a hurry, an address asks in seconds what it asked in three days: these refusals show the "
        "guard at work, and no rude visitor."
    )
    for source, name in {
        "log, true speed": f"the log's {len(evidence.log.minutes)} busiest minutes at true speed",
        "log, in a hurry": "the rest of the log, three days in a hurry",
        "greedy client": "the greedy client's flood",
        "greedy client, patient": "the greedy client, patient at last",
        "blocked agent": "the blocked agent",
        "reader": "readers of /news/",
    }.items():
        table.add_row(name, *row(evidence.guarded.crowd.of(source)))
    return table


def clients(evidence: Evidence) -> Table:
    table = titled(
        f"The {BUSIEST} busiest clients (addresses masked)",
        *("client", "requests", "admitted", "refused", "by"),
    )
    by_address: dict[str, list[Answer]] = defaultdict(list)
    names: dict[str, str] = {}
    for answer in evidence.guarded.crowd.answers:
        order = answer.order
        by_address[order.address].append(answer)
        names[order.address] = "log" if order.source.startswith("log") else order.source
    for address in sorted(by_address, key=lambda address: -len(by_address[address]))[:BUSIEST]:
        name = names[address].partition(",")[0]
        table.add_row(f"{mask(address)} {name}", *row(by_address[address]))
    return table


def news(evidence: Evidence) -> Table:
    table = titled(
        "Response times of /news/ around the flood, in ms: median / 95 % / worst",
        *("", "before", "during", "after"),
    )
    for name, side in (("without guardrails", evidence.bare), ("with guardrails", evidence.guarded)):
        parts = [times(answers) for answers in side.readers().values()]
        table.add_row(name, *(f"{t.median:.0f} / {t.p95:.0f} / {t.worst:.0f}" for t in parts))
    return table


def titled(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 or column == "by" else "right")
    return table


def row(answers: Sequence[Answer]) -> tuple[str, ...]:
    by = Counter(answer.refused_by.split()[0] for answer in answers if answer.refused_by)
    unheard = Counter(
        "lost with the worker" if answer.lost else f"gunicorn itself: {answer.status}"
        for answer in answers
        if answer.worker is None
    )
    return (
        str(len(answers)),
        str(sum(answer.admitted for answer in answers)),
        str(by.total()),
        ", ".join(f"{count} {name}" for name, count in (by + unheard).most_common()),
    )


def waits(refused: list[Answer]) -> str:
    seconds = [answer.retry_after for answer in refused if answer.retry_after is not None]
    if not seconds:
        return "never to come back"
    shortest, longest = min(seconds), max(seconds)
    return f"{longest} s" if shortest == longest else f"{shortest} to {longest} s"

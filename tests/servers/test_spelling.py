"""However a path is spelled on the wire, and whichever server and framework read it: no way round.

Each spelling is sent byte for byte. The server makes of it what it will; then the routers of real
frameworks, each behind guards of its own, say which view they call and what the guards decided.
"""

import json

from routers import ROUTERS, Told, installed
from setups import SETUPS

SECONDS = 20
MOST_ASKED_AGAIN = 10 * len(ROUTERS)
ONE_IN = 25
"""So many of the odd spellings, at the least, reach a guarded view of each framework."""

PLAIN = {"/guarded": "guarded", "/guarded/name": "guarded", "/free": "free", "/free/name": "free"}

ODD = [
    # Percent and case
    *("/%67uarded", "/g%75arded/name", "/%67%75%61%72%64%65%64", "/guarded%2Fname", "/guarded%2fname"),
    *("%2Fguarded", "/%2Fguarded", "/guarded%252Fname", "/%2567uarded", "/Guarded", "/GUARDED/name"),
    *("/guarded%", "/guarded/%", "/guarded%zz", "/guarded/%zz", "/gu%arded", "/%u0067uarded"),
    # Slashes, and none
    *("/guarded/", "//guarded", "///guarded/name", "/guarded//", "/guarded//name", "/guarded/name/"),
    *("//evil/guarded", "/\\guarded", "\\guarded", "/guarded\\name", "/%5Cguarded", "/guarded%5Cname"),
    *("guarded", "guarded/name", "x/guarded", "x/guarded/name", "*", "*/guarded", "", "deep/guarded"),
    *("/deep/guarded", "/deep//guarded", "//deep/guarded", "/deep/./guarded", "/deep/guarded/"),
    # Dots
    *("/./guarded", "/./././guarded/name", "/guarded/.", "/guarded/..", "/guarded/./", "/guarded/../"),
    *("/x/../guarded", "/x/../guarded/name", "/x/y/../../guarded", "/../guarded", "/../../guarded"),
    *("/guarded/../guarded", "/guarded/./name", "/guarded/x/../name", "/./guarded/..", "//guarded/.."),
    *("/./guarded/../x", "/%2e/guarded", "/%2E/guarded/%2e%2e", "/x/%2e%2e/guarded", "/x/.%2E/guarded"),
    *("/x%2f..%2fguarded", "/x/..%2Fguarded", "/%2e%2e/guarded", "/%252e%252e/guarded"),
    *("/x//../guarded", "/x/..//guarded", "/guarded.", "/.guarded", "/.../guarded", "./guarded"),
    # Parameters, queries, fragments
    *("/guarded;", "/guarded;jsessionid=7", "/guarded;v=1/name", "/;/guarded", "/;v=1/guarded"),
    *("/guarded/;v=1", "/guarded%3Bv=1", "/guarded%3b/name", "/guarded/name;a;b", "/x/..;/guarded"),
    *("/guarded?", "/guarded?x=1", "/guarded?/../free", "/?/guarded", "/guarded%3F", "/guarded%3Fx=1"),
    *(
        "/guarded#",
        "/guarded#/free",
        "/#/guarded",
        "/guarded%23",
        "/guarded%23/../free",
        "/guarded/%23",
    ),
    *("/x%3F/../guarded", "/x%23/../guarded", "/guarded&x=1", "/guarded,name", "/guarded:80"),
    # Characters that are cut off, dropped, or seen as an end
    *("/guarded%00", "/guarded/%00", "/guarded%00/name", "/%00guarded", "/%00/guarded"),
    *(
        "/guarded%0A",
        "/guarded/name%0a",
        "/guarded%0D",
        "/guarded%0D%0A",
        "/guarded%0A%0A",
        "/guarded%0A/",
    ),
    *("/%0Aguarded", "/%0D%0A/guarded", "/gu%0Aarded", "/guarded%20", "/%20/guarded", "/guarded x"),
    *(
        "/guarded%09",
        "/%09guarded",
        "/gu\tarded",
        "/guarded%0B",
        "/guarded%1C",
        "/guarded%1F",
        "/guarded%7F",
    ),
    # Bytes that are no UTF-8, or another character's
    *("/gu%FFarded", "/guarded%FF", "/%FF/guarded", "/guarded%FF/name", "/guarded%85", "/gu%C3arded"),
    *(
        "/gu%C3%28arded",
        "/gu%ED%A0%80arded",
        "/%C0%AFguarded",
        "/x/%C0%AE%C0%AE/guarded",
        "/%C1%A7uarded",
    ),
    *("/gu\xffarded", "/guarded\xff", "/guarded/\xc3\xa9", "/guarded/%C3%A9", "/gu\xc3\xa9arded"),
    *("/%EF%BD%87uarded", "/gu%C2%ADarded", "/%EF%BB%BFguarded", "/guarded%E2%80%A8", "/guarded%C2%85"),
    *("/deep/gu%C3%BFarded", "/de%FFep/guarded"),
    # Whole URLs
    *(
        "http://evil/guarded",
        "http://evil//guarded",
        "HTTP://EVIL/guarded/name",
        "https://evil/guarded",
    ),
    *("http://u:p@evil:81/guarded?x", "http://evil/x/../guarded", "http:/guarded", "http:guarded"),
    *("http:///guarded", "x://evil/guarded", "http://guarded", "http://evil?/guarded"),
    # A framework's own
    *(
        "/@@guarded",
        "/%40%40guarded/name",
        "/x/../@@guarded",
        "/deep/@@guarded",
        "/+guarded",
        "/~/guarded",
    ),
    # What is free
    *(
        "/free/",
        "//free",
        "/free//name",
        "/%66ree",
        "/free/./name",
        "/x/../free",
        "/free;v=1",
        "/free?x",
    ),
    *(
        "/free%0A",
        "/free%00",
        "/free%FF",
        "/free%2Fname",
        "http://evil/free",
        "/Free",
        "free",
        "x/free",
    ),
    # From one side they are free, from the other guarded
    *("/free/../guarded", "/free/../guarded/name", "/free/..%2fguarded", "/free%2f..%2fguarded"),
    *("/free/%2e%2e/guarded", "/free/.%2E/guarded", "/free//../guarded", "/free/..//guarded"),
    *("/free/./../guarded", "/free/../../guarded", "/free/x/../../guarded", "/free;/../guarded"),
    *("/free/..;/guarded", "/free/..;v=1/guarded", "/free%3B/../guarded", "/free%00/../guarded"),
    *("/free/%00/../guarded", "/free/..%00/guarded", "/free/../guarded%00", "/free%0A/../guarded"),
    *("/free/..%0A/guarded", "/free/../guarded%0A", "/free%23/../guarded", "/free/%23/../../guarded"),
    *("/free/%3F/../../guarded", "/free?/../guarded", "/free#/../guarded", "/free/..%5Cguarded"),
    *(
        "/free\\..\\guarded",
        "/free/%C0%AE%C0%AE/guarded",
        "/free/.%FF./guarded",
        "/free/%FF/../../guarded",
    ),
    *("/guarded/../free", "/guarded%2f..%2ffree", "/guarded/%2e%2e/free", "/guarded//../free"),
    *("/guarded;/../free", "/guarded%00/../free", "/guarded/../free/name", "/guarded#/../../free"),
    *("/guarded/..;/free", "http://evil/free/../guarded", "http://evil/guarded/../free"),
    *("free/../guarded", "free/guarded", "/free/@@guarded", "//free/../guarded", "/./free/../guarded"),
    # From one side they are free, from the other anything else
    *("/free/..", "/free/../", "/free/../x", "/free/%2e%2e/x", "/free;/../x", "/free/..;/x"),
]

HEADERS = [
    # How a client might move a path that is another one in the first line
    ("/x/guarded", {"SCRIPT_NAME": "/x"}),
    ("/free/guarded", {"SCRIPT_NAME": "/free"}),
    ("/free/guarded", {"Script-Name": "/free"}),
    ("/free/guarded", {"X-Script-Name": "/free"}),
    ("/free/guarded", {"X-Forwarded-Script-Name": "/free"}),
    ("/free/guarded", {"X-Forwarded-Prefix": "/free"}),
    ("/free", {"PATH_INFO": "/guarded"}),
    ("/free", {"Path-Info": "/guarded"}),
    ("/free", {"X-Original-URL": "/guarded"}),
    ("/free", {"X-Rewrite-URL": "/guarded"}),
    ("/free", {"Request-Uri": "/guarded"}),
    ("/free", {"Raw-Uri": "/guarded"}),
    ("/free", {"Script-Url": "/guarded"}),
    ("/free", {"Redirect-Url": "/guarded"}),
]


def test_the_plain_spellings_reach_the_views_of_each_framework(site):
    """And are counted as the views are: else nothing below would prove a thing."""
    for router in installed():
        # The first request of a worker imports the framework.
        site.until(lambda router=router: reaches(site, router), f"{router} answers", seconds=60)
        for target, view in PLAIN.items():
            answer = site.ask(target, headers={"Router": router}, seconds=SECONDS)

            assert answer.status == 200, (router, target, site.log())
            assert answer.text.startswith(f"{view} "), (router, target)
            assert answer.headers["covered"] == str(view == "guarded"), (router, target)
            assert answer.headers["exempt"] == str(view == "free"), (router, target)


def reaches(site, router):
    return site.ask("/free", headers={"Router": router}, seconds=SECONDS).status == 200


def test_no_spelling_leads_round_a_guard_or_into_an_exemption(site, observe):
    seen = {target: routers_on(site, target) for target in spellings_for(site.setup)}

    assert ways_round(seen) == []
    reached = {target: views_guarded(told) for target, (_, told) in seen.items()}
    for router in installed():
        targets = [target for target, routers in reached.items() if router in routers]
        assert len(targets) >= len(seen) // ONE_IN, f"{router} is hardly reached: {targets}"
    observe(
        "spellings",
        {
            "asked": len(seen),
            "let through": sum(path is not None for path, _ in seen.values()),
            "reached guarded": sum(map(bool, reached.values())),
        },
    )


def test_no_header_leads_round_a_guard_or_into_an_exemption(site):
    seen = {f"{target} {headers}": routers_on(site, target, headers) for target, headers in HEADERS}

    assert ways_round(seen) == []


def spellings_for(setup):
    """All for the first set-up of a server; a few for the others, which read paths by the same code."""
    first = next(one for one in SETUPS if one.server == setup.server)
    return ODD if setup is first else ODD[::5]


def routers_on(site, target, headers=()):
    """PATH_INFO, and what each router made of it. None and nothing where the server itself refused."""
    for _ in range(MOST_ASKED_AGAIN):
        answer = site.ask(target, headers={"Router": "*", **dict(headers)}, seconds=SECONDS)
        if answer.status != 503:
            break
    if answer.status != 200:
        return None, {}
    facts = json.loads(answer.body)
    return facts["path"], {router: Told(*told) for router, told in facts["told"].items()}


def views_guarded(told):
    """The routers that called a guarded view."""
    return [router for router, said in told.items() if said.view == "guarded"]


def ways_round(seen):
    """Each that was found: the target, PATH_INFO, the router and what it said."""
    return [
        (target, path, router, said)
        for target, (path, told) in seen.items()
        for router, said in told.items()
        if said.leads_round()
    ]

"""The routers of real frameworks as judges: no spelling of a path leads one of them round a guard.

tests/servers/test_spelling.py asks the same routers behind real servers, with spellings by hand.
"""

from wsgiref.util import setup_testing_defaults

import pytest
import routers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guardrails import testing

# Pyramid imports pkg_resources, which newer setuptools deprecate and which then complains of Paste;
# its WebOb imports cgi, which Python 3.11 and 3.12 deprecate.
of_pyramids_own = [
    pytest.mark.filterwarnings("ignore:pkg_resources is deprecated as an API"),
    pytest.mark.filterwarnings("ignore:Deprecated call to .pkg_resources:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning"),
]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, id=name, marks=of_pyramids_own if router.needs == "pyramid" else ())
        for name, router in routers.ROUTERS.items()
    ],
)
def ask(request):
    """What a router says of a path, as a server would deliver it."""
    needs = routers.ROUTERS[request.param].needs
    pytest.importorskip(needs, reason=f"{needs} is not installed")
    app = routers.build(request.param, testing.memory_store())

    def asking(path):
        environ = {"PATH_INFO": path, "REMOTE_ADDR": "192.0.2.1"}
        setup_testing_defaults(environ)
        environ["SCRIPT_NAME"] = ""
        return routers.tell_or_say_why(app, environ)

    return asking


@pytest.fixture(scope="module", autouse=True)
def _djangos_settings_are_whoevers_comes_next():
    """There is one set of them per process, and the examples have their own."""
    try:
        from django.conf import settings
    except ImportError:
        yield
        return
    before = settings._wrapped
    yield
    settings._wrapped = before


@pytest.mark.parametrize(
    ("path", "view"),
    [
        ("/guarded", "guarded"),
        ("/guarded/name", "guarded"),
        ("/deep/guarded", "guarded"),
        ("/free", "free"),
        ("/free/name", "free"),
    ],
)
def test_the_views_are_reached_and_counted(ask, path, view):
    told = ask(path)

    assert told.view == view
    assert told.covered == (view == "guarded")
    assert told.exempt == (view == "free")


STARTS = st.sampled_from(
    [
        *("/guarded", "/guarded/name", "/deep/guarded", "/x/../guarded", "guarded", "x/guarded"),
        *("/free", "/free/name", "/free/../guarded", "/guarded/../free", "/free/../x", "/x"),
    ]
)
NOISE = st.sampled_from(
    [
        *("/", "//", ".", "..", "/.", "/..", "/./", "/../", "\\", ";", ";x", ";jsessionid=1", "?", "#"),
        *("\0", "\n", "\r\n", "\t", " ", "\x0b", "\x1c", "%", "%2f", "%2e", "@@", "~", "+", ":", "|"),
        *("é", "\xff", "\xc3\xa9", "\xc3\xbf", "\xc0\xaf", "\x85", "\xa0", "\xe2\x80\xa8"),
        *("http://host", "guarded", "/guarded", "deep", "/free", "x", "/x"),
    ]
)


@st.composite
def spellings(draw):
    """A path with noise put in anywhere."""
    path = draw(STARTS)
    for noise in draw(st.lists(NOISE | st.characters(max_codepoint=0xFF), max_size=5)):
        place = draw(st.integers(0, len(path)))
        path = path[:place] + noise + path[place:]
    return path


@settings(max_examples=150)
@given(path=spellings())
@example("/guarded\n")
@example("//guarded")
@example("x/guarded")
@example("/./guarded/..")
@example("/gu\xffarded")
@example("/deep/gu\xc3\xbfarded")
@example("/@@guarded")
@example("/free/../guarded")
def test_whatever_a_router_takes_for_the_guarded_view_is_covered(ask, path):
    assert not ask(path).leads_round()


@pytest.mark.parametrize("path", ["/guarded/\n", "/guarded/;v=1", "/guarded/\xc3\xa9", "/guarded/?x"])
def test_many_a_spelling_reaches_the_guarded_view(ask, path):
    """Or else there would be nothing to judge."""
    assert ask(path).view == "guarded"

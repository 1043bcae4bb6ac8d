"""A path may be spelled in many ways: none of them leads round a guard, or into an exemption."""

import posixpath
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from guardrails import BlockAgents, SpeedLimit, testing, throttle
from support import Exchange

ENVIRON = Exchange(testing.hello).environ


def wire(path):
    """A path as a server delivers it: each byte a character."""
    return path.encode().decode("latin-1")


def refused(asked, *, script="", exempt_paths=(), **options):
    """Whether a guard that refuses all it covers refuses that path."""
    guard = BlockAgents(".", **options)
    app = throttle(testing.hello, guard, store=testing.memory_store(), exempt_paths=exempt_paths)
    facts = {"PATH_INFO": wire(asked), "SCRIPT_NAME": wire(script), "HTTP_USER_AGENT": "any"}
    return Exchange(app, environ=ENVIRON, **facts).call().status.startswith("403")


def covered(asked):
    return refused(asked, path="/admin/users")


def exempt(asked):
    return not refused(asked, exempt_paths=["/static"])


def resolved(path):
    return posixpath.normpath("/" + path.lstrip("/"))


def as_software_reads_it(path):
    """How a path is understood by what may stand behind: each of these is met in the wild."""
    cut = re.split("[?#]", path, maxsplit=1)[0]
    without_parameters = re.sub(";[^/]*", "", cut)
    without_host = re.sub(r"\A[a-z]+://[^/]*", "", path)
    readings = [
        path,
        resolved(path),
        cut,
        resolved(cut),
        without_parameters,
        resolved(without_parameters),
        without_host,
        resolved(without_host),
    ]
    # A router's "$" matches before a last newline.
    return readings + [reading.removesuffix("\n") for reading in readings]


def lies_in(path, prefix):
    return path == prefix or path.startswith(prefix + "/")


@pytest.mark.parametrize(
    "spelling",
    [
        "/admin/users",
        "/admin/users/",
        "/admin/users/7/edit",
        "//admin/users",
        "/admin//users",
        "/admin///users//7",
        "/./admin/users",
        "/admin/./users",
        "/admin/users/.",
        "/x/../admin/users",
        "/x/y/../../admin/users",
        "/admin/x/../users",
        "/../admin/users",
        "/admin;v=1/users",
        "/admin/users;jsessionid=7",
        "/;/admin/users",
        "/x/..;/admin/users",
        "/admin/users?page=2",
        "/admin/users#top",
        "/admin/users\x00.png",
        "http://host/admin/users",
        "HTTP://user@host:80/admin/users?x",
        "admin/users",
        "//x/..//./admin;a//users;b",
        "/admin/users\n",
        "//admin/users;a\n",
        "/admin/users;\n",
        "/x/../admin/users\n",
    ],
)
def test_each_of_these_spellings_is_covered(spelling):
    assert covered(spelling)


@pytest.mark.parametrize(
    "other",
    [
        "/",
        "",
        "/admin",
        "/admin/user",
        "/admin/usersx",
        "/Admin/users",
        "/x/admin/users",
        "/admin/users/..",
    ],
)
def test_none_of_these_paths_is_covered_in_its_plain_sense(other):
    """The last one lies under the prefix as delivered, so it is: a guard covers by any reading."""
    assert covered(other) == (other == "/admin/users/..")


@pytest.mark.parametrize(
    "spelling",
    [
        "/static/../admin",
        "/static/..;/admin",
        "/static/./../admin",
        "/static//..//admin",
        "/static/x/../../admin",
        "/static/..",
        "/staticx",
        "/Static/x",
        "static/../x",
        "/x?/static/",
        "/x;/static",
        "/admin#/static",
    ],
)
def test_none_of_these_spellings_is_exempt(spelling):
    assert not exempt(spelling)


@pytest.mark.parametrize(
    "spelling",
    ["/static", "/static/", "/static/a.png", "/static//a.png", "/static/a/../b", "/static/a;v=2"],
)
def test_each_of_these_spellings_is_exempt(spelling):
    assert exempt(spelling)


PIECES = st.sampled_from(
    [
        *("/", "//", ".", "..", "/.", "/..", ";", ";x", "?", "#", "\x00", "\n", "http://h", "é"),
        *("admin", "users", "/admin", "/users", "/static", "x", "/x"),
    ]
)
SPELLINGS = st.lists(PIECES, min_size=1, max_size=10).map("".join)


@given(SPELLINGS)
@example("/x?/../admin/users")
@example("/x#/../admin/users")
@example("/x?;/../admin/users")
def test_whatever_any_software_reads_as_the_guarded_path_is_covered(path):
    if any(lies_in(reading, "/admin/users") for reading in as_software_reads_it(path)):
        assert covered(path)


@given(SPELLINGS)
@example("/static/?/../../admin")
@example("/static/#/../../admin")
def test_whatever_any_software_reads_as_something_else_is_not_exempt(path):
    if not all(lies_in(reading, "/static") for reading in as_software_reads_it(path)):
        assert not exempt(path)


@given(SPELLINGS)
@example("/static/?/../../admin")
def test_a_guards_own_exemption_is_as_strict(path):
    if not all(lies_in(reading, "/static") for reading in as_software_reads_it(path)):
        guard = BlockAgents(".", exempt_paths=["/static"])
        app = throttle(testing.hello, guard, store=testing.memory_store())
        assert Exchange(app, PATH_INFO=path, HTTP_USER_AGENT="x").call().status.startswith("403")


@given(SPELLINGS)
@example("/?/../../admin")
def test_robots_txt_is_no_door_either(path):
    """Only /robots.txt itself is never refused."""
    assume(path)
    assert refused("/robots.txt" + path)


SEGMENTS = st.lists(st.text(alphabet="abz-_~é", min_size=1, max_size=4), min_size=1, max_size=4)


@given(
    segments=SEGMENTS,
    noise=st.lists(
        st.sampled_from(["", "/.", "//", "/", "/x/..", "/x;y/..;z"]), min_size=5, max_size=5
    ),
    parameters=st.lists(st.sampled_from(["", ";a=1"]), min_size=5, max_size=5),
    end=st.sampled_from(["", "/", "?q", "#f", "/more", "\n"]),
    front=st.sampled_from(["", "http://host"]),
)
def test_no_noise_between_the_segments_uncovers_a_path(segments, noise, parameters, end, front):
    prefix = "/" + "/".join(segments)
    spelled = "".join(
        f"{between}/{segment}{parameter}"
        for segment, between, parameter in zip(segments, noise, parameters, strict=False)
    )

    assert refused(front + spelled + end, path=prefix)


@given(segments=SEGMENTS, cut=st.integers(0, 4))
def test_where_an_app_is_mounted_changes_nothing(segments, cut):
    """SCRIPT_NAME and PATH_INFO are one path, wherever a server cuts it."""
    prefix = "/" + "/".join(segments)
    script = "".join(f"/{segment}" for segment in segments[:cut])
    rest = "".join(f"/{segment}" for segment in segments[cut:])

    assert refused(rest, script=script, path=prefix)


@given(st.text(max_size=300))
def test_no_text_at_all_breaks_the_reading_of_a_path(path):
    assume(path != "/robots.txt")
    assert refused(path, path="/")


@pytest.mark.parametrize(
    "path", ["/" + "../" * 50_000, "/" * 100_000, "/" + ";" * 100_000, "/./" * 50_000]
)
def test_a_path_of_any_length_is_read(path):
    assert refused(path + "/admin/users", path="/admin/users")


@pytest.mark.parametrize("guarded", ["/café", re.compile(r"/caf\w\Z")])
def test_a_path_is_written_as_people_read_it(guarded):
    """WSGI delivers the bytes of UTF-8, each as a character; a broken one is no letter."""
    assert refused("/café", path=guarded)
    assert not refused("/cafe/", path=guarded)
    assert not refused("/caf", path=guarded)


def test_an_exemption_is_written_as_people_read_it():
    assert not refused("/bücher/1", exempt_paths=["/bücher"])
    assert refused("/bucher/1", exempt_paths=["/bücher"])


@pytest.mark.parametrize(
    "spelling",
    [
        "/search",
        "//search",
        "/search/",
        "/./search",
        "/x/../search",
        "/search;a=1",
        "/search\n",
        "/search?q",
        "/search#top",
        "/search\x00",
        "http://host/search",
        "search",
    ],
)
def test_spelling_a_path_differently_is_no_way_to_a_new_count_by_path(spelling):
    app = throttle(testing.hello, SpeedLimit("1/hour", by="path"), store=testing.memory_store())

    def status(path):
        return Exchange(app, PATH_INFO=path).call().status[:3]

    assert [status("/search"), status(spelling), status("/other")] == ["200", "429", "200"]


def test_a_pattern_sees_every_reading(store):
    pattern = re.compile("/admin/users")

    assert refused("/x/../admin/users", path=pattern)
    assert refused("//admin/users", path=pattern)


@pytest.mark.parametrize("host", ["[::1]:8000", "[::1]"])
def test_an_address_as_a_host_counts_without_its_port(host):
    guard = BlockAgents(".", host="[::1]")
    app = throttle(testing.hello, guard, store=testing.memory_store())

    assert Exchange(app, HTTP_HOST=host, HTTP_USER_AGENT="x").call().status.startswith("403")


@pytest.mark.parametrize(
    ("script", "path"),
    [("/robots.txt", ""), ("/static", "/admin"), ("/stati", "c"), ("/robots.txt", "/x")],
)
def test_a_script_name_that_a_header_sent_makes_nothing_exempt(script, path):
    """Gunicorn lets a proxy on this host send it, and a proxy may let its clients."""
    app = throttle(
        testing.hello, BlockAgents("."), store=testing.memory_store(), exempt_paths=["/static"]
    )
    facts = {"SCRIPT_NAME": script, "PATH_INFO": path, "HTTP_SCRIPT_NAME": script}

    assert Exchange(app, HTTP_USER_AGENT="x", **facts).call().status.startswith("403")


def test_what_is_exempt_below_a_sent_script_name_stays_so():
    app = throttle(
        testing.hello, BlockAgents("."), store=testing.memory_store(), exempt_paths=["/shop/static"]
    )
    facts = {"SCRIPT_NAME": "/shop", "PATH_INFO": "/static/a", "HTTP_SCRIPT_NAME": "/shop"}

    assert Exchange(app, HTTP_USER_AGENT="x", **facts).call().status.startswith("200")

"""Paths and hosts as other tools write them: they match, or the error names what was meant."""

import re

import pytest

from guardrails import ConfigurationError, SpeedLimit, throttle
from guardrails.testing import hello, memory_store
from support import Exchange


def refusal_of(**options):
    with pytest.raises(ConfigurationError) as caught:
        SpeedLimit("1/minute", **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "prefix", "pattern"),
    [
        ("/login/*", "/login", "/login/.*"),
        ("/login*", "/login", "/login.*"),
        ("/api/**", "/api", "/api/.*"),
        ("/a/*/b", "/a", "/a/.*/b"),
        ("static/*", "/static", "/static/.*"),
        ("https://example.org/a/*", "/a", "/a/.*"),
        ("/user/<int:id>", "/user", r"/user/\d+"),
        ("/user/<id>/edit", "/user", "/user/[^/]+/edit"),
        ("/user/{id}", "/user", "/user/[^/]+"),
        ("/user/:id", "/user", "/user/[^/]+"),
        ("^/login", "/login", "/login"),
        ("/login$", "/login", "/login$"),
        (r"/archive/\d{4}", "/archive", r"/archive/\d{4}"),
        ("/foo.*", "/foo", "/foo.*"),
    ],
)
def test_a_path_with_stars_placeholders_or_a_pattern_names_the_prefix_that_was_meant(
    written, prefix, pattern
):
    remedy = f'write "{prefix}", which covers all below it'

    assert refusal_of(path=written).endswith(f'{remedy}, or re.compile(r"{pattern}")')
    assert refusal_of(exempt_paths=written).endswith(f": {remedy}")
    with pytest.raises(ConfigurationError, match=r"\Aexempt_paths: .*" + re.escape(remedy)):
        throttle(hello, SpeedLimit("1/minute"), exempt_paths=[written])
    assert SpeedLimit("1/minute", path=prefix).path == (prefix,)
    SpeedLimit("1/minute", path=re.compile(pattern))


@pytest.mark.parametrize(
    ("written", "pattern", "matched"),
    [
        ("*.png", r"/.*\.png", "/a/b.png"),
        ("/*.png", r"/.*\.png", "/b.png"),
        (r"\.png$", r"/.*\.png$", "/b.png"),
        ("/<lang>/search", "/[^/]+/search", "/de/search"),
        ("/user-<id>", "/user-[^/]+", "/user-7"),
        ("/(a|b)", "/(a|b)", "/b"),
    ],
)
def test_a_path_that_no_prefix_can_stand_for_names_a_pattern_that_works(written, pattern, matched):
    assert refusal_of(path=written).endswith(f'would never match: write re.compile(r"{pattern}")')
    assert re.compile(pattern).match(matched)
    assert "a callable in the option exempt" in refusal_of(exempt_paths=written)


@pytest.mark.parametrize(
    ("written", "problem", "meant"),
    [
        ("/search?q=", "has a query or a fragment, which is no part of a path", "/search"),
        ("/page#top", "has a query or a fragment, which is no part of a path", "/page"),
        ("/a//b", "has empty segments, or dots, which no path has in its usual spelling", "/a/b"),
        ("/x/../y", "has empty segments, or dots, which no path has in its usual spelling", "/y"),
        ("/./a", "has empty segments, or dots, which no path has in its usual spelling", "/a"),
        ("/caf%C3%A9", "is percent-encoded, and paths are compared decoded", "/café"),
        ("/login ", "has white space around it", "/login"),
        ("https://example.org/login?x", "is a URL, and host= names a host", "/login"),
        ("POST /login", "names a method, which belongs into methods=", "/login"),
        ("login", "does not start with a slash", "/login"),
        ("", "does not start with a slash", "/"),
    ],
)
def test_a_path_in_another_spelling_names_the_usual_one(written, problem, meant):
    message = f'{written!r} {problem}: write the path as clients request it, such as "{meant}"'

    assert refusal_of(path=written) == f"path: {message}"
    assert refusal_of(exempt_paths=written) == f"exempt_paths: {message}"
    assert SpeedLimit("1/minute", path=meant).path == (meant,)


@pytest.mark.parametrize("written", ["/login|/logout", "/login, /logout", "/login /logout"])
def test_several_paths_in_one_text_name_the_list(written):
    assert refusal_of(path=written) == (
        f'path: {written!r} has several paths: write a list, ["/login", "/logout"]'
    )


def test_all_paths_are_written_as_none():
    assert refusal_of(path="/*").endswith(": leave it out for all paths")


@pytest.mark.parametrize("option", ["path", "methods", "host"])
def test_an_empty_list_would_cover_nothing(option):
    assert refusal_of(**{option: []}) == (
        f"{option}: [] is empty, so the guard would cover nothing: leave it out for all"
    )


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [("login", "/login"), ("^login/x", "/login/x"), (r"\.png$", r"/.*\.png$")],
)
def test_a_compiled_pattern_that_no_path_starts_with_is_refused(pattern, meant):
    message = refusal_of(path=re.compile(pattern))

    assert message.startswith(f"path: {pattern!r} would never match: ")
    assert message.endswith(f'write re.compile(r"{meant}")')


def test_a_pattern_of_bytes_is_refused():
    assert refusal_of(path=re.compile(b"/a")).startswith("path: b'/a' is a pattern of bytes")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/wiki/Foo_(bar)",
            "/wiki/Special:Search",
            "/a+b",
            "/a;b",
            "/v1/x:read",
            "/café",
            "/a b",
        ),
        *("/100%", "/.well-known", "/~ann", "/a.b/c..d"),
        *map(re.compile, ["/a|b", "a?/x", r".*\.png", "^/login$", "(?i)/Login", "[/]a", r"\A/x"]),
    ],
)
def test_what_can_match_is_taken(path):
    SpeedLimit("1/minute", path=path)


@pytest.mark.parametrize(
    "sent", ["xn--mnchen-3ya.example", "XN--MNCHEN-3YA.example:8000", "münchen.example".encode()]
)
@pytest.mark.parametrize("written", ["münchen.example", "MÜNCHEN.example.", "xn--mnchen-3ya.example"])
def test_a_host_is_found_as_people_and_as_clients_write_it(serve, written, sent):
    """A client that sends the host in UTF-8 is covered too: WSGI delivers each byte as a character."""
    site = serve(SpeedLimit("1/minute", host=written))
    host = sent if isinstance(sent, str) else sent.decode("latin-1")

    assert site.statuses(2, environ_overrides={"HTTP_HOST": host}) == [200, 429]
    assert site.statuses(2, environ_overrides={"HTTP_HOST": "munchen.example"}) == [200, 200]


def test_a_host_with_a_sharp_s_is_the_one_of_todays_browsers():
    """The encoding of Python's standard library makes strasse.example of it, which is another host."""
    app = throttle(hello, SpeedLimit("1/minute", host="straße.example"), store=memory_store())
    exchanges = [Exchange(app, HTTP_HOST="xn--strae-oqa.example") for _ in range(2)]
    for exchange in exchanges:
        exchange.finish()

    assert [exchange.status[:3] for exchange in exchanges] == ["200", "429"]


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        ("*.example.org", 'write each host in full, as in ["example.org", "www.example.org"]'),
        (".example.org", 'write each host in full, as in ["example.org", "www.example.org"]'),
        ("https://example.org/x", 'write "example.org"'),
        (" example.org", 'write "example.org"'),
        ("::1", 'write "[::1]"'),
        ("", 'write each host as clients request it, such as "example.org"'),
        ("^www", 'write each host as clients request it, such as "example.org"'),
    ],
)
def test_a_host_that_no_request_can_have_is_refused(written, remedy):
    assert refusal_of(host=written) == (
        f"host: {written!r} is not the name of a host, so it would never match: {remedy}"
    )


def test_a_host_that_cannot_be_encoded_is_refused():
    assert refusal_of(host="ü" * 70 + ".example").endswith("cannot be a name of a host: correct it")

"""The site that every server of the matrix serves: pages behind guards that tell what they saw.

SITE_STORE names the store, SITE_FOLDER has the journal: one line of JSON for each thing that happened.
"""

import copy
import json
import os
import pickle
import resource
import sys
import threading
import time
from io import FileIO
from pathlib import Path
from urllib.parse import parse_qs

sys.path.insert(0, str(Path(__file__).parent))

from figures import CAP, DATA, NOFILE, RATE

import guardrails
from guardrails import BlockAgents, CPUThrottle, MaxConcurrentReqs, SpeedLimit
from guardrails.store.urls import store_from_url
from guardrails.worker.server import running_server

STORE = os.environ["SITE_STORE"]
FOLDER = Path(os.environ["SITE_FOLDER"])
CHUNK = b"x" * 65536
LONGEST_SECONDS = 90
"""How long a page goes on that waits for its client, or streams without end."""
IMPORTED_IN = os.getpid()

limits = guardrails.rlimits(NOFILE=NOFILE, DATA=DATA)
if os.environ.get("SITE_HOOK") == "postfork":
    from uwsgidecorators import postfork

    postfork(limits)
elif os.environ.get("SITE_HOOK") == "import":
    limits.apply()


def note(event, **facts):
    """Append to the journal, whole lines from any process."""
    facts |= {"event": event, "pid": os.getpid(), "at": time.monotonic()}
    journal = os.open(FOLDER / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(journal, json.dumps(facts).encode() + b"\n")
    finally:
        os.close(journal)


class Journal:
    """A store that notes which client is charged how much CPU. The inner store does the rest."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def update(self, visit, debits, release=()):
        self._note(visit, debits)
        self._store.update(visit, debits, release)

    def leave(self, visit, debits=()):
        self._note(visit, debits)
        self._store.leave(visit, debits)

    def _note(self, visit, debits):
        for debit in debits:
            note("charged", client=visit.client, microseconds=debit.amount)


class WatchedFile(FileIO):
    """A file that notes whether it was read, or sent by its descriptor."""

    reads = 0

    def readinto(self, buffer):
        self.reads += 1
        return super().readinto(buffer)

    def read(self, size=-1):
        self.reads += 1
        return super().read(size)

    def readline(self, size=-1):
        note("line")
        return super().readline(size)

    def __next__(self):
        note("line")
        return super().__next__()

    def close(self):
        if not self.closed:
            note("file closed", reads=self.reads)
        super().close()


def burn(environ, milliseconds):
    """Note what was really burnt: a machine that others use may count their time too."""
    began = time.thread_time()
    while (burnt := time.thread_time() - began) < milliseconds / 1000:
        pass
    note("burnt", client=environ["guardrails.client"], microseconds=burnt * 1_000_000)


def burn_in_turns(environ, milliseconds, turns=20):
    """Burn in slices, and let others run between them, as a request does that waits for a database."""
    for _ in range(turns):
        burn(environ, milliseconds / turns)
        time.sleep(0.005)


def plain(start_response, text, status="200 OK", headers=()):
    body = text.encode() + b"\n"
    start_response(
        status,
        [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *headers],
    )
    return [body]


def streaming(start_response, chunks):
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return chunks


def pages(environ, start_response):
    """The app behind the guards."""
    name = environ["PATH_INFO"].rpartition("/")[2]
    query = {key: values[0] for key, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
    page = PAGES.get(name, page_plain)
    note("page", path=environ["PATH_INFO"])
    return page(environ, start_response, query)


def page_plain(environ, start_response, query):
    return plain(start_response, f"page {environ['PATH_INFO']}")


def page_client(environ, start_response, query):
    return plain(start_response, str(environ["guardrails.client"]))


def page_facts(environ, start_response, query):
    facts = {key: str(value) for key, value in environ.items() if isinstance(value, str)}
    facts["server"] = str(running_server(environ))
    facts["imported_in"], facts["pid"] = str(IMPORTED_IN), str(os.getpid())
    facts["parent"] = str(os.getppid())
    facts["thread"] = threading.current_thread().name
    facts["nofile"] = str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    facts["data"] = str(resource.getrlimit(resource.RLIMIT_DATA)[0])
    return plain(start_response, json.dumps(facts))


def page_slow(environ, start_response, query):
    note("began", path=environ["PATH_INFO"])
    time.sleep(float(query.get("seconds", "0.2")))
    note("ended", path=environ["PATH_INFO"])
    return plain(start_response, "slow")


def page_raise(environ, start_response, query):
    raise RuntimeError("the app raises before it answers")


def page_raise_later(environ, start_response, query):
    def chunks():
        yield b"one\n"
        raise RuntimeError("the app raises while it streams")

    return streaming(start_response, chunks())


def page_generator(environ, start_response, query):
    return streaming(start_response, (part for part in (b"one\n", b"two\n")))


def page_write(environ, start_response, query):
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"one\n")
    return [b"two\n"]


def page_large(environ, start_response, query):
    body = b"x" * 100_000
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


class SlowlyClosed:
    """A response whose end takes a moment, after the last byte was sent."""

    def __init__(self, parts):
        self._parts = parts

    def __iter__(self):
        return iter(self._parts)

    def close(self):
        time.sleep(0.003)


def page_closed_slowly(environ, start_response, query):
    return SlowlyClosed(page_large(environ, start_response, query))


def page_without_length(environ, start_response, query):
    """A list: a server may see its length, and does where guardrails leaves it a list."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"its length is known\n"]


class OwnList(list):
    """A list of the app's own class: a server may see its length as well."""


class Sized:
    """Neither a list nor a tuple, but with a length."""

    def __len__(self):
        return 1

    def __iter__(self):
        yield b"its length is known\n"


def page_own_list(environ, start_response, query):
    return OwnList(page_without_length(environ, start_response, query))


def page_tuple(environ, start_response, query):
    return tuple(page_without_length(environ, start_response, query))


def page_sized(environ, start_response, query):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return Sized()


def page_bytes(environ, start_response, query):
    """Against the rules; uWSGI serves it, others fail."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return b"bytes\n"


def page_environ(environ, start_response, query):
    """What apps do that keep, log or queue their environ."""
    ours = {key: value for key, value in environ.items() if key.startswith("guardrails.")}
    same = [json.loads(json.dumps(ours)).keys() == ours.keys()]
    same += [copy.deepcopy(ours) == ours, pickle.loads(pickle.dumps(ours)) == ours]  # noqa: S301 - made here
    return plain(start_response, f"{len(ours)} {all(same)}")


def page_is_wrapped(environ, start_response, query):
    """Whether a wrapped file is an instance of the wrapper. Not every wrapper can be asked."""
    wrapper = environ.get("wsgi.file_wrapper")
    with WatchedFile(FOLDER / "file") as file:
        try:
            answer = wrapper and isinstance(wrapper(file), wrapper)
        except TypeError as error:
            answer = type(error).__name__
    return plain(start_response, str(answer))


def page_not_modified(environ, start_response, query):
    start_response("304 Not Modified", [("ETag", '"x"')])
    return []


def page_endless(environ, start_response, query):
    def chunks():
        until = time.monotonic() + LONGEST_SECONDS
        while time.monotonic() < until:
            yield CHUNK
            time.sleep(0.001)

    return streaming(start_response, chunks())


def page_turns(environ, start_response, query):
    """One part at a time: each comes only when the client has seen the one before."""

    def chunks():
        for turn in range(3):
            yield f"part {turn}\n".encode()
            if not come_true(lambda turn=turn: (FOLDER / f"{query['token']}-{turn}").exists()):
                yield b"nobody saw it\n"
                return
        yield b"all seen\n"

    return streaming(start_response, chunks())


def page_file(environ, start_response, query):
    file = WatchedFile(FOLDER / "file")
    wrapper = environ.get("wsgi.file_wrapper")
    start_response(
        "200 OK",
        [
            ("Content-Type", "application/octet-stream"),
            ("Content-Length", str(os.fstat(file.fileno()).st_size)),
        ],
    )
    if wrapper is None:
        note("file wrapped", kind=None, identity=0)
        return iter(lambda: file.read(65536), b"")
    response = wrapper(file, 65536)
    note("file wrapped", kind=kind_of(response), identity=id(response))
    return response


def page_burn(environ, start_response, query):
    burn_in_turns(environ, float(query["ms"]))
    return plain(start_response, "burnt")


def page_burn_stream(environ, start_response, query):
    def chunks():
        for _ in range(10):
            burn(environ, float(query["ms"]) / 10)
            time.sleep(0.01)
            yield b"ash\n"

    return streaming(start_response, chunks())


PAGES = {
    "client": page_client,
    "facts": page_facts,
    "slow": page_slow,
    "raise": page_raise,
    "raise-later": page_raise_later,
    "generator": page_generator,
    "write": page_write,
    "large": page_large,
    "closed-slowly": page_closed_slowly,
    "without-length": page_without_length,
    "own-list": page_own_list,
    "tuple": page_tuple,
    "sized": page_sized,
    "bytes": page_bytes,
    "environ": page_environ,
    "is-wrapped": page_is_wrapped,
    "304": page_not_modified,
    "endless": page_endless,
    "turns": page_turns,
    "file": page_file,
    "burn": page_burn,
    "burn-stream": page_burn_stream,
}


def kind_of(thing):
    return f"{type(thing).__module__}.{type(thing).__name__}"


def come_true(condition):
    deadline = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.005)
    return False


BEHIND_A_PROXY = {"trusted_proxies": "loopback", "forwarded": "clientaddress"}
"""Requests come through a proxy on this host, which writes a header without a hyphen."""

guarded_pages = guardrails.throttle(
    pages,
    MaxConcurrentReqs(CAP, path="/cap", name="cap"),
    SpeedLimit(f"{RATE}/day", path="/rate", name="rate"),
    MaxConcurrentReqs(1, path="/slot", name="slot"),
    MaxConcurrentReqs(1, path="/held", name="held", max_hold="1s"),
    MaxConcurrentReqs(1, path="/call", name="call", hold="call"),
    SpeedLimit("1/day", path="/once", name="once"),
    BlockAgents("EvilBot"),
    store=STORE,
    exempt_paths=["/open"],
    **BEHIND_A_PROXY,
)
nested_pages = guardrails.throttle(
    guardrails.throttle(pages, MaxConcurrentReqs(CAP), store=STORE + "-inner", **BEHIND_A_PROXY),
    MaxConcurrentReqs(CAP),
    store=STORE + "-outer",
    **BEHIND_A_PROXY,
)
"""Each of the two has a store of its own, and so a wrapper of its own around the response."""

charged_pages = guardrails.throttle(
    pages,
    CPUThrottle("100%", window="1h", path="/charged"),
    store=Journal(store_from_url(STORE + "-cpu")),
    **BEHIND_A_PROXY,
)

SITES = {
    "bare": pages,
    "each": guardrails.throttle(
        pages, MaxConcurrentReqs(1, by="client", name="each"), store=STORE, **BEHIND_A_PROXY
    ),
    "charged": charged_pages,
    "nested": nested_pages,
    "xff": guardrails.throttle(pages, store=STORE, trusted_proxies="loopback"),
    "own": guardrails.throttle(pages, store=STORE, trusted_proxies=()),
    "rfc": guardrails.throttle(pages, store=STORE, trusted_proxies="loopback", forwarded="forwarded"),
}
"""By the first segment of the path; all other pages are the guarded ones."""


def application(environ, start_response):
    """What the server calls; it sees the responses as they leave guardrails."""
    if "HTTP_ROUTER" in environ:
        import routers

        return routers.site(environ, start_response)
    site = SITES.get(environ["PATH_INFO"].split("/")[1], guarded_pages)
    response = site(environ, start_response)
    if environ["PATH_INFO"].endswith("/file"):
        note("file passed", kind=kind_of(response), identity=id(response))
    return response

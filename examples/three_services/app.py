"""Three services behind four guards: two that are quick, and one that burns CPU for an image.

Run    gunicorn --chdir examples/three_services --bind 127.0.0.1:8000 app:application
and    for i in 1 2 3; do curl -sD- -o image$i.png http://127.0.0.1:8000/morphing/ & done; wait

You see two images, and one `503 Service Unavailable` with its Retry-After, whichever workers answer.
http://127.0.0.1:8000/news/ stays quick. `app:services` is the same app without guardrails. `make demo`
shows both under load.
"""

import struct
import time
import zlib

import witness

import guardrails
from guardrails import BlockAgents, CPUThrottle, MaxConcurrentReqs, SpeedLimit

IMAGES_AT_ONCE = 2
CPU_SECONDS_PER_IMAGE = 0.3
SIDE = 64


def news(environ):
    return "text/plain", b"All quiet on the western front page.\n" * 20


def webmail(environ):
    return "text/plain", b"You have no new messages.\n"


def morphing(environ):
    return "image/png", png(morph(CPU_SECONDS_PER_IMAGE))


def front_page(environ):
    return "text/plain", b"/news/\n/webmail/\n/morphing/\n"


SERVICES = {
    "/": front_page,
    "/news/": news,
    "/webmail/": webmail,
    "/morphing/": morphing,
    "/static/logo.txt": front_page,
}


def three_services(environ, start_response):
    service = SERVICES.get(environ["PATH_INFO"])
    if service is None:
        status, (content_type, body) = "404 Not Found", ("text/plain", b"There is no such page.\n")
    else:
        status, (content_type, body) = "200 OK", service(environ)
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def morph(cpu_seconds):
    """Draw a circle that becomes a square, all stages in one image: more CPU makes it smoother."""
    plate = [0] * (SIDE * SIDE)
    steps = [abs(2 * step / (SIDE - 1) - 1) for step in range(SIDE)]
    stages = 0
    until = time.thread_time() + cpu_seconds
    while time.thread_time() < until:
        stages += 1
        exponent = 2 + stages % 16
        powers = [step**exponent for step in steps]
        for row, y in enumerate(powers):
            for column, x in enumerate(powers):
                plate[row * SIDE + column] += x + y <= 0.8
    return bytes(255 * light // stages for light in plate)


def png(grey):
    """A grey picture as a PNG file."""
    rows = b"".join(b"\0" + grey[start : start + SIDE] for start in range(0, len(grey), SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


GUARDS = [
    BlockAgents("EmailSiphon", "zgrab", "CensysInspect", "l9explore", "python-requests", "Bytespider"),
    SpeedLimit("60/minute", burst=25),
    CPUThrottle("20%", window="5s"),
    MaxConcurrentReqs(IMAGES_AT_ONCE, path="/morphing"),
]

services = witness.count_at_once(three_services, path="/morphing/")

application = witness.name_decisions(
    guardrails.throttle(
        services,
        *GUARDS,
        trusted_proxies=["127.0.0.1"],
        exempt_paths=["/static/"],
    )
)

services = witness.name_decisions(services)

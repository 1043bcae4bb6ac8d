"""What whitenoise's tests import and its source distribution leaves out: files, and their server."""

import gzip
import tempfile
import threading
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.util import shift_path_info

import requests

STYLES = b"body { color: black; }\n" * 50
CONTENTS = {
    "subdir/javascript.js": b"// A script of more than a few bytes, of which a test asks for some.\n",
    "compressed.css": STYLES,
    "compressed.css.gz": gzip.compress(STYLES),
    "custom-mime.foobar": b"a type of its own\n",
    "with-index/index.html": b"<h1>An index</h1>\n",
}


class Files:
    """The files of a folder; those that are named can be asked for by the names."""

    def __init__(self, directory, **named):
        self._folder = tempfile.TemporaryDirectory()
        root = Path(self._folder.name, directory)
        for path, content in CONTENTS.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        self.directory = str(root)
        for name, path in named.items():
            setattr(self, f"{name}_path", path)
            setattr(self, f"{name}_url", f"/{AppServer.PREFIX}/{path}")
            setattr(self, f"{name}_content", CONTENTS[path])


class AppServer:
    """An app under a prefix, served on a port of its own by wsgiref."""

    PREFIX = "prefix"

    def __init__(self, application):
        def under_the_prefix(environ, start_response):
            if shift_path_info(environ) == self.PREFIX:
                return application(environ, start_response)
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return []

        self.server = make_server("127.0.0.1", 0, under_the_prefix, handler_class=Quiet)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def get(self, *arguments, **options):
        return self.request("get", *arguments, **options)

    def request(self, method, path, **options):
        return requests.request(
            method, f"http://127.0.0.1:{self.server.server_port}{path}", timeout=60, **options
        )

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass

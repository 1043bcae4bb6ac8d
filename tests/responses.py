"""Responses of the tests' apps, and WebOb, which asks for them in its own way."""

import warnings

with warnings.catch_warnings():
    # Python 3.11 and 3.12 deprecate cgi, which WebOb imports.
    warnings.simplefilter("ignore", DeprecationWarning)
    from webob import Request


class AppError(Exception):
    """The app's own."""


class Body:
    """A response that notes how it was used, and raises where it is told to."""

    def __init__(self, chunks=(b"one", b"two"), *, raise_at=None, error=AppError):
        self.chunks = list(chunks)
        self.raise_at = raise_at
        self.error = error
        self.given = 0
        self.closed = 0

    def __iter__(self):
        if self.raise_at == "iter":
            raise self.error
        return self

    def __next__(self):
        if self.raise_at == self.given:
            raise self.error
        if self.given == len(self.chunks):
            raise StopIteration
        self.given += 1
        return self.chunks[self.given - 1]

    def close(self):
        self.closed += 1
        if self.raise_at == "close":
            raise self.error


def answering(response):
    """An app that answers with that response, or with what it returns when called."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return response() if callable(response) else response

    return app


def webob_request(environ=None):
    """A request whose `get_response` asks an app, each time with the same environ."""
    return Request(environ) if environ else Request.blank("/", environ={"REMOTE_ADDR": "192.0.2.1"})

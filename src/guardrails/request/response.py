"""The wrappers around the app's response: they release the request when the response is closed.

Each kind of response has the thinnest wrapper that does: a list stays a list, a response with a length
keeps its length, and a file that the app wraps stays the server's own object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from guardrails.worker import interrupt

if TYPE_CHECKING:
    from guardrails.request.open_request import OpenRequest


def wrap_response(response: Any, open_request: OpenRequest) -> Any:
    """Return the app's response, unless it is a list, in the wrapper of its kind."""
    if open_request.is_own_file(response):
        return response
    if hasattr(response, "__len__"):
        return SizedResponse(response, open_request)
    return StreamedResponse(response, open_request)


class ClosingList(list[bytes]):
    """A list response that releases the request when it is closed. It keeps its length."""

    __slots__ = ("open_request",)

    open_request: OpenRequest

    def close(self) -> None:
        """Release the request. A list that is dropped unclosed drops the request with it."""
        self.open_request.release()


class StreamedResponse:
    """An iterable response, passed on chunk by chunk."""

    __slots__ = ("_iterator", "_open_request", "_response")

    def __init__(self, response: Iterable[bytes], open_request: OpenRequest) -> None:
        self._response = response
        self._open_request = open_request
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        iterator = self._iterator
        advance = self._begin if iterator is None else iterator.__next__
        return self._open_request.next_part(advance)  # type: ignore[no-any-return]

    @interrupt.calls_the_app
    def _begin(self) -> bytes:
        self._iterator = iterator = iter(self._response)
        return next(iterator)

    def close(self) -> None:
        """Close the app's response, and then release the request: closing costs CPU too."""
        response, self._response = self._response, ()
        try:
            close = getattr(response, "close", None)
            if close is not None:
                self._open_request.measure(close)
        finally:
            self._open_request.release()

    def __del__(self) -> None:
        open_request = getattr(self, "_open_request", None)
        if open_request is not None:
            open_request.release()


class SizedResponse(StreamedResponse):
    """A response with a length, which a server may make a Content-Length of."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._response)  # type: ignore[arg-type]


class HookedFile:
    """The file of a `wsgi.file_wrapper` response; closing the file releases the request."""

    def __init__(self, file: Any, open_request: OpenRequest) -> None:
        self._file = file
        self._open_request = open_request

    def close(self) -> None:
        """Close the file, and release the request."""
        try:
            close = getattr(self._file, "close", None)
            if close is not None:
                close()
        finally:
            self._open_request.release_file()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __del__(self) -> None:
        self._open_request.release_file()

"""The wrappers around the app's response: they release the request when the response is closed.

Each kind of response has the thinnest wrapper that does: a list stays a list, a tuple a tuple, and a
response with a length keeps its length. A response that is dropped unclosed drops the request with it,
which is then released.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

from guardrails.worker import interrupt

if TYPE_CHECKING:
    from guardrails.request.open_request import OpenRequest

_WITHOUT_PARTS = (bytes, str, bytearray, memoryview)
"""What some servers send as one part, and no server closes."""


def wrap_response(response: Any, open_request: OpenRequest) -> Any:
    """Return the app's response, unless it is a plain list, in the wrapper of its kind."""
    if isinstance(response, list):
        return SizedList(response, open_request)
    if isinstance(response, tuple):
        return SizedTuple(response, open_request)
    if isinstance(response, _WITHOUT_PARTS):
        open_request.release()
        return response
    if hasattr(response, "__len__"):
        return SizedResponse(response, open_request)
    if hasattr(response, "__next__"):
        return StreamedResponse(response, open_request)
    return IterableResponse(response, open_request)


class ClosingList(list[bytes]):
    """A plain list as the response."""

    __slots__ = ("open_request",)

    open_request: OpenRequest

    def close(self) -> None:
        """Release the request."""
        self.open_request.release()


class _Wrapper:
    """What the wrappers of all other kinds have in common."""

    __slots__ = ()

    _closed: bool
    _open_request: OpenRequest
    _response: Any

    def close(self) -> None:
        """Close the app's response, once, and then release the request: closing costs CPU too."""
        closed, self._closed = self._closed, True  # type: ignore[misc]  # a slot of each kind
        try:
            close = None if closed else getattr(self._response, "close", None)
            if close is not None:
                self._open_request.measure(close)
        finally:
            self._open_request.release()


class _Parts:
    """One pass over a response. The app is called for each part."""

    __slots__ = ("_closed", "_iterator", "_open_request", "_response")

    def __init__(self, response: Iterable[bytes], open_request: OpenRequest) -> None:
        self._response = response
        self._open_request = open_request
        self._iterator: Iterator[bytes] | None = None
        self._closed = False

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


class StreamedResponse(_Parts, _Wrapper):
    """An iterator as the response, such as a generator: it can be passed on once."""

    __slots__ = ()


class _Iterable(_Wrapper):
    """A response with a fresh iterator for each pass: some servers add up its length first."""

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        return _Parts(self._response, self._open_request)


class IterableResponse(_Iterable):
    """An iterable as the response that is no iterator itself."""

    __slots__ = ("_closed", "_open_request", "_response")

    def __init__(self, response: Iterable[bytes], open_request: OpenRequest) -> None:
        self._response = response
        self._open_request = open_request
        self._closed = False


class _Sized(_Iterable):
    """A response with a length, which a server may make a Content-Length of."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._response)


class SizedResponse(_Sized, IterableResponse):
    """A response with a length that is neither a list nor a tuple."""

    __slots__ = ()


class SizedList(_Sized, list[bytes]):
    """A list of another class, such as that of an inner throttle: it may iterate in its own way."""

    __slots__ = ("_closed", "_open_request", "_response")

    def __init__(self, response: list[bytes], open_request: OpenRequest) -> None:
        super().__init__(list.__iter__(response))
        self._response = response
        self._open_request = open_request
        self._closed = False


class SizedTuple(_Sized, tuple[bytes, ...]):  # noqa: SLOT001 - a tuple cannot have slots of its own
    """A tuple as the response, of any class."""

    def __new__(cls, response: tuple[bytes, ...], _open_request: OpenRequest) -> Self:
        """Take over what the tuple holds."""
        return super().__new__(cls, tuple.__iter__(response))

    def __init__(self, response: tuple[bytes, ...], open_request: OpenRequest) -> None:
        self._response = response
        self._open_request = open_request
        self._closed = False

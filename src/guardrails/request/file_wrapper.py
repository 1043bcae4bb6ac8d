"""Files that the app answers with by `wsgi.file_wrapper`: closing such a file releases its request.

Servers send a file by its descriptor only if the response is the very object that their own wrapper has
made. So the response is left as it is, and the file in it is replaced by one that tells of its closing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from guardrails.request.open_request import OpenRequest

FILE_WRAPPER = "wsgi.file_wrapper"


class FileWrapper:
    """Stands in for a server's wrapper in the environ while the app is called.

    Args:
        servers: the server's wrapper: a class or a function.
        open_request: the request.

    Attributes:
        open_request: the request; None when the app's call is over. A copy of the environ may be used
            after that.
        wrapped: what was made last.
    """

    __slots__ = ("_servers", "open_request", "wrapped")

    def __init__(self, servers: Callable[..., Any], open_request: OpenRequest) -> None:
        self._servers = servers
        self.open_request: OpenRequest | None = open_request
        self.wrapped: object = None

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Wrap a file in the server's own object, and note that object."""
        open_request = self.open_request
        if open_request is None:
            return self._servers(*arguments, **keywords)
        if arguments:
            arguments = (HookedFile(arguments[0], open_request), *arguments[1:])
        else:
            # Each server has another name for it.
            keywords = {
                name: HookedFile(value, open_request) if hasattr(value, "read") else value
                for name, value in keywords.items()
            }
        self.wrapped = wrapped = self._servers(*arguments, **keywords)
        return wrapped

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._servers)  # type: ignore[arg-type]

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._servers)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._servers, name)

    # An app may copy its environ deeply, or encode it: classes and functions can be copied and pickled.
    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _same, (self._servers,)


def _same(wrapper: Callable[..., Any]) -> Callable[..., Any]:
    return wrapper


class HookedFile:
    """A file whose closing releases its request. In all else it behaves as the app's own file.

    Args:
        file: the app's file.
        open_request: the request.
    """

    def __init__(self, file: Any, open_request: OpenRequest) -> None:
        self._file = file
        self._open_request = open_request

    # So that it is an instance of the class of the file, such as io.IOBase.
    __class__ = property(lambda self: self._file.__class__)

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

    def __next__(self) -> bytes:
        return next(self._file)  # type: ignore[no-any-return]

    def __enter__(self) -> Any:
        entered = self._file.__enter__()
        return self if entered is self._file else entered

    def __exit__(self, *error: object) -> Any:
        try:
            return self._file.__exit__(*error)
        finally:
            self._open_request.release_file()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __del__(self) -> None:
        self._open_request.release_file()

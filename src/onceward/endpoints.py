"""The two ends of a transport, as a caller may give them.

`source=` and `sink=` take an instance, or a factory of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, Final

from onceward.errors import UsageError
from onceward.transport import Sink, Source

SourceOrFactory = Source | Callable[[], Source]
SinkOrFactory = Sink | Callable[[], Sink]

_SOURCE_PARTS: Final = ("name", "traits", "receive", "settle", "extend", "close")
_SINK_PARTS: Final = ("traits", "publish", "close")


def opened_source(source: SourceOrFactory) -> AbstractContextManager[Source]:
    """The Source itself, or one that the factory makes.

    Only what the factory made is closed at the end.
    Raises `UsageError` for what is neither, or for a factory that makes something else.
    """
    return _opened(source, "Source", _SOURCE_PARTS)


def opened_sink(sink: SinkOrFactory) -> AbstractContextManager[Sink]:
    """The same for a Sink."""
    return _opened(sink, "Sink", _SINK_PARTS)


@contextmanager
def _opened(endpoint: Any, kind: str, parts: tuple[str, ...]) -> Iterator[Any]:
    # A class has all these attributes too, but it is a factory of its instances.
    if not isinstance(endpoint, type) and not _missing(endpoint, parts):
        # Whoever made the instance closes it: it may be in use elsewhere.
        yield endpoint
        return
    with closing(_made(endpoint, kind, parts)) as made:
        yield made


def _made(factory: Any, kind: str, parts: tuple[str, ...]) -> Any:
    parameter = kind.lower()
    if not callable(factory):
        lacking = ", ".join(_missing(factory, parts))
        raise UsageError(
            f"{parameter}: pass a {kind} or a function that makes one, not {_described(factory)} (it has no {lacking})"
        )
    made = factory()
    # Asked now and not at the first call: a loop that fails for ever at a missing method would look like an outage.
    if missing := _missing(made, parts):
        raise UsageError(
            f"{parameter}: the function gave {_described(made)}, which is not a {kind}: it has no {', '.join(missing)}"
        )
    return made


def _missing(value: Any, parts: tuple[str, ...]) -> list[str]:
    return [part for part in parts if not hasattr(value, part)]


def _described(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"

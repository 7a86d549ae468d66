"""What a user registers or passes must be a plain function. No I/O.

To call a coroutine function or a generator function runs nothing of it and raises nothing: the message would be done, and
its work would never have happened.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from onceward.errors import UsageError

_INSTEAD: Final = "handlers and calls are plain functions, run on threads"


def check_plain(call: Any, what: str, arguments: int) -> None:
    """Raises `UsageError` unless `call` can be called with this many positional arguments and does its work by then."""
    if not callable(call):
        raise UsageError(f"{what} must be a function, not {call!r}")
    kind = _kind(call)
    if kind:
        raise UsageError(f"{what} {_name(call)} is {kind}: calling it would do nothing; {_INSTEAD}")
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        # Some callables that are written in C have no signature: they show at the first call.
        return
    try:
        signature.bind(*(object(),) * arguments)
    except TypeError as error:
        raise UsageError(f"{what} {_name(call)}{signature} must take {arguments} arguments: {error}") from error


def check_done(result: object, what: str) -> None:
    """Raises `UsageError` when what a function returned must still be awaited or iterated: its work was not done."""
    # A coroutine or a generator: nothing of it has run yet.
    if not (inspect.iscoroutine(result) or inspect.isgenerator(result) or inspect.isasyncgen(result)):
        return
    close = getattr(result, "close", None)
    if callable(close):
        # Else Python warns later, and somewhere else, that it was never awaited. One that runs already cannot be closed.
        with suppress(RuntimeError, ValueError):
            close()
    raise UsageError(f"{what} returned a {type(result).__name__}, so its work was not done; {_INSTEAD}")


def _kind(call: Callable[..., Any]) -> str:
    for function in _layers(call):
        if inspect.iscoroutinefunction(function):
            return "async"
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            return "a generator (it has a yield)"
    return ""


def _layers(call: Callable[..., Any]) -> Iterator[Any]:
    """The callable, what a partial of it calls, and what an object's `__call__` is."""
    while isinstance(call, functools.partial):
        call = call.func
    yield call
    if not inspect.isroutine(call) and not inspect.isclass(call):
        yield getattr(call, "__call__", None)  # noqa: B004 - not whether it is callable: what it is


def _name(call: Any) -> str:
    return str(getattr(call, "__qualname__", None) or repr(call))

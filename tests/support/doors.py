"""The second door twice, behind one face: as it is, and `onceward.aio` driven from a synchronous test.

A test that is written for `onceward.Inbox` and a connection so runs on `onceward.aio.Inbox` and an asynchronous one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import psycopg
from psycopg import AsyncConnection

from onceward import aio
from onceward.inbox import Inbox
from onceward.intents import Intents
from onceward.outbox import publish

Db = psycopg.Connection[Any]


class Door(NamedTuple):
    """One of the two; what it makes is typed as the synchronous one."""

    connect: Callable[..., Db]
    inbox: Callable[..., Inbox]
    intents: Callable[..., Intents]
    publish: Callable[..., None]


@contextmanager
def synchronous(dsn: str) -> Iterator[Door]:
    """The door of `onceward`."""
    with ExitStack() as stack:

        def connect(**options: Any) -> Db:
            conn: Db = psycopg.connect(dsn, **{"autocommit": True, **options})
            stack.callback(conn.close)
            return conn

        yield Door(connect, Inbox, Intents, publish)


@contextmanager
def asynchronous(dsn: str) -> Iterator[Door]:
    """The door of `onceward.aio`, each call of it run to its end on one event loop."""
    with asyncio.Runner() as runner, ExitStack() as stack:

        def connect(**options: Any) -> Db:
            conn = runner.run(AsyncConnection.connect(dsn, **{"autocommit": True, **options}))
            stack.callback(lambda: runner.run(conn.close()))
            return cast("Db", Driven(conn, runner))

        def made(kind: Any, *args: Any, **options: Any) -> Any:
            return Driven(kind(*args, **options), runner)

        yield Door(connect, partial(made, aio.Inbox), partial(made, aio.Intents), Driven(aio, runner).publish)


class Driven:
    """Something asynchronous whose coroutines are awaited, and whose `async with` is a `with`."""

    def __init__(self, inner: Any, runner: asyncio.Runner) -> None:
        self._inner = inner
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return partial(self._call, value) if callable(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self._inner, name, value)

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        plain = [arg._inner if isinstance(arg, Driven) else arg for arg in args]
        result = function(*plain, **options)
        if asyncio.iscoroutine(result):
            result = self._runner.run(result)
        return Driven(result, self._runner) if hasattr(result, "fetchall") or hasattr(result, "__aenter__") else result

    def __enter__(self) -> Any:
        self._call(self._inner.__aenter__)
        return self

    def __exit__(self, *raised: Any) -> Any:
        return self._runner.run(self._inner.__aexit__(*raised))

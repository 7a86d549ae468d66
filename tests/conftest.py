"""One Postgres for the whole session, and a fresh database for every test that asks for one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.support.waiting import Background

from onceward.consumer import Consumer, OpenConsumer
from onceward.errors import UsageError
from onceward.events import Listener
from onceward.schema import migrate
from onceward.testing.postgres import Cluster
from onceward.testing.postgres.binaries import find_binaries
from onceward.transport import Source
from onceward.transports import pgmq

pytest_plugins = ["tests.support.brokers"]
TEMPLATE = "onceward_template"
MEMORY = Path("/dev/shm")  # noqa: S108 - the folder in it gets a random name
MEMORY_BYTES_MIN = 4 * 1024**3
# What handlers write to: no key at all, so that whatever happens twice is there twice.
EFFECTS = "CREATE TABLE effects (message_id text NOT NULL, note text NOT NULL DEFAULT '')"
Connect = Callable[..., psycopg.Connection[Any]]
_names = count(1)


def start_cluster() -> Cluster:
    """A server of our own. Without Postgres, the test is skipped on a laptop, and fails where CI is set."""
    try:
        find_binaries()
    except UsageError as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must have a Postgres: {error}")
        pytest.skip(f"no Postgres here: {error}")
    with in_memory():
        return Cluster.start(name="tests")


@contextmanager
def in_memory() -> Iterator[None]:
    """Temporary folders in memory, where there is enough of it: a database is copied in 15 ms there, else in 100 or more.

    A SIGKILL of the server loses nothing of it: a tmpfs outlives processes, as a disk does.
    """
    before = tempfile.tempdir
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_BYTES_MIN:
        tempfile.tempdir = str(MEMORY)
    try:
        yield
    finally:
        tempfile.tempdir = before


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with start_cluster() as running:
        yield running


@pytest.fixture(scope="session")
def template(cluster: Cluster) -> str:
    """The database that all tests' databases are copies of: our schema, pgmq's, and a table for effects."""
    with psycopg.connect(cluster.create_database(TEMPLATE), autocommit=True) as conn:
        migrate(conn)
        pgmq.install(conn)
        conn.execute(EFFECTS)
    return TEMPLATE


@contextmanager
def database(cluster: Cluster, template: str | None) -> Iterator[str]:
    name = f"test_{next(_names)}"
    yield cluster.create_database(name, template=template)
    with psycopg.connect(cluster.dsn, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def empty_dsn(cluster: Cluster) -> Iterator[str]:
    """A database with nothing in it."""
    with database(cluster, None) as dsn:
        yield dsn


@pytest.fixture
def dsn(cluster: Cluster, template: str) -> Iterator[str]:
    """A fresh database of this test's own, migrated."""
    with database(cluster, template) as dsn:
        yield dsn


@pytest.fixture
def connect(dsn: str) -> Iterator[Connect]:
    """Connections to the test's database, in autocommit mode unless asked otherwise; closed at the end."""
    with ExitStack() as stack:

        def connected(**options: Any) -> psycopg.Connection[Any]:
            conn: psycopg.Connection[Any] = psycopg.connect(dsn, **{"autocommit": True, **options})
            stack.callback(conn.close)
            return conn

        yield connected


@pytest.fixture
def db(connect: Connect) -> psycopg.Connection[Any]:
    """A connection to look with."""
    return connect()


@pytest.fixture
def background() -> Iterator[Background]:
    """Runs a call on a thread of its own; what it raises comes out of its result."""
    with ThreadPoolExecutor(max_workers=16, thread_name_prefix="test") as pool:
        yield pool.submit


@pytest.fixture
def opened(dsn: str) -> Iterator[Callable[..., OpenConsumer]]:
    """Opens consumers on the test's database; closed at the end."""
    with ExitStack() as stack:

        def open_consumer(
            consumer: Consumer,
            *listeners: Listener,
            source: Source | None = None,
            database: Any = None,
            threads: int = 4,
            upkeep: bool = True,
        ) -> OpenConsumer:
            made = OpenConsumer(
                consumer, database or dsn, threads=threads, listeners=listeners, source=source, upkeep=upkeep
            )
            return stack.enter_context(made)

        yield open_consumer


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """Closes, at the end, what it was given."""
    with ExitStack() as stack:

        def keep(thing: Any) -> Any:
            stack.callback(thing.close)
            return thing

        yield keep

"""docs/adopt.md: its files and its lines, word for word and in their order, with real SQLAlchemy, Django and Alembic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tests.acceptance.processes import SECONDS_MAX, environment, onceward, running
from tests.support import rows
from tests.support.pages import Block, Shell, blocks
from tests.support.waiting import until

DOCS = Path(__file__).parents[2] / "docs"
PAGE = blocks(DOCS / "adopt.md")
RIGHTS = [block.text for block in (*blocks(DOCS / "database.md", "Rights"), *PAGE) if "GRANT USAGE" in block.text]
ROLES = ("shop_owner", "shop_consumer", "shop_web", "shop_relay", "shop_person")  # on both pages
DSN = "postgresql://app@db/shop"  # on the page
TOO_MUCH = 10_000
ENV = """
from alembic import context
from sqlalchemy import create_engine

with create_engine(context.config.get_main_option("sqlalchemy.url")).connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
DJANGO = """
import sys
import django
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict
given = conninfo_to_dict(sys.argv[1])
names = {"NAME": "dbname", "USER": "user", "HOST": "host", "PORT": "port"}
database = {key: given[name] for key, name in names.items()} | {"ENGINE": "django.db.backends.postgresql"}
settings.configure(DATABASES={"default": database})
django.setup()
import web_django
"""

BOOKS = """
from onceward import Consumer

consumer = Consumer("shop.books")

@consumer.transactional("order.placed")
def book(message, tx):
    tx.execute("INSERT INTO books (kind, order_id) VALUES ('order', %s)", (message.subject,))
"""


class Acme(BaseHTTPRequestHandler):
    """The made-up provider: it charges once per key, and refuses too much."""

    charges: ClassVar[dict[str, Any]] = {}

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Idempotency-Key"]
        if asked["amount"] > TOO_MUCH:
            self._answer(422, {"error": "too much"})
            return
        self._answer(200, self.charges.setdefault(key, {"id": f"ch_{len(self.charges) + 1}", **asked}))

    def do_GET(self) -> None:
        [key] = parse_qs(urlsplit(self.path).query)["key"]
        self._answer(200, [self.charges[key]] if key in self.charges else [])

    def _answer(self, status: int, value: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_: object) -> None:
        """Nothing: the terminal is the shop's."""


@contextmanager
def acme() -> Iterator[str]:
    """The provider's address."""
    Acme.charges.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Acme) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        serving.join()


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """An empty folder, and a `python` and an `onceward` of this checkout."""
    folder, programs = tmp_path / "shop", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name, arguments in {"python": "", "onceward": "-m onceward"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    return folder


def given(shop: Path, **more: str) -> dict[str, str]:
    path = f"{shop.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**environment(), "PATH": path, **more}


def save(block: Block, folder: Path) -> None:
    if block.file is not None:
        file = folder / block.file
        file.parent.mkdir(exist_ok=True)
        file.write_text(block.text, encoding="utf-8")


def run_python(shop: Path, program: str, *arguments: str, dsn: str) -> None:
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments], cwd=shop, check=True, timeout=SECONDS_MAX,
        env=given(shop, ONCEWARD_DATABASE=dsn),
    )  # fmt: skip


@pytest.fixture
def roles(empty_dsn: str) -> Iterator[None]:
    """The roles that the pages grant rights to."""
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        for role in ROLES:
            conn.execute(f"CREATE ROLE {role} LOGIN".encode())
        yield
        for role in ROLES:
            conn.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("roles")
def test_the_page_works_as_it_is_printed(empty_dsn: str, shop: Path) -> None:
    with (
        acme() as url,
        psycopg.connect(empty_dsn, autocommit=True) as conn,
        Shell(shop, given(shop, ACME_URL=url), instead={DSN: empty_dsn}) as shell,
    ):
        for block in PAGE:
            save(block, shop)
            if block.language == "sql":
                conn.execute(block.text.encode())
            for line in block.lines():
                # It is installed by the lock; that the line itself works, the quick start shows.
                typed = None if line.typed.startswith("pip install") else shell.follow(line)
                assert typed is None or typed.code in (0, 128 + 15), (line, typed)
        entries = "SELECT order_id, array_agg(kind ORDER BY kind) FROM books GROUP BY order_id ORDER BY order_id"
        both = ["booking", "report"]
        assert conn.execute(entries).fetchall() == [("A-1", both), ("B-1", both), ("C-1", both)]
        assert [charge["amount"] for charge in Acme.charges.values()] == [1200, 500, 700]
        assert "Traceback" not in shell.said + (shop / "everything.log").read_text(), shell.said


@pytest.fixture
def written(shop: Path) -> Path:
    """The folder with all files of the page."""
    for block in PAGE:
        save(block, shop)
    return shop


@pytest.fixture
def orders(dsn: str, db: psycopg.Connection[Any]) -> str:
    """The page's tables, beside ours."""
    for block in PAGE:
        if block.text.startswith("CREATE TABLE"):
            db.execute(block.text.encode())
    return dsn


@pytest.mark.usefixtures("roles")
def test_with_the_rights_of_both_pages_each_role_does_its_work(empty_dsn: str, written: Path) -> None:
    """And the consumer's needs no more: it may not make partitions."""

    def as_role(role: str) -> str:
        return make_conninfo(empty_dsn, user=role)

    assert len(RIGHTS) == 2
    assert onceward("migrate", "--database", empty_dsn).returncode == 0
    assert onceward("queue", "create", "orders", "bookings", "reports", "--database", empty_dsn).returncode == 0
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        for statements in (PAGE[0].text, *RIGHTS):
            # On the page the database is called shop.
            conn.execute(statements.replace("DATABASE shop", f"DATABASE {conn.info.dbname}").encode())
        conn.execute("GRANT INSERT, SELECT, UPDATE ON orders, books TO shop_web, shop_consumer")
        run_python(written, "import web; web.place('R-1', 100)", dsn=as_role("shop_web"))
        done = onceward("relay", "--queues", "order.placed=bookings", "--until-empty", "--database", as_role("shop_relay"))
        assert done.returncode == 0, done.stderr
        run = ("run", "books:consumer", "--queue", "bookings", "--no-upkeep", "--database", as_role("shop_consumer"))
        (written / "books.py").write_text(BOOKS)
        with running(*run, cwd=written) as consuming:
            until(lambda: rows.scalar(conn, "SELECT count(*) FROM books") == 1, "the order being booked")
            until(lambda: rows.scalar(conn, "SELECT count(*) FROM pgmq.q_bookings") == 0, "its message being acknowledged")
            assert consuming.stop() == 0


def test_the_revision_brings_tables_and_queues_and_may_be_run_again(empty_dsn: str, written: Path) -> None:
    (written / "env.py").write_text(ENV)
    url = empty_dsn.replace("postgresql://", "postgresql+psycopg://")
    (written / "alembic.ini").write_text(f"[alembic]\nscript_location = {written}\nsqlalchemy.url = {url}\n")
    again = (written / "versions" / "0001_onceward.py").read_text().replace('"0001"', '"0002"').replace("None", '"0001"')
    (written / "versions" / "0002_onceward.py").write_text(again)
    for target in ("0001", "head"):
        done = subprocess.run(
            [sys.executable, "-m", "alembic", "upgrade", target], cwd=written, env=given(written), capture_output=True,
            text=True, check=False, timeout=SECONDS_MAX,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    with psycopg.connect(empty_dsn) as conn:
        assert rows.scalar(conn, "SELECT count(*) FROM pgmq.meta") == 3
        assert rows.scalar(conn, "SELECT version_num FROM alembic_version") == "0002"
        assert rows.scalar(conn, "SELECT to_regclass('onceward.inbox') IS NOT NULL")


def test_django_publishes_in_its_transaction(orders: str, db: psycopg.Connection[Any], written: Path) -> None:
    run_python(written, f"{DJANGO}\nweb_django.place('D-1', 100)", orders, dsn=orders)
    assert (rows.scalar(db, "SELECT count(*) FROM orders"), len(rows.outbox(db))) == (1, 1)
    undone = f"""{DJANGO}
from django.db import transaction
with transaction.atomic():
    web_django.place('D-2', 100)
    transaction.set_rollback(True)
"""
    run_python(written, undone, orders, dsn=orders)
    assert (rows.scalar(db, "SELECT count(*) FROM orders"), len(rows.outbox(db))) == (1, 1)


def test_outside_atomic_django_is_refused(orders: str, db: psycopg.Connection[Any], written: Path) -> None:
    program = f"""{DJANGO}
from django.db import connection
from onceward import Message, NotInTransaction, publish
connection.ensure_connection()
try:
    publish(connection.connection, Message(type="order.placed", data={{}}))
except NotInTransaction:
    sys.exit()
sys.exit("it was not refused")
"""
    run_python(written, program, orders, dsn=orders)
    assert rows.outbox(db) == []


def test_asyncio_publishes_on_an_asynchronous_connection(orders: str, db: psycopg.Connection[Any], written: Path) -> None:
    connecting = "await psycopg.AsyncConnection.connect(os.environ['ONCEWARD_DATABASE'])"
    lines = (
        "import asyncio, os, psycopg, web_asyncio",
        "async def place():",
        f"    async with {connecting} as conn: await web_asyncio.place(conn, 'E-1', 100)",
        "asyncio.run(place())",
    )
    run_python(written, "\n".join(lines), dsn=orders)
    assert len(rows.outbox(db)) == 1


def test_every_python_block_of_the_page_is_a_file() -> None:
    """What is only shown is not run."""
    assert [block.text for block in PAGE if block.language == "python" and block.file is None] == []

"""Roles with fewer rights than the owner: what is missing is said at the start, with the statements that give it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tests.support import rows
from tests.support.decisions import PAST_THE_WINDOW
from tests.support.deliveries import Provider, delivery, order, order_aged
from tests.support.queues import ListSink, drain
from tests.support.shop import charging, transactional

from onceward.consumer import OpenConsumer
from onceward.day_partitions import database_now, make_partition_for, partition_name, upkeep
from onceward.decisions import Decider, discard_parked, list_decisions, redrive, settle, settle_as_not_happened
from onceward.errors import UsageError
from onceward.outbox import publish
from onceward.outbox_rows import discard_outbox, list_outbox, retry_outbox
from onceward.schema import check_schema
from onceward.status import read_status
from onceward.transport import ACK, LEAVE

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "database.md"


@pytest.fixture
def role(db: Db) -> Iterator[str]:
    """A role without any right of its own; roles belong to the whole server, so it goes again."""
    name = f"shop_{db.info.dbname}"
    db.execute(f"CREATE ROLE {name} LOGIN".encode())
    yield name
    db.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


def as_role(dsn: str, role: str) -> str:
    return make_conninfo(dsn, user=role)


def let_write(db: Db, role: str) -> None:
    db.execute(f"GRANT USAGE ON SCHEMA onceward TO {role}".encode())
    db.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA onceward TO {role}".encode())
    db.execute(f"GRANT ALL ON effects TO {role}".encode())


def obey(db: Db, error: UsageError) -> None:
    """Runs the statements that an error names, as the owner."""
    grants = [line.strip() for line in str(error).splitlines() if line.startswith("  GRANT ")]
    assert grants, error
    for statement in grants:
        db.execute(statement.encode())


def test_a_role_without_rights_is_shown_the_grants_and_they_suffice(opened: Opened, db: Db, dsn: str, role: str) -> None:
    with pytest.raises(UsageError, match=r"GRANT USAGE ON SCHEMA(.|\n)*GRANT SELECT, INSERT, UPDATE ON") as caught:
        opened(transactional(), database=as_role(dsn, role))
    obey(db, caught.value)
    with pytest.raises(UsageError, match="partitions") as caught:
        opened(transactional(), database=as_role(dsn, role))
    obey(db, caught.value)
    db.execute(f"GRANT ALL ON effects TO {role}".encode())
    consumer = opened(transactional(), database=as_role(dsn, role))
    message = order()
    assert consumer.deliver(delivery(message)) == ACK
    assert rows.books(db, message) == rows.Books("done", 1, 0, [], 1)
    with psycopg.connect(as_role(dsn, role), autocommit=True) as conn:
        old = order_aged(conn, 60 * 86_400)
        assert len(make_partition_for(conn, old.id)) == 2
        assert rows.scalar(conn, "SELECT count(DISTINCT relowner) FROM pg_class WHERE relname ~ '^(inbox|intents)'") == 1
        assert len(upkeep(conn, schema="onceward").dropped) == 2


@pytest.mark.parametrize(
    ("table", "right"),
    [(table, "UPDATE") for table in ("inbox", "intents", "attempts", "parked", "consumers")] + [("outbox", "INSERT")],
)
def test_one_right_that_is_missing_is_named(table: str, right: str, opened: Opened, db: Db, dsn: str, role: str) -> None:
    let_write(db, role)
    db.execute(f"REVOKE {right} ON onceward.{table} FROM {role}".encode())
    with pytest.raises(UsageError, match=f'GRANT {right} ON "onceward"."{table}" TO "{role}";'):
        opened(transactional(), database=as_role(dsn, role), upkeep=False)


def test_a_role_that_may_not_make_partitions_starts_only_without_upkeep(
    opened: Opened, db: Db, dsn: str, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    let_write(db, role)
    with pytest.raises(UsageError, match="--no-upkeep"):
        opened(transactional(), database=as_role(dsn, role))
    message = order()
    assert opened(transactional(), database=as_role(dsn, role), upkeep=False).deliver(delivery(message)) == ACK
    assert rows.effects(db, message) == 1
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_without_upkeep_a_partition_that_is_missing_for_tomorrow_is_said(
    opened: Opened, db: Db, dsn: str, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    let_write(db, role)
    tomorrow = partition_name("inbox", database_now(db).date() + timedelta(days=1))
    db.execute(f"DROP TABLE onceward.{tomorrow}".encode())
    opened(transactional(), database=as_role(dsn, role), upkeep=False)
    [line] = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert tomorrow in line
    assert "onceward upkeep" in line


def test_without_upkeep_a_partition_that_is_missing_today_leaves_the_message_and_says_what_to_run(
    opened: Opened, db: Db, dsn: str, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    let_write(db, role)
    consumer, message = opened(transactional(), database=as_role(dsn, role), upkeep=False), order()
    db.execute(f"DROP TABLE onceward.{partition_name('inbox', database_now(db).date())}".encode())
    assert consumer.deliver(delivery(message)) == LEAVE
    assert any("onceward upkeep" in record.message for record in caplog.records if record.levelname == "ERROR")
    upkeep(db, schema="onceward")
    assert consumer.deliver(delivery(message, times=2)) == ACK
    assert rows.books(db, message) == rows.Books("done", 1, 0, [], 1)


def test_a_role_that_may_not_even_read_the_version_is_shown_the_grants(dsn: str, db: Db, role: str) -> None:
    with psycopg.connect(as_role(dsn, role), autocommit=True) as conn:
        with pytest.raises(UsageError, match="GRANT USAGE ON SCHEMA onceward") as caught:
            check_schema(conn)
        obey(db, caught.value)
        check_schema(conn)


@pytest.fixture
def granted(db: Db, role: str) -> Callable[[str], None]:
    """Gives the role what the documentation lists for one of its roles."""
    [block] = (
        text for text in re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL) if "GRANT" in text
    )

    def grant(name: str) -> None:
        statements = re.findall(rf"^GRANT [^;]* TO {name};", block, re.MULTILINE)
        assert len(statements) >= 2
        for statement in statements:
            db.execute(statement.replace(name, role).encode())

    return grant


def test_the_grants_that_the_documentation_lists_suffice_for_a_consumer(
    granted: Callable[[str], None], dsn: str, opened: Opened, db: Db, role: str
) -> None:
    granted("shop_consumer")
    db.execute(f"GRANT INSERT ON effects TO {role}".encode())
    assert opened(transactional(), database=as_role(dsn, role), upkeep=False).deliver(delivery(order())) == ACK


def test_the_grants_that_the_documentation_lists_suffice_for_producer_and_relay(
    granted: Callable[[str], None], dsn: str, role: str
) -> None:
    message, sink = order(subject="order-1"), ListSink()
    granted("shop_web")
    with psycopg.connect(as_role(dsn, role)) as conn:
        publish(conn, message)
    granted("shop_relay")
    drain(as_role(dsn, role), sink)
    assert sink.ids == [message.id]


def test_the_grants_that_the_documentation_lists_suffice_for_a_person_who_decides(
    granted: Callable[[str], None], dsn: str, db: Db, role: str
) -> None:
    with db.transaction():
        for _ in range(2):
            publish(db, order(subject="order-1"))
    db.execute("UPDATE onceward.outbox SET set_aside_at = clock_timestamp()")
    granted("shop_person")
    with psycopg.connect(as_role(dsn, role), autocommit=True) as conn:
        check_schema(conn)
        retried, discarded = [row.position for row in list_outbox(conn)]
        assert retry_outbox(conn, retried, decided_by="ann").decided
        assert discard_outbox(conn, discarded, decided_by="ann", reason="sent by hand").decided
        assert [(one.decision, one.count) for one in read_status(conn).decisions] == [("discard", 1), ("retry", 1)]


def test_the_grants_that_the_documentation_lists_suffice_to_end_what_is_parked(
    granted: Callable[[str], None], dsn: str, opened: Opened, db: Db, role: str
) -> None:
    messages, provider = [order() for _ in range(4)], Provider()
    consumer = opened(charging(provider, attempts_max=1))
    for message in messages:
        provider.before.append(ConnectionError("cut"))
        assert consumer.deliver(delivery(message)) == ACK
        rows.age_intents(db, message, PAST_THE_WINDOW)
    granted("shop_person")
    with psycopg.connect(as_role(dsn, role), autocommit=True) as conn:
        about: dict[str, Any] = {"consumer": rows.CONSUMER, "decider": Decider(name="ann", reason="asked the provider")}
        made = [
            redrive(conn, messages[0].id, **about),
            settle(conn, messages[1].id, effect="charge", answer={"id": "ch_1"}, **about),
            settle_as_not_happened(conn, messages[2].id, effect="charge", **about),
            discard_parked(conn, messages[3].id, **about),
        ]
        assert [(decided.kind, decided.why_not) for decided in made] == [(decided.kind, "") for decided in made]
        assert len(list_decisions(conn)) == len(made)

"""The four roles of `onceward migrate --roles`: each does its work through the real loops, and is refused all else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tests.support import rows
from tests.support.days import old_message
from tests.support.deliveries import Provider, delivery, order, order_aged
from tests.support.queues import ListSink, ListSource, consuming, drain
from tests.support.shop import charging, transactional
from tests.support.waiting import Background

from onceward.consumer import OpenConsumer
from onceward.consumer_loop import run
from onceward.day_partitions import database_now, make_partitions, upkeep
from onceward.decisions import list_decisions
from onceward.errors import Reject, UsageError
from onceward.inbox import Inbox, TakeResult
from onceward.message import Message
from onceward.outbox import publish
from onceward.outbox_rows import list_outbox, show_outbox
from onceward.parked import list_parked, show_parked
from onceward.rights import KINDS, SEQUENCES, TABLES, make_roles, role_names, roles_sql
from onceward.schema import check_schema, migrate
from onceward.status import read_status
from onceward.transport import ACK

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "database.md"
DAY = 86_400
NOTHING = "\N{EN DASH}"
GRANTS = re.compile(r"^GRANT ([A-Z, ]+(?:\([a-z_, ]+\))?) ON (SCHEMA |SEQUENCE )?(.+) TO (.+);$", re.MULTILINE)


@contextmanager
def made_roles(conn: Db, root: Db) -> Iterator[dict[str, str]]:
    """The four roles, by their kind; a role belongs to the whole server, so `root` takes them away again."""
    prefix = f"r_{conn.info.dbname}"
    names = dict(zip(KINDS, make_roles(conn, prefix=prefix), strict=True))
    for name in names.values():
        root.execute(f"ALTER ROLE {name} LOGIN".encode())
    try:
        yield names
    finally:
        for name in names.values():
            root.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}".encode())


@pytest.fixture
def roles(db: Db) -> Iterator[dict[str, str]]:
    with made_roles(db, db) as names:
        db.execute(f"GRANT INSERT, SELECT ON effects TO {names['consumer']}".encode())
        yield names


def as_role(dsn: str, role: str) -> str:
    return make_conninfo(dsn, user=role)


# ---- what each may ---------------------------------------------------------------------------------------------------


def test_a_consumer_handles_charges_publishes_fails_and_parks(
    opened: Opened, db: Db, dsn: str, roles: dict[str, str]
) -> None:
    def publish_or_reject(message: Message, tx: Db) -> None:
        match message.json():
            case {"reject": True}:
                raise Reject("no")
            case {"fail": True}:
                raise RuntimeError("again")
            case _:
                publish(tx, order())
                rows.write_effect(tx, message)

    database, provider = as_role(dsn, roles["consumer"]), Provider()
    writes = opened(transactional(publish_or_reject, attempts_max=2), database=database, upkeep=False)
    charges = opened(charging(provider), database=database, upkeep=False)
    messages = [order(), order({"reject": True}), order({"fail": True}), order_aged(db, 60 * DAY), order_aged(db, -2 * DAY)]
    for times in (1, 2):
        for message in messages:
            writes.deliver(delivery(message, times=times))
    assert [rows.state(db, message) for message in messages] == ["done", "parked", "parked", None, "parked"]
    provider.after.append(ConnectionError("cut"))
    charged = order()
    assert [charges.deliver(delivery(charged)).action for _ in range(2)] == ["release", "ack"]
    assert rows.books(db, charged)[:3] == ("done", 2, 1)
    assert len(rows.outbox(db)) == 1


def test_a_consumers_loop_runs_as_a_role_of_its_own(
    background: Background, dsn: str, db: Db, roles: dict[str, str]
) -> None:
    source, messages = ListSource(), [order() for _ in range(5)]
    source.waiting.extend(delivery(message) for message in messages)
    options = {"source": source, "database": as_role(dsn, roles["consumer"]), "threads": 2, "upkeep": False}
    with consuming(background, run, consumer=transactional(), **options):
        source.wait_for_settled(len(messages))
    assert {rows.state(db, message) for message in messages} == {"done"}


def test_a_loop_of_ones_own_registers_and_takes_as_a_consumer(dsn: str, roles: dict[str, str]) -> None:
    with psycopg.connect(as_role(dsn, roles["consumer"]), autocommit=True) as conn:
        inbox = Inbox("mine")
        inbox.register(conn)
        take = inbox.claim(conn, order())
        assert take.result is TakeResult.TAKEN


def test_a_relay_sends_postpones_and_sets_aside(dsn: str, db: Db, roles: dict[str, str]) -> None:
    messages, sink = [order(subject="a"), order(), order(subject="b")], ListSink()
    with db.transaction():
        for message in messages:
            publish(db, message)
    sink.refuse = {messages[1].id}
    drain(as_role(dsn, roles["relay"]), sink, attempts_max=1)
    assert sink.ids == [messages[0].id, messages[2].id]
    assert [row.set_aside_at is not None for row in rows.outbox(db)] == [True]


def test_a_relay_is_told_that_positions_were_reset(dsn: str, db: Db, roles: dict[str, str]) -> None:
    with db.transaction():
        publish(db, order())
    db.execute("SELECT setval('onceward.outbox_position_seq', 1, false)")
    with pytest.raises(UsageError, match="its sequence is at"):
        drain(as_role(dsn, roles["relay"]), ListSink())


def test_upkeep_makes_days_that_a_consumer_uses_and_drops_those_that_are_past(
    opened: Opened, db: Db, dsn: str, roles: dict[str, str]
) -> None:
    old_message(db)
    today = database_now(db).date()
    for table in ("inbox", "intents"):
        db.execute(f"DROP TABLE onceward.{table}_p{today:%Y%m%d}".encode())
    consumer = opened(charging(Provider()), database=as_role(dsn, roles["consumer"]), upkeep=False)
    with psycopg.connect(as_role(dsn, roles["upkeep"]), autocommit=True) as conn:
        check_schema(conn)
        result = upkeep(conn)
    assert (len(result.made), len(result.dropped)) == (2, 2)
    message = order()
    assert consumer.deliver(delivery(message)) == ACK
    assert rows.state(db, message) == "done"


def test_a_day_that_the_owner_made_is_dropped_by_upkeep(db: Db, dsn: str, roles: dict[str, str]) -> None:
    """Of the tables' owner, of a superuser's cron job: a partition belongs to the owner of its table."""
    old_message(db)
    with psycopg.connect(as_role(dsn, roles["upkeep"]), autocommit=True) as conn:
        assert len(upkeep(conn).dropped) == 2


def test_a_reader_sees_all_that_the_commands_show(opened: Opened, dsn: str, db: Db, roles: dict[str, str]) -> None:
    def reject(_: Message) -> None:
        raise Reject("no")

    message = order()
    opened(charging(Provider())).deliver(delivery(order()))
    opened(transactional(lambda message, _: reject(message))).deliver(delivery(message))
    with db.transaction():
        publish(db, order())
    with psycopg.connect(as_role(dsn, roles["reader"]), autocommit=True) as conn:
        check_schema(conn)
        assert (read_status(conn).outbox.waiting, len(list_outbox(conn))) == (1, 1)
        assert show_outbox(conn, list_outbox(conn)[0].position)
        assert [one.message_id for one in list_parked(conn)] == [message.id]
        assert show_parked(conn, message.id)
        assert list_decisions(conn) == []


# ---- what each may not ---------------------------------------------------------------------------------------------------

READS = {
    "inbox": "SELECT state FROM onceward.inbox",
    "intents": "SELECT answer FROM onceward.intents",
    "outbox": "SELECT payload FROM onceward.outbox",
    "attempts": "SELECT error FROM onceward.attempts",
    "parked": "SELECT body FROM onceward.parked",
    "decisions": "SELECT was FROM onceward.decisions",
    "consumers": "SELECT name FROM onceward.consumers",
    "retired": "SELECT day FROM onceward.retired",
}
WRITES = {
    "inbox": "UPDATE onceward.inbox SET state = 'done'",
    "intents": "UPDATE onceward.intents SET state = 'done'",
    "outbox": "UPDATE onceward.outbox SET payload = ''",
    "attempts": "UPDATE onceward.attempts SET n = 0",
    "parked": "UPDATE onceward.parked SET body = ''",
    "decisions": "UPDATE onceward.decisions SET reason = ''",
    "consumers": "UPDATE onceward.consumers SET window_seconds = 1",
    "retired": "UPDATE onceward.retired SET day = NULL",
    "migrations": "UPDATE onceward.migrations SET version = 99",
}
DELETES = {table: f"DELETE FROM onceward.{table}" for table in TABLES}
DECIDES = (
    "INSERT INTO onceward.decisions (about, decision, message_id, reason, decided_by, was) "
    "VALUES ('outbox', 'discard', '', 'x', 'x', '{}')"
)
PUBLISHES = (
    "INSERT INTO onceward.outbox (id, aggregatetype, type, source, time, payload) VALUES ('', '', '', '', now(), '')"
)
SHAPE = [
    "CREATE TABLE onceward.mine ()",
    "DROP TABLE onceward.inbox_untimed",
    "ALTER TABLE onceward.outbox DISABLE TRIGGER ALL",
    "ALTER TABLE onceward.inbox ADD COLUMN mine text",
    "TRUNCATE onceward.inbox",
    "TRUNCATE onceward.parked",
    "SELECT setval('onceward.outbox_position_seq', 1)",
]
REFUSED = {
    "consumer": [READS["outbox"], READS["decisions"], DECIDES, *SHAPE]
    # It forgets the durations of old days by itself, and nothing else.
    + [text for table, text in DELETES.items() if table != "handler_times"]
    + [WRITES[table] for table in ("outbox", "decisions", "retired", "migrations")],
    "relay": [*(READS[table] for table in READS if table != "outbox"), DECIDES, PUBLISHES, *SHAPE]
    + [text for table, text in (WRITES | DELETES).items() if table != "outbox"]
    + [WRITES[table] for table in WRITES if table != "outbox"],
    "upkeep": [READS[table] for table in ("outbox", "parked", "decisions")]
    + [WRITES[table] for table in ("outbox", "parked", "decisions", "migrations", "attempts", "consumers")]
    + [DELETES[table] for table in ("outbox", "parked", "decisions", "migrations", "retired")]
    + [DECIDES, PUBLISHES, "TRUNCATE onceward.parked", SHAPE[-1], "ALTER TABLE onceward.outbox DISABLE TRIGGER ALL"],
    "reader": [*WRITES.values(), *DELETES.values(), DECIDES, PUBLISHES, *SHAPE, "SELECT 1 FROM onceward.inbox FOR UPDATE"],
}


def allowed(dsn: str, statements: list[str]) -> list[str]:
    """Those of these statements that Postgres does not refuse."""
    found = []
    with psycopg.connect(dsn) as conn:
        for statement in statements:
            try:
                conn.execute(statement.encode())
            except psycopg.errors.InsufficientPrivilege:
                pass
            else:
                found.append(statement)
            conn.rollback()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_refused_what_it_need_not_do(kind: str, dsn: str, roles: dict[str, str]) -> None:
    assert allowed(as_role(dsn, roles[kind]), REFUSED[kind]) == []


@pytest.mark.parametrize(
    ("kind", "right"),
    [
        ("consumer", "DELETE ON onceward.parked"),
        ("relay", "SELECT ON onceward.inbox"),
        ("upkeep", "UPDATE ON onceward.decisions"),
        ("reader", "INSERT ON onceward.outbox"),
    ],
)
def test_one_right_too_many_is_found(kind: str, right: str, db: Db, dsn: str, roles: dict[str, str]) -> None:
    db.execute(f"GRANT {right} TO {roles[kind]}".encode())
    assert allowed(as_role(dsn, roles[kind]), REFUSED[kind]) != []


@pytest.mark.parametrize("kind", ["consumer", "relay", "reader"])
def test_only_upkeep_may_make_or_retire_a_day(kind: str, db: Db, dsn: str, roles: dict[str, str]) -> None:
    old_message(db)
    with psycopg.connect(as_role(dsn, roles[kind]), autocommit=True) as conn:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            make_partitions(conn, days=[database_now(db).date().replace(year=2001)])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            upkeep(conn)


def test_a_consumer_is_told_to_start_without_upkeep(opened: Opened, dsn: str, db: Db, roles: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="--no-upkeep") as caught:
        opened(transactional(), database=as_role(dsn, roles["consumer"]))
    assert f'GRANT "{roles["upkeep"]}" TO "{roles["consumer"]}";' in str(caught.value)
    db.execute(f"GRANT {roles['upkeep']} TO {roles['consumer']}".encode())
    opened(transactional(), database=as_role(dsn, roles["consumer"]))


# ---- the script ---------------------------------------------------------------------------------------------------


def rights_of(conn: Db) -> list[Any]:
    """Who owns what of the schema, and which rights everybody has there."""
    return conn.execute(
        "SELECT c.relname, c.relowner::regrole::text, a.grantee::regrole::text, a.privilege_type, t.attname, t.attacl::text"
        "  FROM pg_class AS c LEFT JOIN LATERAL aclexplode(c.relacl) AS a ON true"
        "  LEFT JOIN pg_attribute AS t ON t.attrelid = c.oid AND t.attacl IS NOT NULL"
        " WHERE c.relnamespace = 'onceward'::regnamespace ORDER BY 1, 2, 3, 4, 5"
    ).fetchall()


def test_every_table_sequence_and_function_of_the_schema_has_its_rights(db: Db) -> None:
    found = db.execute(
        "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'onceward'::regnamespace AND NOT relispartition"
        " AND relkind NOT IN ('i', 'I')"
    ).fetchall()
    assert {name for name, kind in found if kind in ("r", "p")} == set(TABLES)
    assert {name for name, kind in found if kind not in ("r", "p")} == set(SEQUENCES)
    assert rows.scalar(db, "SELECT count(*) FROM pg_proc WHERE pronamespace = 'onceward'::regnamespace") == 0


def test_a_second_run_changes_nothing_and_takes_back_what_was_added(db: Db, roles: dict[str, str]) -> None:
    before = rights_of(db)
    db.execute(f"GRANT DELETE ON onceward.decisions TO {roles['reader']}".encode())
    make_roles(db, prefix=f"r_{db.info.dbname}")
    assert rights_of(db) == before


def test_an_owner_that_may_make_roles_need_not_be_a_superuser_and_migrates_on(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as root:
        owner = f"owner_{root.info.dbname}"
        root.execute(f"CREATE ROLE {owner} LOGIN CREATEROLE".encode())
        root.execute(f"GRANT CREATE ON DATABASE {root.info.dbname} TO {owner}".encode())
        try:
            with psycopg.connect(as_role(empty_dsn, owner), autocommit=True) as conn:
                migrate(conn)
                with made_roles(conn, root) as names:
                    make_roles(conn, prefix=f"r_{conn.info.dbname}")
                    assert migrate(conn) == []
                    assert len(make_partitions(conn, days=[database_now(conn).date().replace(year=2100)])) == 2
                    conn.execute("ALTER TABLE onceward.inbox ADD COLUMN later text")
                    with psycopg.connect(as_role(empty_dsn, names["upkeep"]), autocommit=True) as keeping:
                        upkeep(keeping)
        finally:
            root.execute(f"DROP OWNED BY {owner} CASCADE; DROP ROLE {owner}".encode())


def test_a_role_that_may_make_none_is_told_who_may(db: Db, dsn: str, roles: dict[str, str]) -> None:
    reading = psycopg.connect(as_role(dsn, roles["reader"]), autocommit=True)
    with reading as conn, pytest.raises(UsageError, match=r"migrate --roles other --sql"):
        make_roles(conn, prefix="other")
    assert rows.scalar(db, "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'other%'") == 0


@pytest.mark.parametrize("prefix", ["", "Shop", "1shop", "shop; DROP", "s" * 49, 'sh"op'])
def test_a_prefix_that_would_need_quoting_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError, match="prefix"):
        role_names(prefix)


def test_the_page_lists_what_the_script_grants() -> None:
    granted = {("upkeep", table): "owner" for table in ("inbox", "intents")}
    for rights, kind, names, to in GRANTS.findall(roles_sql(prefix="p")):
        shown = rights.strip().replace("(position, created_at, set_aside_at)", "(its age)")
        for name in names.split(", "):
            for role in to.split(", "):
                place = role.removeprefix("p_"), f"{kind.lower()}{name.removeprefix('onceward.')}"
                granted[place] = granted.get(place) or shown
    section = PAGE.read_text(encoding="utf-8").partition("### Four roles")[2].partition("\n#")[0]
    listed = {
        (kind, thing): cell.strip()
        for thing, cells in re.findall(r"^\| `([a-z_ ]+)` \|(.*)\|$", section, re.MULTILINE)
        for kind, cell in zip(KINDS, cells.split("|"), strict=True)
        if cell.strip() != NOTHING
    }
    assert listed == granted

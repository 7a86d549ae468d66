"""pgmq: the conformance suite, and what is peculiar to it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from itertools import count, groupby
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from tests.conftest import start_cluster
from tests.support import rows
from tests.support.deliveries import order
from tests.support.queues import says_that_it_is_away
from tests.support.waiting import until

from onceward.errors import TransportError, UsageError
from onceward.message import MalformedMessage, Message
from onceward.testing.proxy import Proxy
from onceward.testing.transport import Rig, TransportSuite, receive_all, receive_one
from onceward.transport import ACK, Outcome, release
from onceward.transports import pgmq

Db = psycopg.Connection[Any]
_queues = count(1)
QUEUE = "orders"
HEADERS = {"id": "x", "type": "order.placed"}


class TestPgmq(TransportSuite):
    """The contract."""

    dsn: str
    proxy: Proxy

    @pytest.fixture(autouse=True)
    def database(self, dsn: str) -> Iterator[None]:
        self.dsn = dsn
        with Proxy(dsn) as self.proxy:
            yield

    def make(self) -> Rig:
        queue = f"queue_{next(_queues)}"
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            pgmq.create_queue(conn, queue)
        return Rig(
            source=lambda: pgmq.Source(queue, self.proxy.dsn, visibility_seconds=1),
            sink=lambda: pgmq.Sink(queue, self.proxy.dsn),
            cut=self._cut,
        )

    def _cut(self) -> None:
        self.proxy.cut()
        self.proxy.heal()


@pytest.fixture
def queue(db: Db) -> str:
    pgmq.create_queue(db, QUEUE)
    return QUEUE


@pytest.fixture
def source(queue: str, dsn: str, closing: Callable[[Any], Any]) -> pgmq.Source:
    return closing(pgmq.Source(queue, dsn, visibility_seconds=30))  # type: ignore[no-any-return]


@pytest.fixture
def sink(queue: str, dsn: str, closing: Callable[[Any], Any]) -> pgmq.Sink:
    return closing(pgmq.Sink(queue, dsn))  # type: ignore[no-any-return]


def test_installing_and_creating_twice_changes_nothing(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        assert [pgmq.install(conn), pgmq.install(conn)] == [True, False]
        assert [pgmq.create_queue(conn, QUEUE) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("seconds", [0, -1, 1.5])
def test_visibility_is_whole_seconds(seconds: float, dsn: str) -> None:
    with pytest.raises(UsageError, match="whole seconds"):
        pgmq.Source(QUEUE, dsn, visibility_seconds=seconds)  # type: ignore[arg-type]


def test_a_release_may_be_shorter_than_a_second(source: pgmq.Source, sink: pgmq.Sink, db: Db) -> None:
    sink.publish([order()])
    source.settle([(receive_one(source), release(0.25))])
    left = rows.scalar(db, f"SELECT extract(epoch FROM vt - clock_timestamp())::float8 FROM pgmq.q_{QUEUE}")
    assert left <= 0.25


def test_an_acknowledged_message_is_deleted(source: pgmq.Source, sink: pgmq.Sink, db: Db) -> None:
    sink.publish([order()])
    source.settle([(receive_one(source), ACK)])
    assert rows.scalar(db, f"SELECT count(*) FROM pgmq.q_{QUEUE}") == 0
    assert rows.scalar(db, f"SELECT count(*) FROM pgmq.a_{QUEUE}") == 0


def test_with_archive_an_acknowledged_message_is_kept_there(
    queue: str, dsn: str, sink: pgmq.Sink, db: Db, closing: Callable[[Any], Any]
) -> None:
    source = closing(pgmq.Source(queue, dsn, archive=True))
    sink.publish([order()])
    assert list(source.settle([(receive_one(source), ACK)])) == [Outcome.SETTLED]
    assert rows.scalar(db, f"SELECT count(*) FROM pgmq.q_{QUEUE}") == 0
    assert rows.scalar(db, f"SELECT count(*) FROM pgmq.a_{QUEUE}") == 1


def test_a_body_travels_as_base64_and_headers_as_they_are(sink: pgmq.Sink, db: Db) -> None:
    message = order(subject="order-1")
    sink.publish([message])
    row = db.execute(f"SELECT message, headers FROM pgmq.q_{QUEUE}").fetchone()
    assert row == ({"data_base64": base64.b64encode(message.body).decode()}, message.to_wire()[0])


def test_messages_of_one_batch_come_in_their_order(source: pgmq.Source, sink: pgmq.Sink) -> None:
    sent = [order(subject="order-1") for _ in range(20)]
    sink.publish(sent)
    assert [delivery.headers["id"] for delivery in receive_all(source, 20)] == [message.id for message in sent]


# ---- what other producers write ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [{"amount": 1}, [1, 2], "text", 7, None, {"data_base64": "not base64!"}, {"data_base64": 7}]
)
def test_another_producers_json_is_the_body(value: object, source: pgmq.Source, db: Db) -> None:
    db.execute(
        f"SELECT pgmq.send('{QUEUE}', %s::jsonb, %s::jsonb)", (Jsonb(value), Jsonb({"id": "x", "type": "order.placed"}))
    )
    delivery = receive_one(source)
    assert json.loads(delivery.body) == value
    assert delivery.headers == HEADERS


def test_the_body_of_another_producer_is_the_same_at_every_delivery(source: pgmq.Source, db: Db) -> None:
    db.execute(f"""SELECT pgmq.send('{QUEUE}', '{{"b": 1.10, "a": [1e2, "\u00fc"]}}')""".encode())
    first = receive_one(source)
    source.settle([(first, release(0))])
    assert receive_one(source).body == first.body


def test_headers_that_are_not_text_are_kept_as_json_text(source: pgmq.Source, db: Db) -> None:
    headers = {"id": 7, "nested": {"a": 1}, "none": None, "type": "order.placed"}
    db.execute(f"SELECT pgmq.send('{QUEUE}', '1'::jsonb, %s::jsonb)", (Jsonb(headers),))
    assert receive_one(source).headers == {"id": "7", "nested": '{"a": 1}', "type": "order.placed"}


def test_a_message_without_headers_is_not_an_envelope(source: pgmq.Source, db: Db) -> None:
    db.execute(f"SELECT pgmq.send('{QUEUE}', '{{}}')".encode())
    delivery = receive_one(source)
    with pytest.raises(MalformedMessage, match="without id and type"):
        Message.from_wire(delivery.headers, delivery.body)


@pytest.mark.parametrize(
    "text", ["1e5000", "1" + "0" * 400 + ".5", "[" * 3000 + "]" * 3000], ids=["5001 digits", "more than a float", "deep"]
)
def test_json_that_python_cannot_read_is_still_a_body(text: str, source: pgmq.Source, sink: pgmq.Sink, db: Db) -> None:
    """It must not stop the messages behind it."""
    db.execute(f"SELECT pgmq.send('{QUEUE}', %s::jsonb, %s::jsonb)", (text, '{"id": "x", "type": "y"}'))
    sink.publish([order()])
    strange, ours = receive_all(source, 2)
    assert strange.body
    assert ours.headers["type"] == "order.placed"


@pytest.mark.parametrize("text", ['{"id": 1e5000}', '{"id": ' + "[" * 3000 + "]" * 3000 + "}", "[1]"])
def test_headers_that_python_cannot_read_are_not_an_envelope(
    text: str, source: pgmq.Source, sink: pgmq.Sink, db: Db
) -> None:
    db.execute(f"SELECT pgmq.send('{QUEUE}', '1'::jsonb, %s::jsonb)", (text,))
    sink.publish([order()])
    strange, ours = receive_all(source, 2)
    assert "type" not in strange.headers
    assert ours.headers["type"] == "order.placed"


# ---- where messages go ---------------------------------------------------------------------------------------------------


def test_each_type_goes_to_its_queues(dsn: str, db: Db, closing: Callable[[Any], Any]) -> None:
    for name in ("charges", "ledger", "mail"):
        pgmq.create_queue(db, name)
    sink = closing(pgmq.Sink({"order.placed": "charges", "order.paid": ["ledger", "mail"]}, dsn))
    errors = sink.publish([order(), Message(type="order.paid"), Message(type="order.lost")])
    assert [type(error) for error in errors] == [type(None), type(None), UsageError]
    counts = [rows.scalar(db, f"SELECT count(*) FROM pgmq.q_{name}") for name in ("charges", "ledger", "mail")]
    assert counts == [1, 1, 1]


@pytest.mark.parametrize("queues", [None, "", {}, ["orders", "bookings"]])
def test_what_names_no_queue_is_refused_where_it_is_written(queues: Any, dsn: str) -> None:
    with pytest.raises(UsageError, match="mapping of types to queues"):
        pgmq.Sink(queues, dsn)


def test_an_unknown_queue_is_an_error_of_its_entries_alone(
    dsn: str, db: Db, queue: str, closing: Callable[[Any], Any]
) -> None:
    sink = closing(pgmq.Sink({"order.placed": queue, "order.paid": "nowhere"}, dsn))
    errors = sink.publish([Message(type="order.paid"), order(), Message(type="order.paid"), order()])
    assert [error is None for error in errors] == [False, True, False, True]
    assert rows.scalar(db, f"SELECT count(*) FROM pgmq.q_{queue}") == 2


def test_behind_an_entry_that_was_refused_its_subject_waits(sink: pgmq.Sink, db: Db) -> None:
    """The rest of the batch goes; a later message of the refused one's subject must not overtake it."""
    db.execute(f"ALTER TABLE pgmq.q_{QUEUE} ADD CONSTRAINT small CHECK (length(message::text) < 1000)".encode())
    big = Message(type="order.placed", body=b"x" * 2000, subject="a")
    errors = sink.publish([order(subject="b"), big, order(subject="a"), order(subject="b"), order()])
    assert [error is None for error in errors] == [True, False, False, True, True]


def test_behind_an_entry_that_one_queue_refused_its_subject_waits_for_every_queue(
    dsn: str, db: Db, closing: Callable[[Any], Any]
) -> None:
    for name in ("placed", "paid"):
        pgmq.create_queue(db, name)
    db.execute("ALTER TABLE pgmq.q_placed ADD CONSTRAINT full_now CHECK (msg_id < 0) NOT VALID")
    sink = closing(pgmq.Sink({"order.placed": "placed", "order.paid": "paid"}, dsn))
    sent = [
        Message(type=f"order.{what}", subject=subject)
        for what, subject in (("paid", "a"), ("placed", "a"), ("paid", "a"), ("paid", "b"), ("placed", "c"), ("paid", "c"))
    ]
    errors = sink.publish(sent)
    assert [error is None for error in errors] == [True, False, False, True, False, False]
    stored = db.execute("SELECT headers->>'id' FROM pgmq.q_paid ORDER BY msg_id").fetchall()
    assert stored == [(sent[0].id,), (sent[3].id,)]


def test_a_large_batch_is_stored_in_parts_of_bounded_size_in_its_order(sink: pgmq.Sink, db: Db) -> None:
    sizes = [1, pgmq.SEND_BYTES_MAX // 2, pgmq.SEND_BYTES_MAX // 2, 1, pgmq.SEND_BYTES_MAX + 1, 1]
    sent = [Message(type="order.placed", body=b"x" * size) for size in sizes]
    assert list(sink.publish(sent)) == [None] * len(sent)
    stored = db.execute(f"SELECT headers->>'id', xmin::text FROM pgmq.q_{QUEUE} ORDER BY msg_id").fetchall()
    assert [name for name, _ in stored] == [message.id for message in sent]
    together = [len(list(part)) for _, part in groupby(stored, key=lambda row: row[1])]
    assert together == [2, 2, 1, 1]


# ---- what is looked at before it is used ---------------------------------------------------------------------------------


def test_an_unlogged_queue_is_refused_with_what_mends_it(dsn: str, db: Db) -> None:
    db.execute("SELECT pgmq.create_unlogged('Fast')")
    with pytest.raises(UsageError, match="UNLOGGED") as refused:
        pgmq.check_queue(dsn, "Fast")
    db.execute(str(refused.value).partition("with ")[2].encode())
    pgmq.check_queue(dsn, "Fast")


def test_a_limit_on_idle_sessions_does_not_end_ours(dsn: str, db: Db, queue: str, closing: Callable[[Any], Any]) -> None:
    db.execute(f"ALTER DATABASE {db.info.dbname} SET idle_session_timeout TO '100ms'".encode())
    sink, source = closing(pgmq.Sink(queue, dsn)), closing(pgmq.Source(queue, dsn))
    for _ in range(2):
        assert list(sink.publish([order()])) == [None]
        assert len(source.receive(10, 0).deliveries) == 1
        db.execute("SELECT pg_sleep(0.3)")


# ---- the server goes and comes -------------------------------------------------------------------------------------------


def test_after_the_server_was_killed_and_restarted_both_work_again() -> None:
    """What was confirmed is there; what failed said so."""
    with start_cluster() as cluster:
        with psycopg.connect(cluster.dsn, autocommit=True) as conn:
            pgmq.install(conn)
            pgmq.create_queue(conn, QUEUE)
        source, sink = pgmq.Source(QUEUE, cluster.dsn), pgmq.Sink(QUEUE, cluster.dsn)
        first, second = order(), order()
        assert list(sink.publish([first])) == [None]
        held = receive_one(source)
        cluster.kill()
        says_that_it_is_away(source, sink, held, second)
        cluster.restart()
        assert until(lambda: _again(lambda: sink.publish([second]))) == [None]
        assert list(source.settle([(held, release(0))])) == [Outcome.SETTLED]
        assert {delivery.headers["id"] for delivery in receive_all(source, 2)} == {first.id, second.id}
        source.close()
        sink.close()


def _again(call: Callable[[], Any]) -> Any:
    try:
        return list(call())
    except TransportError:
        return None

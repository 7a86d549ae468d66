"""Several consumers in one process: each has its own source, and they end together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool
from tests.support import rows
from tests.support.deliveries import delivery, order
from tests.support.queues import ListSource, consuming
from tests.support.shop import AT_ONCE
from tests.support.waiting import Background, until

from onceward.consumer import Consumer
from onceward.errors import UsageError
from onceward.health import Health
from onceward.loops_together import run_all
from onceward.message import Message
from onceward.transport import Received

Db = psycopg.Connection[Any]


def consumer(name: str, note: Callable[[], object] = lambda: None) -> Consumer:
    """One whose handler writes its name."""
    made = Consumer(name, backoff=AT_ONCE)

    @made.transactional("order.placed")
    def write(message: Message, tx: Db) -> None:
        note()
        rows.write_effect(tx, message, name)

    return made


def given(count: int) -> tuple[ListSource, list[Message]]:
    source, messages = ListSource(), [order() for _ in range(count)]
    source.waiting.extend(delivery(message) for message in messages)
    return source, messages


def test_each_consumer_handles_what_its_own_source_gives(background: Background, dsn: str, db: Db) -> None:
    (first, placed), (second, booked) = given(3), given(4)
    health = Health()
    consumers = [(consumer("charges"), first), (consumer("ledger"), second)]
    with consuming(background, run_all, consumers=consumers, database=dsn, threads=2, health=health):
        first.wait_for_settled(3)
        second.wait_for_settled(4)
        until(lambda: health.ready, "both being ready")
    assert rows.scalar(db, "SELECT count(*) FROM effects WHERE note = 'charges'") == 3
    assert {rows.state(db, message, "charges") for message in placed} == {"done"}
    assert {rows.state(db, message, "ledger") for message in booked} == {"done"}
    assert {*health.report()["consumers"]} == {"1 charges", "2 ledger"}
    assert health.report()["draining"]


class Hopeless(ListSource):
    """Says at once, or when it is let, that no try can succeed."""

    def __init__(self, error: BaseException, gate: threading.Event | None = None) -> None:
        super().__init__()
        self.error = error
        self.gate = gate

    def receive(self, limit: int, wait_seconds: float) -> Received:
        if self.gate is None or self.gate.is_set():
            raise self.error
        return super().receive(limit, wait_seconds)


def test_one_that_can_never_go_on_ends_all_after_their_drain(background: Background, dsn: str, db: Db) -> None:
    handling, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        handling.set()
        go_on.wait(20)

    source, [message] = given(1)
    hopeless = Hopeless(UsageError("this queue is gone"), handling)
    consumers = [(consumer("slow", hold), source), (consumer("other"), hopeless)]
    running = background(run_all, consumers, database=dsn, threads=1)
    until(lambda: source.receives > 0 and handling.is_set())
    settled_while_draining = not running.done()
    go_on.set()
    with pytest.raises(UsageError, match="this queue is gone"):
        running.result(timeout=20)
    assert settled_while_draining
    assert rows.state(db, message, "slow") == "done"


def test_an_exit_in_one_of_them_is_not_the_processs_own(dsn: str) -> None:
    with pytest.raises(RuntimeError, match="SystemExit"):
        run_all([(consumer("a"), ListSource()), (consumer("b"), Hopeless(SystemExit(0)))], database=dsn, threads=1)


def test_what_cannot_work_is_raised_before_anything_is_received(dsn: str) -> None:
    source, _ = given(1)
    with pytest.raises(UsageError, match="is not a Source"):
        run_all([(consumer("a"), source), (consumer("b"), lambda: None)], database=dsn)  # type: ignore[list-item,return-value]
    with pytest.raises(UsageError, match="no handler"):
        run_all([(consumer("a"), source), (Consumer("empty"), ListSource())], database=dsn)
    assert (source.receives, len(source.waiting)) == (0, 1)


@pytest.mark.parametrize("consumers", [[], None, [consumer("a")], [(consumer("a"),)], [("a", ListSource())]], ids=range(5))
def test_what_is_no_list_of_consumers_and_sources_is_refused(consumers: Any, dsn: str) -> None:
    with pytest.raises(UsageError, match=r"list of \(consumer, source\)"):
        run_all(consumers, database=dsn)


def test_a_pool_that_is_large_enough_for_each_alone_is_refused(dsn: str) -> None:
    (first, _), (second, _) = given(0), given(0)
    with ConnectionPool(dsn, min_size=1, max_size=5, open=True) as pool, pytest.raises(UsageError, match="max_size=10"):
        run_all([(consumer("charges"), first), (consumer("ledger"), second)], database=pool, threads=2)

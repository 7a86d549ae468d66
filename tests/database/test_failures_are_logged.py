"""A consumer that fails is heard: one line per failed attempt and per park, with the traceback of what was no signal."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from tests.support import rows
from tests.support.deliveries import Provider, ProviderError, delivery, order
from tests.support.shop import SHAPES, charging, effectful, of_shape

from onceward.consumer import OpenConsumer
from onceward.errors import Defer, EffectRefused, Reject
from onceward.message import Message
from onceward.perform import Once
from onceward.provider import STRIPE_V1

Db = psycopg.Connection[Any]
Opened = Callable[..., OpenConsumer]
both_shapes = pytest.mark.parametrize("shape", SHAPES)


def raising(error: BaseException) -> Callable[[Message], None]:
    def handle(_: Message) -> None:
        raise error

    return handle


def lines_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "onceward"]


def fields(record: logging.LogRecord) -> dict[str, Any]:
    known: dict[str, Any] = vars(record)["onceward"]
    return known


@both_shapes
def test_a_failed_attempt_is_one_line_with_its_traceback(
    shape: str, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    message = order()
    opened(of_shape(shape, raising(KeyError("amount")), attempts_max=3)).deliver(delivery(message))
    [record] = lines_of(caplog)
    text = record.getMessage()
    for part in ("payments", "order.placed", message.id, "attempt 1 of 3", "retrying in", "KeyError: 'amount'"):
        assert part in text
    assert record.levelno == logging.WARNING
    assert record.exc_info is not None
    assert "raise error" in (caplog.handler.format(record))
    known = fields(record)
    assert (known["consumer"], known["message_type"], known["message_id"]) == ("payments", "order.placed", message.id)
    assert (known["attempt"], known["attempts_max"], known["next"]) == (1, 3, "retry")
    assert known["retry_seconds"] > 0


@both_shapes
def test_the_attempt_that_runs_out_is_one_line_at_error(
    shape: str, opened: Opened, db: Db, caplog: pytest.LogCaptureFixture
) -> None:
    message = order()
    opened(of_shape(shape, raising(KeyError("amount")), attempts_max=1)).deliver(delivery(message))
    [record] = lines_of(caplog)
    assert record.levelno == logging.ERROR
    assert "parked (attempts ran out); run `onceward parked show` for the rest: KeyError: 'amount'" in record.getMessage()
    assert fields(record)["reason"] == "attempts ran out"
    assert "raise error\nKeyError: 'amount'" in rows.parked(db)[0].detail


@pytest.mark.parametrize("status", [401, 500, None])
def test_a_provider_that_is_down_is_logged_at_every_attempt(
    status: int | None, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Provider()
    provider.before = [ProviderError(status) if status else ConnectionError("refused") for _ in range(3)]
    consumer, message = opened(charging(provider, attempts_max=3)), order()
    for times in range(1, 4):
        consumer.deliver(delivery(message, times=times))
    assert [fields(record)["next"] for record in lines_of(caplog)] == ["retry", "retry", "parked"]
    assert all(record.exc_info for record in lines_of(caplog))


@both_shapes
def test_a_deferral_is_not_a_warning(shape: str, opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="onceward")
    opened(of_shape(shape, raising(Defer(5)))).deliver(delivery(order()))
    [record] = lines_of(caplog)
    assert (record.levelno, record.exc_info) == (logging.INFO, None)
    assert "deferred for 5 s" in record.getMessage()


@both_shapes
@pytest.mark.parametrize(
    "error", [Reject("a person must look"), EffectRefused({"code": "declined"})], ids=["reject", "refused"]
)
def test_a_message_that_its_handler_parks_is_one_line_without_a_traceback(
    error: Exception, shape: str, opened: Opened, db: Db, caplog: pytest.LogCaptureFixture
) -> None:
    opened(of_shape(shape, raising(error))).deliver(delivery(order()))
    [record] = lines_of(caplog)
    assert (record.levelno, record.exc_info) == (logging.ERROR, None)
    assert "Traceback" not in rows.parked(db)[0].detail


def test_what_goes_well_is_not_logged(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    for shape in SHAPES:
        opened(of_shape(shape)).deliver(delivery(order()))
    assert lines_of(caplog) == []


# ---- a call can say no -----------------------------------------------------------------------------------------------


def test_a_call_can_say_no_by_raising_effect_refused(opened: Opened, db: Db) -> None:
    """It is recorded as the provider's answer: the retry hears the same, and calls nobody."""
    calls: list[str] = []

    def decline(_request: Any, key: str) -> None:
        calls.append(key)
        raise EffectRefused({"code": "insufficient_funds"})

    def charge(message: Message, once: Once) -> None:
        with pytest.raises(EffectRefused) as refused:
            once.effect("charge", decline, request={}, provider=STRIPE_V1)
        assert refused.value.answer == {"code": "insufficient_funds"}
        with once.transaction() as tx:
            rows.write_effect(tx, message, "declined")
        raise AssertionError("too late to matter")

    message = order()
    consumer = opened(effectful(charge))
    assert consumer.deliver(delivery(message)).action == "ack"
    assert (len(calls), rows.state(db, message), rows.effects(db, message)) == (1, "done", 1)
    assert rows.intents(db, message)[0].refused


def test_a_refusal_that_nobody_handles_is_parked_with_the_answer(opened: Opened, db: Db) -> None:
    def decline(_request: Any, _key: str) -> None:
        raise EffectRefused({"code": "insufficient_funds"})

    def charge(_: Message, once: Once) -> None:
        once.effect("charge", decline, request={}, provider=STRIPE_V1)

    opened(effectful(charge)).deliver(delivery(order()))
    [entry] = rows.parked(db)
    assert (entry.reason, "insufficient_funds" in entry.detail) == ("refused", True)


def test_a_refusal_whose_answer_is_not_json_is_parked_with_what_was_answered(opened: Opened, db: Db) -> None:
    def decline(_request: Any, _key: str) -> None:
        raise EffectRefused(object())

    def charge(_: Message, once: Once) -> None:
        once.effect("charge", decline, request={}, provider=STRIPE_V1)

    opened(effectful(charge)).deliver(delivery(order()))
    assert rows.parked(db)[0].reason == "answer is not JSON"

"""SQS: the conformance suite for standard and FIFO queues, and what is peculiar to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.support.brokers import fresh, installed
from tests.support.deliveries import order
from tests.support.queues import says_that_it_is_away
from tests.support.sqs_queues import Client, answer, change_requests, fresh_queue, make_client, proxied, requests_of
from tests.support.waiting import until

from onceward.errors import TransportError, UsageError
from onceward.message import ATTRIBUTE_BYTES_MAX, MalformedMessage, Message
from onceward.testing.proxy import Proxy
from onceward.testing.servers import ElasticMQ
from onceward.testing.transport import Rig, TransportSuite, receive_all, receive_one
from onceward.transport import ACK, Delivery, Outcome, release
from onceward.transports import sqs
from onceward.transports.sqs_wire import ENVELOPE_BYTES_MAX, HIDDEN_SECONDS_MAX, group_id

DAY = 86_400
KINDS = pytest.mark.parametrize("fifo", [False, True], ids=["standard", "FIFO"])


@pytest.fixture
def client(sqs_endpoint: str) -> Client:
    return make_client(sqs_endpoint)


class TestSqsStandard(TransportSuite):
    """The contract, on a standard queue."""

    fifo = False
    proxy: Proxy
    client: Client

    @pytest.fixture(autouse=True)
    def server(self, sqs_endpoint: str) -> Iterator[None]:
        with proxied(sqs_endpoint) as (self.proxy, endpoint):
            self.client = make_client(endpoint)
            yield

    def make(self) -> Rig:
        queue = fresh_queue(self.client, fifo=self.fifo)
        return Rig(
            source=lambda: sqs.Source(self.client, queue, visibility_seconds=1),
            sink=lambda: sqs.Sink(self.client, queue),
            cut=self._cut,
        )

    def _cut(self) -> None:
        self.proxy.cut()
        self.proxy.heal()


class TestSqsFifo(TestSqsStandard):
    """The contract, on a FIFO queue."""

    fifo = True


@pytest.fixture
def queue(client: Client) -> str:
    return fresh_queue(client)


@pytest.fixture
def fifo_queue(client: Client) -> str:
    return fresh_queue(client, fifo=True)


@pytest.fixture
def source(client: Client, queue: str) -> sqs.Source:
    return sqs.Source(client, queue)


@pytest.fixture
def sink(client: Client, queue: str) -> sqs.Sink:
    return sqs.Sink(client, queue)


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.headers["id"] for delivery in deliveries]


# ---- a FIFO queue's own deduplication ------------------------------------------------------------------------------------


def test_a_message_that_is_sent_again_after_its_ack_comes_again_from_a_fifo_queue(client: Client, fifo_queue: str) -> None:
    """As a redrive sends it: under the same id, perhaps a minute after the message was parked and acknowledged."""
    source, sink, message = sqs.Source(client, fifo_queue), sqs.Sink(client, fifo_queue), order(subject="a")
    for _ in range(2):
        assert list(sink.publish([message])) == [None]
        assert list(source.settle([(receive_one(source), ACK)])) == [Outcome.SETTLED]


def test_a_fifo_queue_confirms_and_drops_what_has_an_id_that_it_has_seen(client: Client, fifo_queue: str) -> None:
    """Why the message's id is not the deduplication id: with it, a redrive would be lost."""
    source, sink, message = sqs.Source(client, fifo_queue), sqs.Sink(client, fifo_queue), order(subject="a")

    def use_the_messages_id(params: dict[str, Any]) -> None:
        for entry in params["Entries"]:
            entry["MessageDeduplicationId"] = message.id

    change_requests(client, "SendMessageBatch", use_the_messages_id)
    sink.publish([message])
    source.settle([(receive_one(source), ACK)])
    assert list(sink.publish([message])) == [None], "it is confirmed"
    assert not source.receive(10, 2).deliveries, "and it never comes"


def test_the_clients_own_retry_stores_a_message_once_in_a_fifo_queue(client: Client, sqs_endpoint: str) -> None:
    queue = fresh_queue(client, fifo=True)
    with proxied(sqs_endpoint) as (proxy, endpoint):
        sink = sqs.Sink(make_client(endpoint, tries=3), queue)
        proxy.lose_reply_to(b"SendMessageBatch")
        sent = order(subject="a"), order(subject="b")
        assert list(sink.publish(sent)) == [None, None]
        assert proxy.hits == 1
    [listed] = [each for each in sqs.list_queues(client) if each.name == queue]
    assert listed.messages == 2


# ---- order ---------------------------------------------------------------------------------------------------------------


@KINDS
def test_behind_an_entry_that_the_queue_refuses_its_subject_waits(client: Client, fifo: bool) -> None:
    queue = fresh_queue(client, fifo=fifo)
    sent = [order(subject=subject) for subject in ("a", "b", "a", "b")]

    def spoil_the_first(params: dict[str, Any]) -> None:
        for entry in params["Entries"]:
            if entry["MessageAttributes"]["id"]["StringValue"] == sent[0].id:
                entry["MessageBody"] = "\x00"

    change_requests(client, "SendMessageBatch", spoil_the_first)
    errors = list(sqs.Sink(client, queue).publish(sent))
    assert [error is None for error in errors] == [False, True, False, True]
    assert isinstance(errors[0], UsageError)
    assert isinstance(errors[2], TransportError)


def test_a_request_to_a_fifo_queue_has_one_message_of_a_subject(client: Client, fifo_queue: str) -> None:
    """SQS may refuse the earlier of two entries and store the later: the earlier would then come after it."""
    requests = requests_of(client, "SendMessageBatch")
    sent = [order(subject=subject) for subject in ("a", "a", "b", "a", "b")] + [order(), order()]
    assert list(sqs.Sink(client, fifo_queue).publish(sent)) == [None] * 7
    groups = [[entry["MessageGroupId"] for entry in request["Entries"]] for request in requests]
    assert groups == [["a", "b", sent[5].id, sent[6].id], ["a", "b"], ["a"]]


@pytest.mark.parametrize(
    "subject", ["customer/42", "with a space", "\u00fc\u2603", "x" * 129, "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"]
)
def test_every_subject_has_a_message_group(client: Client, fifo_queue: str, subject: str) -> None:
    sink, source = sqs.Sink(client, fifo_queue), sqs.Source(client, fifo_queue)
    assert list(sink.publish([order(subject=subject)])) == [None]
    delivery = receive_one(source)
    assert delivery.headers["subject"] == subject
    assert delivery.order_key == group_id(subject)


def test_a_standard_queue_keeps_no_order(source: sqs.Source, sink: sqs.Sink) -> None:
    sink.publish([order(subject="a")])
    assert receive_one(source).order_key is None
    assert not source.traits.ordered


# ---- size ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("byte", [b"x", b"\x00"], ids=["text", "binary"])
def test_the_largest_body_fits_beside_the_largest_envelope(source: sqs.Source, sink: sqs.Sink, byte: bytes) -> None:
    longest = "\u00fc" * (ATTRIBUTE_BYTES_MAX // 2)
    body = byte * (sink.traits.body_bytes_max or 0)
    sent = Message(type=longest, source=longest, subject=longest, id=longest, traceparent=longest, body=body)
    assert list(sink.publish([sent])) == [None]
    got = receive_one(source)
    assert Message.from_wire(got.headers, got.body) == sent


def test_a_body_that_is_too_large_is_refused_with_the_limit_and_a_way_out(sink: sqs.Sink) -> None:
    limit = sink.traits.body_bytes_max or 0
    [error] = sink.publish([order({"text": "x" * limit})])
    assert isinstance(error, UsageError)
    assert str(limit) in str(error)
    assert "MaximumMessageSize" in str(error)


def test_requests_hold_at_most_ten_messages_and_a_mebibyte(client: Client, sink: sqs.Sink) -> None:
    requests = requests_of(client, "SendMessageBatch")
    sizes = [400_000, 400_000, 400_000, *[10] * 25, 700_000]
    assert list(sink.publish([Message(type="order.placed", body=b"x" * size) for size in sizes])) == [None] * len(sizes)
    assert [len(request["Entries"]) for request in requests] == [2, 10, 10, 7]
    for request in requests:
        # The body and all that stands beside it: a little more than SQS counts.
        assert sum(len(json.dumps(entry)) for entry in request["Entries"]) <= sqs.MESSAGE_BYTES_MAX


def test_a_queue_of_smaller_messages_has_smaller_bodies(client: Client, queue: str) -> None:
    answer(client, "GetQueueAttributes", {"Attributes": {"MaximumMessageSize": "262144"}})
    limit = sqs.Sink(client, queue).traits.body_bytes_max or 0
    assert (limit * 4 / 3) + ENVELOPE_BYTES_MAX <= 262_144
    [error] = sqs.Sink(client, queue).publish([Message(type="order.placed", body=b"x" * (limit + 1))])
    assert "262144" in str(error)


# ---- what other producers write ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["text", "\u00fc\u2603\U0001f600", ' {"a": 1}\n', "line\r\nline"])
def test_another_producers_text_is_the_body(client: Client, queue: str, source: sqs.Source, body: str) -> None:
    client.send_message(QueueUrl=url(client, queue), MessageBody=body)
    delivery = receive_one(source)
    assert delivery.body == body.encode()
    assert delivery.headers == {}
    with pytest.raises(MalformedMessage, match="without id and type"):
        Message.from_wire(delivery.headers, delivery.body)


def test_another_producers_attributes_are_headers(client: Client, queue: str, source: sqs.Source) -> None:
    attributes: dict[str, Any] = {f"text{n}": {"DataType": "String", "StringValue": "\u00fc"} for n in range(7)}
    attributes |= {
        "number": {"DataType": "Number", "StringValue": "7.5"},
        "binary": {"DataType": "Binary", "BinaryValue": b"a\xff\x00"},
        "own": {"DataType": "String.kind", "StringValue": "x"},
    }
    client.send_message(QueueUrl=url(client, queue), MessageBody="{}", MessageAttributes=attributes)
    headers = {f"text{n}": "\u00fc" for n in range(7)} | {"number": "7.5", "binary": "a\\xff\x00", "own": "x"}
    assert receive_one(source).headers == headers


@pytest.mark.parametrize("encoding", ["base64", "gzip"])
def test_an_encoding_that_is_not_ours_leaves_the_body_as_it_is(
    client: Client, queue: str, source: sqs.Source, encoding: str
) -> None:
    attributes = {"onceward-body": {"DataType": "String", "StringValue": encoding}}
    client.send_message(QueueUrl=url(client, queue), MessageBody="not base64!", MessageAttributes=attributes)
    delivery = receive_one(source)
    assert delivery.body == b"not base64!"
    assert delivery.headers == {"onceward-body": encoding}


def test_a_message_that_cannot_be_read_has_the_same_delivery_id_each_time(
    client: Client, queue: str, source: sqs.Source
) -> None:
    """It is parked under that id: when its ack is lost, it comes again, and must not be parked twice."""
    client.send_message(QueueUrl=url(client, queue), MessageBody="{}")
    first = receive_one(source)
    source.settle([(first, release(0))])
    assert receive_one(source).id == first.id


@pytest.mark.parametrize(
    "body", [b"plain", b"a\r\nb", b"a\rb", b"\xef\xbf\xbe", b"\x0b", b"\xed\xa0\x80", b"\t\n ~\x7f\xc2\x80", b" ", b"empty"]
)
def test_only_what_sqs_carries_unchanged_travels_as_text(
    client: Client, source: sqs.Source, sink: sqs.Sink, body: bytes
) -> None:
    requests = requests_of(client, "SendMessageBatch")
    assert list(sink.publish([Message(type="order.placed", body=body)])) == [None]
    [entry] = requests[0]["Entries"]
    text = not any(part in body for part in (b"\r", b"\xef\xbf\xbe", b"\x0b", b"\xed\xa0\x80"))
    assert ("onceward-body" not in entry["MessageAttributes"]) == text
    assert receive_one(source).body == body


# ---- the lease -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, -1, 1.5, 43_200])
def test_visibility_is_whole_seconds_up_to_twelve_hours(seconds: float, client: Client, queue: str) -> None:
    with pytest.raises(UsageError, match="whole seconds"):
        sqs.Source(client, queue, visibility_seconds=seconds)  # type: ignore[arg-type]


def test_a_delivery_is_extended_to_twelve_hours_and_no_further(
    client: Client, source: sqs.Source, sink: sqs.Sink, caplog: pytest.LogCaptureFixture
) -> None:
    """SQS refuses what would go beyond; ElasticMQ does not, so what is asked for is looked at."""
    requests = requests_of(client, "ChangeMessageVisibilityBatch")
    sink.publish([order(), order()])
    first, second = receive_all(source, 2)
    young, old = held_for(first, 12 * 3600 - 75), held_for(second, 12 * 3600 - 50)
    assert [list(source.extend([young, old], 30)) for _ in range(2)] == [[Outcome.SETTLED, Outcome.LOST]] * 2
    asked = [entry["VisibilityTimeout"] for request in requests for entry in request["Entries"]]
    assert asked
    assert all(1 <= seconds <= 15 for seconds in asked)
    assert [record.message for record in caplog.records] == [
        f"delivery {old.id} of {source.name} was held for 12 hours, the most that SQS allows; it will be delivered again"
    ]


def test_a_release_is_cut_to_what_is_left_of_twelve_hours(client: Client, source: sqs.Source, sink: sqs.Sink) -> None:
    requests = requests_of(client, "ChangeMessageVisibilityBatch")
    sink.publish([order(), order(), order()])
    got = receive_all(source, 3)
    entries = [
        (got[0], release(1e9)),
        (held_for(got[1], 12 * 3600 - 160), release(600)),
        (held_for(got[2], DAY), release(9)),
    ]
    assert list(source.settle(entries)) == [Outcome.SETTLED] * 3
    asked = [entry["VisibilityTimeout"] for entry in requests[0]["Entries"]]
    assert 43_000 < asked[0] <= HIDDEN_SECONDS_MAX
    assert 50 < asked[1] <= 100
    assert asked[2] == 0


def test_part_of_a_second_is_a_whole_one(client: Client, source: sqs.Source, sink: sqs.Sink) -> None:
    requests = requests_of(client, "ChangeMessageVisibilityBatch")
    sink.publish([order()])
    source.settle([(receive_one(source), release(0.25))])
    assert requests[0]["Entries"][0]["VisibilityTimeout"] == 1


def held_for(delivery: Delivery, seconds: float) -> Delivery:
    """The same delivery as if it had been received so long ago."""
    return replace(delivery, handle=replace(delivery.handle, received_at=delivery.handle.received_at - seconds))


@pytest.mark.parametrize(
    "code", ["ReceiptHandleIsInvalid", "AWS.SimpleQueueService.MessageNotInflight", "InvalidParameterValue"]
)
def test_what_aws_says_of_a_stale_handle_is_a_lost_lease(
    client: Client, source: sqs.Source, sink: sqs.Sink, code: str
) -> None:
    sink.publish([order()])
    held = receive_one(source)
    refused = {"Successful": [], "Failed": [{"Id": "0", "SenderFault": True, "Code": code, "Message": "expired"}]}
    for operation in ("DeleteMessageBatch", "ChangeMessageVisibilityBatch"):
        answer(client, operation, refused)
    assert list(source.settle([(held, ACK)])) == [Outcome.LOST]
    assert list(source.settle([(held, release(0))])) == [Outcome.LOST]
    assert list(source.extend([held], 5)) == [Outcome.LOST]


def test_an_entry_that_aws_fails_for_its_own_reasons_is_not_lost(
    client: Client, source: sqs.Source, sink: sqs.Sink
) -> None:
    sink.publish([order()])
    held = receive_one(source)
    failed = {"Successful": [], "Failed": [{"Id": "0", "SenderFault": False, "Code": "InternalError", "Message": "oops"}]}
    answer(client, "ChangeMessageVisibilityBatch", failed)
    with pytest.raises(TransportError, match="InternalError"):
        source.extend([held], 5)


def test_many_entries_are_settled_in_batches_with_each_its_own_outcome(source: sqs.Source, sink: sqs.Sink) -> None:
    sink.publish([order() for _ in range(25)])
    got = receive_all(source, 25)
    gone = [got[3], got[12], got[24]]
    source.settle([(delivery, ACK) for delivery in gone])
    wanted = [Outcome.LOST if delivery in gone else Outcome.SETTLED for delivery in got]
    assert list(source.extend(got, 30)) == wanted
    assert list(source.settle([(delivery, ACK) for delivery in got])) == wanted


# ---- what is read of the queue -------------------------------------------------------------------------------------------


def test_a_queue_is_created_once_with_its_dead_letter_queue(client: Client) -> None:
    name = fresh("orders")
    made = [sqs.create_queue(client, name, dead_letter=f"{name}-dead", max_receive_count=7) for _ in range(2)]
    assert made == [True, False]
    assert [each.name for each in sqs.list_queues(client) if each.name.startswith(name)] == [name, f"{name}-dead"]
    assert sqs.Source(client, name).traits.dead_letters_after == 7
    assert sqs.Source(client, f"{name}-dead").traits.dead_letters_after is None


def test_a_queue_may_be_named_by_its_url(client: Client, queue: str, sink: sqs.Sink) -> None:
    by_url = sqs.Source(client, url(client, queue))
    assert by_url.name == f"sqs:{queue}"
    sink.publish([order()])
    assert receive_one(by_url).source == f"sqs:{queue}"


@pytest.mark.parametrize(
    ("own", "dead_letter", "fifo", "wanted"),
    [(4, None, False, 4), (4, 14, False, 14), (14, 4, False, 14), (4, None, True, 4), (4, 14, True, 18)],
)
def test_a_dead_letter_keeps_its_age_except_in_a_fifo_queue(
    own: int, dead_letter: int | None, fifo: bool, wanted: int
) -> None:
    assert sqs.retention_seconds(own * DAY, dead_letter and dead_letter * DAY, fifo=fifo) == wanted * DAY


@KINDS
def test_the_retention_is_read_from_the_queue_and_its_dead_letter_queue(client: Client, fifo: bool) -> None:
    queue = fresh_queue(client, fifo=fifo)
    arn = f"arn:aws:sqs:us-east-1:000000000000:{queue}"
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "5"})
    answer(client, "GetQueueAttributes", {"Attributes": {"MessageRetentionPeriod": str(4 * DAY), "RedrivePolicy": policy}})
    traits = sqs.Source(client, queue).traits
    assert (traits.dead_letters_after, traits.retention_seconds) == (5, (8 if fifo else 4) * DAY)


def test_a_dead_letter_queue_that_cannot_be_read_is_taken_to_keep_messages_for_14_days(client: Client, queue: str) -> None:
    policy = json.dumps({"deadLetterTargetArn": "arn:aws:sqs:us-east-1:1:another-accounts", "maxReceiveCount": 5})
    answer(client, "GetQueueAttributes", {"Attributes": {"MessageRetentionPeriod": str(4 * DAY), "RedrivePolicy": policy}})
    assert sqs.Source(client, queue).traits.retention_seconds == 14 * DAY


# ---- where messages go ---------------------------------------------------------------------------------------------------


def test_each_type_goes_to_its_queues(client: Client) -> None:
    charges, ledger, mail = (fresh_queue(client) for _ in range(3))
    sink = sqs.Sink(client, {"order.placed": charges, "order.paid": [ledger, mail]})
    errors = sink.publish([order(), Message(type="order.paid"), Message(type="order.lost")])
    assert [type(error) for error in errors] == [type(None), type(None), UsageError]
    for queue, kind in ((charges, "order.placed"), (ledger, "order.paid"), (mail, "order.paid")):
        assert receive_one(sqs.Source(client, queue)).headers["type"] == kind


def test_a_message_that_one_of_its_queues_did_not_store_has_an_error(client: Client) -> None:
    ledger, mail = fresh_queue(client), fresh_queue(client)
    sink = sqs.Sink(client, {"order.paid": [ledger, mail], "order.placed": ledger})
    client.delete_queue(QueueUrl=url(client, mail))
    errors = list(sink.publish([Message(type="order.paid", subject="a"), order(subject="a"), order(subject="b")]))
    assert [error is None for error in errors] == [False, False, True]
    assert "there is no SQS queue" in str(errors[0])


@pytest.mark.parametrize("queues", [None, "", {}, ["orders", "bookings"], {"order.paid": []}])
def test_what_names_no_queue_is_refused_where_it_is_written(queues: Any, client: Client) -> None:
    with pytest.raises(UsageError, match="queue"):
        sqs.Sink(client, queues)


def test_a_request_that_is_refused_for_one_entry_is_sent_one_by_one(client: Client, queue: str, sink: sqs.Sink) -> None:
    sent = [order() for _ in range(3)]

    def no_body(params: dict[str, Any]) -> None:
        for entry in params["Entries"]:
            if entry["MessageAttributes"]["id"]["StringValue"] == sent[1].id:
                entry.pop("MessageBody", None)

    change_requests(client, "SendMessageBatch", no_body)
    assert [(error is None) for error in sink.publish(sent)] == [True, False, True]
    assert sorted(ids(receive_all(sqs.Source(client, queue), 2))) == sorted([sent[0].id, sent[2].id])


# ---- errors --------------------------------------------------------------------------------------------------------------


def test_a_queue_that_does_not_exist_is_refused_at_once(client: Client) -> None:
    for use in (sqs.Source, sqs.Sink, sqs.check_queue):
        with pytest.raises(UsageError, match=r"there is no SQS queue 'nowhere'.*onceward queue create"):
            use(client, "nowhere")


def test_a_queue_that_is_deleted_while_we_run_does_not_end_the_loop(client: Client, queue: str, source: sqs.Source) -> None:
    client.delete_queue(QueueUrl=url(client, queue))
    with pytest.raises(TransportError, match="there is no SQS queue"):
        source.receive(1, 0)


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("InvalidClientTokenId", 403, UsageError),
        ("com.amazonaws.sqs#AccessDeniedException", 400, UsageError),
        ("SignatureDoesNotMatch", 403, UsageError),
        ("ExpiredToken", 403, TransportError),
        ("RequestThrottled", 403, TransportError),
        ("ServiceUnavailable", 503, TransportError),
    ],
)
def test_only_what_no_retry_cures_is_a_usage_error(
    client: Client, queue: str, code: str, status: int, kind: type[Exception]
) -> None:
    answer(client, "GetQueueAttributes", {"__type": code, "message": "as AWS words it"}, status=status)
    with pytest.raises(kind, match="as AWS words it"):
        sqs.Source(client, queue)


def test_a_client_without_credentials_is_refused(client: Client, queue: str) -> None:
    client._request_signer._credentials = None
    with pytest.raises(UsageError, match="no credentials"):
        sqs.Source(client, queue)


def test_while_sqs_is_away_everything_may_be_tried_again(client: Client, sqs_endpoint: str) -> None:
    queue = fresh_queue(client)
    with proxied(sqs_endpoint) as (proxy, endpoint):
        through = make_client(endpoint)
        source, sink = sqs.Source(through, queue), sqs.Sink(through, queue)
        sink.publish([order()])
        held = receive_one(source)
        proxy.cut()
        for call in (
            lambda: sink.publish([order()]),
            lambda: source.receive(1, 0),
            lambda: source.settle([(held, ACK)]),
            lambda: source.extend([held], 5),
            lambda: sqs.Source(through, queue),
        ):
            with pytest.raises(TransportError, match="does not answer"):
                call()
        proxy.heal()
        assert list(until(lambda: source.settle([(held, ACK)]))) == [Outcome.SETTLED]


def test_of_a_batch_in_which_sqs_went_away_the_confirmed_part_is_confirmed(client: Client, sqs_endpoint: str) -> None:
    queue = fresh_queue(client)
    with proxied(sqs_endpoint) as (proxy, endpoint):
        through = make_client(endpoint)
        sink, sent = sqs.Sink(through, queue), [order() for _ in range(25)]
        requests = requests_of(through, "SendMessageBatch")
        change_requests(through, "SendMessageBatch", lambda _: proxy.cut() if len(requests) == 2 else None)
        errors = sink.publish(sent)
    assert [error is None for error in errors] == [True] * 10 + [False] * 15
    assert all(isinstance(error, TransportError) for error in errors[10:])


@pytest.mark.sqs
def test_after_the_server_was_killed_and_restarted_both_work_again() -> None:
    """What was confirmed is there; what failed said so."""
    installed("sqs")
    with ElasticMQ.start() as server:
        client = make_client(server.url)
        queue = fresh_queue(client)
        source, sink = sqs.Source(client, queue), sqs.Sink(client, queue)
        first, second = order(), order()
        assert list(sink.publish([first])) == [None]
        held = receive_one(source)
        server.kill()
        says_that_it_is_away(source, sink, held, second)
        server.restart()
        assert list(sink.publish([second])) == [None]
        assert list(source.settle([(held, release(0))])) == [Outcome.SETTLED]
        assert sorted(ids(receive_all(source, 2))) == sorted([first.id, second.id])


def url(client: Client, queue: str) -> str:
    return str(client.get_queue_url(QueueName=queue)["QueueUrl"])

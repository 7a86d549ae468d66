"""doctor on a RabbitMQ: what was set wrong there on purpose is found by name."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from tests.support.brokers import fresh, installed
from tests.support.diagnoses import NEEDS, NEEDS_OF_ONE_BROKER, mends, unknown, wrong
from tests.support.waiting import until

from onceward.doctor.rabbitmq import CHECKS, RabbitmqFacts, Unreachable, gather, judge
from onceward.errors import UsageError
from onceward.testing.servers import SHARED, RabbitMQ
from onceward.transports.rabbitmq import create_queue

Make = Callable[..., str]
TIMEOUT_SECONDS = 1800.0


@pytest.fixture
def management(rabbitmq_url: str) -> str | None:
    """Where the plugin of the shared server is; that of another one is expected on its usual port."""
    [server] = [shared.running() for shared in SHARED if shared.name == "rabbitmq"]
    return server.management_url if isinstance(server, RabbitMQ) and server.url == rabbitmq_url else None


@pytest.fixture
def make(rabbitmq_url: str) -> Iterator[Make]:
    """Declares a queue with these arguments, and where its dead letters go; gives its name."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        yield lambda **changes: declared(channel, **changes)


def declared(
    channel: Any, *, kind: str = "quorum", durable: bool = True, auto_delete: bool = False, dead_durable: bool = True,
    bare: bool = False, **changes: Any,
) -> str:  # fmt: skip
    """`bare`: without any argument that may be a policy's; a change to None takes an argument away."""
    name, dead = fresh("orders"), fresh("dead")
    channel.queue_declare(dead, durable=dead_durable)
    wanted = {} if bare else {
        "delivery_limit": 100, "dead_letter_exchange": "", "dead_letter_routing_key": dead,
        "dead_letter_strategy": "at-least-once", "overflow": "reject-publish",
    }  # fmt: skip
    if kind == "classic":
        wanted.pop("delivery_limit", None)
        wanted.pop("dead_letter_strategy", None)
    given = {**wanted, **changes}
    arguments = {f"x-{key.replace('_', '-')}": value for key, value in given.items() if value is not None}
    channel.queue_declare(name, durable=durable, auto_delete=auto_delete, arguments={"x-queue-type": kind, **arguments})
    return name


def facts_of(url: str, name: str, management: str | None) -> RabbitmqFacts:
    facts = gather(url, name, management=management, consumer_timeout_seconds=TIMEOUT_SECONDS)
    assert isinstance(facts, RabbitmqFacts), facts
    return facts


def test_a_queue_that_is_set_well_for_development_has_no_findings(
    rabbitmq_url: str, management: str | None, make: Make
) -> None:
    diagnoses = [*judge(facts_of(rabbitmq_url, make(), management), NEEDS_OF_ONE_BROKER)]
    assert wrong(diagnoses) == {}
    assert unknown(diagnoses) == set()


def test_a_queue_of_our_own_making_has_no_errors(rabbitmq_url: str, management: str | None) -> None:
    parameters, name, dead = pika.URLParameters(rabbitmq_url), fresh("orders"), fresh("dead")
    create_queue(parameters, name)
    assert wrong(judge(facts_of(rabbitmq_url, name, management), NEEDS_OF_ONE_BROKER)) == {
        "rabbitmq.delivery_limit": "warning"
    }
    create_queue(parameters, dead, dead_letter=f"{dead}-dead", delivery_limit=100)
    assert wrong(judge(facts_of(rabbitmq_url, dead, management), NEEDS_OF_ONE_BROKER)) == {}


def test_one_node_alone_is_a_finding(rabbitmq_url: str, management: str | None, make: Make) -> None:
    assert wrong(judge(facts_of(rabbitmq_url, make(), management), NEEDS)) == {"rabbitmq.members": "warning"}


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (
            {"kind": "classic"},
            {"rabbitmq.queue_type": "error", "rabbitmq.dead_letter_strategy": "error"},
        ),
        (
            {"kind": "classic", "durable": False},
            {"rabbitmq.queue_type": "error", "rabbitmq.durable": "error", "rabbitmq.dead_letter_strategy": "error"},
        ),
        (
            {"kind": "classic", "auto_delete": True},
            {"rabbitmq.queue_type": "error", "rabbitmq.auto_delete": "error", "rabbitmq.dead_letter_strategy": "error"},
        ),
        ({"expires": 3_600_000}, {"rabbitmq.expires": "error"}),
        (
            {"max_length": 10, "overflow": "drop-head"},
            {"rabbitmq.overflow": "error", "rabbitmq.dead_letter_strategy": "error"},
        ),
        ({"message_ttl": 60_000}, {"rabbitmq.message_ttl": "warning"}),
        ({"delivery_limit": 3}, {"rabbitmq.delivery_limit": "error"}),
        ({"delivery_limit": 20}, {"rabbitmq.delivery_limit": "warning"}),
        ({"delivery_limit": None}, {"rabbitmq.delivery_limit": "warning"}),
        ({"dead_letter_strategy": "at-most-once"}, {"rabbitmq.dead_letter_strategy": "error"}),
        ({"dead_letter_exchange": "amq.direct"}, {"rabbitmq.dead_letter_exchange": "error"}),  # nothing is bound to it
        (
            {"dead_letter_exchange": None, "dead_letter_routing_key": None, "dead_letter_strategy": None},
            {"rabbitmq.dead_letter_exchange": "error"},
        ),
        ({"dead_durable": False}, {"rabbitmq.dead_letter_queue": "error"}),
    ],
)
def test_each_wrong_setting_is_found_by_name(
    settings: dict[str, Any], found: dict[str, str], rabbitmq_url: str, management: str | None, make: Make
) -> None:
    facts = facts_of(rabbitmq_url, make(**settings), management)
    assert wrong(judge(facts, NEEDS_OF_ONE_BROKER)) == found


def test_a_node_of_our_own_is_set_wrong_and_mended() -> None:
    """Its consumer_timeout, an alarm, and policies: what doctor says mends them is run as it stands."""
    kind = installed("rabbitmq")
    assert issubclass(kind, RabbitMQ)
    with kind.start(consumer_timeout_seconds=8) as server:
        with pika.BlockingConnection(pika.URLParameters(server.url)) as connection:
            channel = connection.channel()
            name = declared(channel, bare=True)
            channel.queue_declare(f"{name}-dead", durable=True)
        server.control("set_policy", "bad", f"^{name}$", '{"max-length": 10, "delivery-limit": 3}')
        server.control("set_vm_memory_high_watermark", "absolute", "1")

        def diagnosed() -> dict[str, str]:
            milliseconds = server.control("eval", "{ok, T} = application:get_env(rabbit, consumer_timeout), T.")
            facts = gather(
                server.url, name, management=server.management_url, consumer_timeout_seconds=int(milliseconds) / 1000
            )
            return mends(judge(facts, NEEDS_OF_ONE_BROKER))

        planted = {
            "rabbitmq.alarm", "rabbitmq.consumer_timeout", "rabbitmq.dead_letter_exchange", "rabbitmq.delivery_limit",
            "rabbitmq.overflow",
        }  # fmt: skip
        # What the plugin says of alarms is some seconds old.
        until(lambda: set(diagnosed()) == planted, "all that is wrong being found")
        server.control("set_vm_memory_high_watermark", "0.9")
        # One command mends all that a policy can mend, whichever finding it was read at.
        commands = {command.rpartition("&& ")[2] for command in diagnosed().values() if "set_policy" in command}
        [mend] = commands
        server.control(*shlex.split(mend)[1:])
        until(lambda: set(diagnosed()) == {"rabbitmq.consumer_timeout"}, "all else being mended")


def test_a_queue_that_is_not_there_is_a_usage_error(rabbitmq_url: str, management: str | None) -> None:
    with pytest.raises(UsageError, match="onceward queue create"):
        gather(rabbitmq_url, fresh("nowhere"), management=management)


def test_without_the_management_plugin_everything_is_unknown(rabbitmq_url: str, make: Make) -> None:
    facts = gather(rabbitmq_url, make(), management="http://127.0.0.1:1")
    assert isinstance(facts, Unreachable)
    assert unknown(judge(facts, NEEDS)) == {check.name for check in CHECKS}


def test_a_user_who_may_not_look_is_told_so(rabbitmq_url: str, management: str | None, make: Make) -> None:
    wrong_password = (management or "http://localhost:15672").replace("://", "://guest:wrong@")
    facts = gather(rabbitmq_url, make(), management=wrong_password)
    assert isinstance(facts, Unreachable)
    assert "monitoring" in facts.error
    assert "wrong" not in facts.url

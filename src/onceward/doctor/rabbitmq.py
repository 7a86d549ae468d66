"""RabbitMQ: what a queue's arguments, its policy and its node say, and what is wrong with them.

AMQP tells a client next to nothing of a queue, so the facts come from the management plugin's HTTP API. That does not know
the node's `consumer_timeout`: it is asked of whoever calls.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from typing import Any, Final, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from onceward.doctor.diagnosis import Check, Diagnosis, Leg, spoken
from onceward.doctor.needs import WINDOW, Needs, judge_dead_letters_after, judge_window
from onceward.errors import UsageError

ANSWER_SECONDS_MAX: Final = 10.0
DELIVERY_LIMIT_WANTED: Final = 100
DELIVERY_LIMIT_OF_4: Final = 20  # of a quorum queue that names none, from RabbitMQ 4.0 on
MEMBERS_MIN: Final = 3
CONSUMER_TIMEOUT_MS: Final = 1_800_000  # RabbitMQ's own

KIND: Final = Check(
    "rabbitmq.queue_type",
    Leg.QUEUE,
    "Only a quorum queue has its messages on several nodes, counts deliveries, and hands dead letters on without "
    "losing them. A classic queue is lost with its node.",
)
DURABLE: Final = Check(
    "rabbitmq.durable",
    Leg.QUEUE,
    "A queue that is not durable is gone when its node restarts, with everything in it.",
)
AUTO_DELETE: Final = Check(
    "rabbitmq.auto_delete",
    Leg.QUEUE,
    "The queue is deleted with all its messages when its last consumer leaves: at every deploy, say.",
)
EXPIRES: Final = Check(
    "rabbitmq.expires",
    Leg.QUEUE,
    "A queue that nobody consumes for so long is deleted, with everything in it.",
)
MEMBERS: Final = Check(
    "rabbitmq.members",
    Leg.QUEUE,
    "A quorum queue confirms what a majority of its members has. With fewer than three, one lost node stops the queue"
    " or loses it.",
)
OVERFLOW: Final = Check(
    "rabbitmq.overflow",
    Leg.QUEUE,
    "A queue that is full drops its oldest messages, although they were confirmed. With reject-publish the producer "
    "is told instead, and its outbox keeps the message.",
)
MESSAGE_TTL: Final = Check(
    "rabbitmq.message_ttl",
    Leg.QUEUE,
    "RabbitMQ removes what nobody has consumed for so long: an outage of the consumer that lasts longer loses messages.",
)
ALARM: Final = Check(
    "rabbitmq.alarm",
    Leg.PRODUCER,
    "A node in alarm blocks everyone who publishes: the outbox grows until memory or disk is free.",
)
DELIVERY_LIMIT: Final = Check(
    "rabbitmq.delivery_limit",
    Leg.CONSUMER,
    "RabbitMQ counts every return, after a crash too: with a low limit it sets a message aside before the consumer has "
    "made all its attempts and parked it. Without any, a message that ends every worker before it is "
    "taken goes round for ever.",
)
DEAD_LETTERS: Final = Check(
    "rabbitmq.dead_letter_exchange",
    Leg.CONSUMER,
    "What goes over the delivery limit, or has to make room, is dropped without a trace where no dead-letter exchange"
    " leads to a queue.",
)
DEAD_LETTER_STRATEGY: Final = Check(
    "rabbitmq.dead_letter_strategy",
    Leg.CONSUMER,
    "At-most-once: a dead letter is removed before its new queue has confirmed it, and lost if that is away. At-"
    "least-once needs a quorum queue and overflow=reject-publish; else RabbitMQ falls back without a word.",
)
DEAD_LETTER_QUEUE: Final = Check(
    "rabbitmq.dead_letter_queue",
    Leg.CONSUMER,
    "Dead letters are lost when the node of their queue restarts.",
)
CONSUMER_TIMEOUT: Final = Check(
    "rabbitmq.consumer_timeout",
    Leg.TIMEOUT,
    "A delivery that is not settled in time closes its channel: all that the channel holds is delivered again while "
    "handlers still work on it. Waiting in the prefetch counts, too, and no heartbeat extends it.",
)
# What RabbitMQ calls a setting in a policy; as an argument of the queue it has x- before it.
_LEAST: Final = ("max-length", "max-length-bytes", "message-ttl", "expires", "delivery-limit")


class Target(NamedTuple):
    """A queue that dead letters reach."""

    name: str
    durable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitmqFacts:
    """What the management plugin says of a queue and of its nodes."""

    name: str
    vhost: str = "/"
    version: tuple[int, ...] = ()
    kind: str = "quorum"
    durable: bool = True
    auto_delete: bool = False
    exclusive: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)  # those that it was declared with
    policy: Mapping[str, Any] = field(default_factory=dict)  # the definitions in force, operator's included
    members: int = 1
    nodes: int = 1
    alarms: Sequence[str] = ()  # as "memory on rabbit@a"
    targets: Sequence[Target] = ()  # of its dead letters
    consumer_timeout_seconds: float | None = None  # None: nobody has said

    def setting(self, name: str) -> Any:
        """The value in force of a setting that arguments and policies may give; None: neither does."""
        given = [
            value for value in (self.arguments.get(f"x-{name}"), self.policy.get(name)) if value is not None
        ]  # fmt: skip
        if name in _LEAST and len(given) == 2:
            return min(given)
        return given[0] if given else None

    @property
    def delivery_limit(self) -> int | None:
        """After how many returns a message becomes a dead letter; None: after none."""
        limit = self.setting("delivery-limit")
        if limit is None and self.version >= (4,):
            limit = DELIVERY_LIMIT_OF_4
        return None if limit is None or limit < 0 or self.kind != "quorum" else int(limit)

    @property
    def has_dead_letters(self) -> bool:
        """Whether anything takes messages out of the queue that nobody has acknowledged."""
        full = any(self.setting(name) is not None for name in ("max-length", "max-length-bytes"))
        drops = full and self.setting("overflow") != "reject-publish"
        return drops or self.delivery_limit is not None or self.setting("message-ttl") is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """The management plugin did not answer, so nothing is known."""

    name: str
    url: str  # without a password
    error: str


def gather(
    url: str, queue: str, *, management: str | None = None, consumer_timeout_seconds: float | None = None
) -> RabbitmqFacts | Unreachable:
    """The facts of a queue at the server of this amqp:// URL.

    `management`: where its HTTP API is, if not on port 15672 of the same host; with a user of its own, or that of `url`.
    Raises `UsageError` when there is no such queue, or the user may not look.
    """
    api = Api.at(url, management)
    try:
        return _facts(api, _vhost(url), queue, consumer_timeout_seconds)
    except HTTPError as error:
        if error.code == 404:
            raise UsageError(
                f"there is no RabbitMQ queue {queue!r} in vhost {_vhost(url)!r}: `onceward queue create` makes it"
            ) from error
        if error.code == 401:
            return Unreachable(
                name=queue, url=api.url, error="it does not know this user, or the user lacks the tag 'monitoring'"
            )
        return Unreachable(name=queue, url=api.url, error=str(error))
    except (URLError, HTTPException, OSError, ValueError) as error:
        return Unreachable(name=queue, url=api.url, error=str(getattr(error, "reason", error)))


class Api(NamedTuple):
    """The management plugin's HTTP API."""

    url: str
    authorization: str

    @classmethod
    def at(cls, amqp: str, management: str | None) -> Api:
        """That of the server of an amqp:// URL."""
        queue = urlsplit(amqp)
        scheme, port = ("https", 15671) if queue.scheme == "amqps" else ("http", 15672)
        parts = urlsplit(management or f"{scheme}://{queue.hostname or 'localhost'}:{port}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("--management is the URL of RabbitMQ's management plugin, like http://localhost:15672")
        user = parts if parts.username else queue
        name, password = unquote(user.username or "guest"), unquote(user.password or "guest")
        host = parts.netloc.rpartition("@")[2]
        token = base64.b64encode(f"{name}:{password}".encode()).decode()
        return cls(urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", "")), f"Basic {token}")

    def get(self, *path: str) -> Any:
        """What is at this path below /api."""
        url = "/".join([self.url, "api", *(quote(part, safe="") for part in path)])
        request = Request(url, headers={"Authorization": self.authorization})  # noqa: S310 - the scheme was checked
        with urlopen(request, timeout=ANSWER_SECONDS_MAX) as answer:  # noqa: S310
            return json.load(answer)


def _vhost(url: str) -> str:
    return unquote(urlsplit(url).path[1:]) or "/"


def _facts(api: Api, vhost: str, queue: str, consumer_timeout_seconds: float | None) -> RabbitmqFacts:
    found = api.get("queues", vhost, queue)
    nodes = api.get("nodes")
    facts = RabbitmqFacts(
        name=queue,
        vhost=vhost,
        version=_version(api.get("overview")["rabbitmq_version"]),
        kind=found.get("type", "classic"),
        durable=found["durable"],
        auto_delete=found["auto_delete"],
        exclusive=found.get("exclusive", False),
        arguments=found.get("arguments") or {},
        policy=found.get("effective_policy_definition") or {},
        members=len(found.get("members") or [queue]),
        nodes=len(nodes),
        alarms=[
            f"{what} on {node['name']}"
            for node in nodes
            for what, key in (("memory", "mem_alarm"), ("disk", "disk_free_alarm"))
            if node.get(key)
        ],
        consumer_timeout_seconds=consumer_timeout_seconds,
    )
    return _with_targets(api, facts)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _with_targets(api: Api, facts: RabbitmqFacts) -> RabbitmqFacts:
    """With the queues that its dead letters reach, as far as bindings tell."""
    exchange = facts.setting("dead-letter-exchange")
    if exchange is None:
        return facts
    if exchange == "":
        # The default exchange: to the queue that the routing key names.
        names = {str(facts.setting("dead-letter-routing-key") or facts.name)}
    else:
        bindings = api.get("exchanges", facts.vhost, exchange, "bindings", "source")
        names = {binding["destination"] for binding in bindings if binding["destination_type"] == "queue"}
    found = {queue["name"]: queue["durable"] for queue in api.get("queues", facts.vhost)}
    return replace(facts, targets=[Target(name, found[name]) for name in sorted(names & found.keys())])


def judge(facts: RabbitmqFacts | Unreachable, needs: Needs) -> Iterator[Diagnosis]:
    """What is right and what is wrong with them."""
    place = f"rabbitmq:{facts.name}"
    if isinstance(facts, Unreachable):
        yield from _judge_nothing(facts, place)
        return
    yield from _judge_queue(facts, needs, place)
    yield from _judge_room(facts, needs, place)
    yield _judge_alarms(facts, place)
    yield from _judge_delivery_limit(facts, needs, place)
    yield from _judge_dead_letters(facts, needs, place)
    yield _judge_consumer_timeout(facts, needs, place)
    ttl = facts.setting("message-ttl")
    yield from judge_window(place, None if ttl is None else ttl / 1000, needs)


def _judge_nothing(facts: Unreachable, place: str) -> Iterator[Diagnosis]:
    find_out = "rabbitmq-plugins enable rabbitmq_management, then --management http://USER:PASSWORD@HOST:15672"
    for check in CHECKS:
        yield check.unknown(
            place, f"the management plugin at {facts.url} does not answer: {facts.error}", find_out=find_out
        )


def _judge_queue(facts: RabbitmqFacts, needs: Needs, place: str) -> Iterator[Diagnosis]:
    again = _declare_again(facts)
    if facts.kind == "quorum":
        yield KIND.right(place, facts.kind)
        yield _judge_members(facts, needs, place)
    else:
        yield KIND.wrong(place, facts.kind, wanted="quorum", mend=again)
    if facts.durable:
        yield DURABLE.right(place, "durable")
    else:
        yield DURABLE.wrong(place, "transient", wanted="durable", mend=again)
    if facts.auto_delete or facts.exclusive:
        found = "exclusive" if facts.exclusive else "auto-delete"
        yield AUTO_DELETE.wrong(place, found, wanted="neither auto-delete nor exclusive", mend=again)
    else:
        yield AUTO_DELETE.right(place, "stays without consumers")
    expires = facts.setting("expires")
    if expires is None:
        yield EXPIRES.right(place, "never")
    else:
        yield EXPIRES.wrong(place, spoken(expires / 1000), wanted="never", mend=_mend(facts, needs, "expires"))


def _judge_members(facts: RabbitmqFacts, needs: Needs, place: str) -> Diagnosis:
    found = f"{facts.members} of {facts.nodes} nodes"
    if facts.members >= MEMBERS_MIN:
        return MEMBERS.right(place, found)
    if needs.one_broker:
        return MEMBERS.right(place, f"{found}, accepted for development")
    patterns = ["--vhost-pattern", _pattern(facts.vhost), "--queue-pattern", _pattern(facts.name)]
    mend = shlex.join(["rabbitmq-queues", "grow", "NODE", "all", *patterns])
    if facts.nodes < MEMBERS_MIN:
        mend = f"add nodes until there are {MEMBERS_MIN}, then {mend} (a cluster for development: --dev)"
    return MEMBERS.wrong(place, found, wanted=f"at least {MEMBERS_MIN}", mend=mend, severe=False)


def _judge_room(facts: RabbitmqFacts, needs: Needs, place: str) -> Iterator[Diagnosis]:
    limits = [
        f"{name} {limit}" for name in ("max-length", "max-length-bytes") if (limit := facts.setting(name)) is not None
    ]
    overflow = facts.setting("overflow") or "drop-head"
    if not limits:
        yield OVERFLOW.right(place, "the queue has no limit")
    elif overflow == "reject-publish":
        yield OVERFLOW.right(place, f"{', '.join(limits)}, then {overflow}")
    else:
        found = f"{', '.join(limits)}, then {overflow}"
        yield OVERFLOW.wrong(place, found, wanted="reject-publish", mend=_mend(facts, needs, "overflow"))
    ttl = facts.setting("message-ttl")
    if ttl is None:
        yield MESSAGE_TTL.right(place, "for ever")
    else:
        yield MESSAGE_TTL.wrong(
            place, f"messages expire after {spoken(ttl / 1000)}", wanted="messages that do not expire",
            mend=_mend(facts, needs, "message-ttl"), severe=not facts.targets,
        )  # fmt: skip


def _judge_alarms(facts: RabbitmqFacts, place: str) -> Diagnosis:
    if not facts.alarms:
        return ALARM.right(place, "none")
    mend = "free memory or disk there; `rabbitmqctl status` says how much is missing"
    return ALARM.wrong(place, ", ".join(facts.alarms), wanted="none", mend=mend)


def _judge_delivery_limit(facts: RabbitmqFacts, needs: Needs, place: str) -> Iterator[Diagnosis]:
    if facts.kind != "quorum":
        return  # only quorum queues count; that this is none was said
    limit, mend = facts.delivery_limit, _mend(facts, needs, "delivery-limit")
    if limit is None:
        wanted = f"{max(DELIVERY_LIMIT_WANTED, needs.dead_letters_after_min)}, with a dead-letter exchange"
        yield DELIVERY_LIMIT.wrong(place, "none", wanted=wanted, mend=mend, severe=False)
        return
    found = str(limit) if facts.setting("delivery-limit") is not None else f"{limit}, RabbitMQ's own"
    yield judge_dead_letters_after(DELIVERY_LIMIT, place, limit, needs, found=found, mend=mend)


def _judge_dead_letters(facts: RabbitmqFacts, needs: Needs, place: str) -> Iterator[Diagnosis]:
    exchange = facts.setting("dead-letter-exchange")
    if not facts.targets and not facts.has_dead_letters:
        yield DEAD_LETTERS.right(place, "none, and nothing becomes a dead letter")
        return
    if not facts.targets:
        found = "none" if exchange is None else f"{exchange or 'the default exchange'}, from which no queue gets them"
        mend = _mend(facts, needs, "dead-letter-exchange", "dead-letter-routing-key")
        yield DEAD_LETTERS.wrong(place, found, wanted="one that leads to a durable queue", mend=mend)
        return
    reached = ", ".join(target.name for target in facts.targets)
    yield DEAD_LETTERS.right(place, f"{exchange or 'the default exchange'} to {reached}")
    yield _judge_strategy(facts, needs, place)
    transient = [target.name for target in facts.targets if not target.durable]
    if transient:
        mend = f"delete {', '.join(transient)} once empty; then {_create(facts, transient[0])}"
        yield DEAD_LETTER_QUEUE.wrong(place, f"{', '.join(transient)}: transient", wanted="durable", mend=mend)
    else:
        yield DEAD_LETTER_QUEUE.right(place, f"{reached}: durable")


def _judge_strategy(facts: RabbitmqFacts, needs: Needs, place: str) -> Diagnosis:
    strategy = facts.setting("dead-letter-strategy") or "at-most-once"
    overflow = facts.setting("overflow") or "drop-head"
    # Without the right overflow, RabbitMQ takes at-most-once whatever was asked for.
    if strategy == "at-least-once" and overflow == "reject-publish":
        return DEAD_LETTER_STRATEGY.right(place, strategy)
    found = strategy if strategy == "at-most-once" else f"{strategy}, but overflow is {overflow}: so at-most-once"
    return DEAD_LETTER_STRATEGY.wrong(
        place, found, wanted="at-least-once, with overflow=reject-publish",
        mend=_mend(facts, needs, "dead-letter-strategy", "overflow"),
    )  # fmt: skip


def _judge_consumer_timeout(facts: RabbitmqFacts, needs: Needs, place: str) -> Diagnosis:
    of_queue = facts.setting("consumer-timeout")
    seconds = facts.consumer_timeout_seconds if of_queue is None else of_queue / 1000
    if seconds is None:
        return CONSUMER_TIMEOUT.unknown(
            place, "the management plugin does not know it (RabbitMQ's own is 30 min)",
            find_out="rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).' (in ms); then --consumer-timeout",
        )  # fmt: skip
    wanted = _held_seconds(needs)
    if seconds > wanted:
        return CONSUMER_TIMEOUT.right(place, spoken(seconds))
    of_node = f"consumer_timeout = {_consumer_timeout_ms(needs)} in rabbitmq.conf of every node, then restart it"
    mend = of_node if of_queue is None else _mend(facts, needs, "consumer-timeout")
    return CONSUMER_TIMEOUT.wrong(place, spoken(seconds), wanted=f"more than {spoken(round(wanted, 1))}", mend=mend)


def _held_seconds(needs: Needs) -> float:
    """For how long a delivery may be held, unsettled."""
    # Two handlers' time: a delivery that waits in the prefetch is held while another one is handled before it.
    handled = 0.0 if needs.times is None else max(needs.times.lease_seconds_min, 2 * needs.times.p99_seconds)
    return max(needs.claim_seconds, handled)


def _consumer_timeout_ms(needs: Needs) -> int:
    return max(CONSUMER_TIMEOUT_MS, round(_held_seconds(needs) * 2000))


def _mend(facts: RabbitmqFacts, needs: Needs, *names: str) -> str:
    """The command that mends these settings, and whatever else of this queue a policy can mend."""
    if facts.kind != "quorum" or any(f"x-{name}" in facts.arguments for name in names):
        return _declare_again(facts)
    # A queue has one policy at a time. A command for each finding would undo the one that was run before it.
    words = ["rabbitmqctl", "set_policy", "-p", facts.vhost, "--apply-to", "queues", "--priority", "10"]
    command = shlex.join([*words, f"onceward-{facts.name}", _pattern(facts.name), json.dumps(_policy(facts, needs))])
    return command if facts.targets else f"{_create(facts, f'{facts.name}-dead')} && {command}"


def _policy(facts: RabbitmqFacts, needs: Needs) -> dict[str, Any]:
    """The policy in force, with all that is wrong in it mended."""
    timeout_ms = facts.policy.get("consumer-timeout")
    mended = {
        **facts.policy,
        "overflow": "reject-publish",
        "dead-letter-strategy": "at-least-once",
        "delivery-limit": max(DELIVERY_LIMIT_WANTED, needs.dead_letters_after_min, facts.policy.get("delivery-limit", 0)),
        "consumer-timeout": timeout_ms and max(timeout_ms, _consumer_timeout_ms(needs)),
        "expires": None,
        "message-ttl": None,
    }
    if not facts.targets:
        # By the default exchange: that leads to the queue which the routing key names, and needs no binding.
        mended |= {"dead-letter-exchange": "", "dead-letter-routing-key": f"{facts.name}-dead"}
    return {name: value for name, value in mended.items() if value is not None and f"x-{name}" not in facts.arguments}


def _pattern(name: str) -> str:
    return f"^{re.escape(name)}$"


def _declare_again(facts: RabbitmqFacts) -> str:
    # Neither the kind of a queue nor its arguments can be changed.
    return f"{_create(facts, f'{facts.name}-2')}; then publish there, and delete {facts.name} once it is empty"


def _create(facts: RabbitmqFacts, name: str) -> str:
    return f"onceward queue create 'amqp://HOST/{quote(facts.vhost, safe='')}?queue={quote(name)}'"


CHECKS: Final = (
    KIND, DURABLE, AUTO_DELETE, EXPIRES, MEMBERS, OVERFLOW, MESSAGE_TTL, ALARM, DELIVERY_LIMIT, DEAD_LETTERS,
    DEAD_LETTER_STRATEGY, DEAD_LETTER_QUEUE, CONSUMER_TIMEOUT, WINDOW,
)  # fmt: skip

"""The end of everything that is held: once a variant is quiet, the harness plays the people who decide.

For each held order somebody looks into the provider's books and settles its effect with the real command line. So that
this is as hard as it will be one day, people decide at the same time, are killed while they decide, or are wrong, and
messages come again meanwhile. Which order meets which of these, the schedule's seed decides.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
from asyncio.subprocess import Process
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from enum import Enum
from itertools import cycle
from typing import Any, Final, NamedTuple

import psycopg
import stripe

from onceward.message import Message
from onceward_proof.prove.person import REFUSED, STOOD, Ended, Person
from onceward_proof.prove.processes import Processes
from onceward_proof.workers.worker import make_card
from payments.card import Card

REDELIVERY_SECONDS: Final = 0.2  # often: one of the copies is in a worker's hands while the decision is made
POLL_SECONDS: Final = 0.005
LOCK_SECONDS_MAX: Final = 5.0  # well below a command's lock_timeout: nobody is to fail because another starts slowly
KILL_SECONDS_MAX: Final = 0.04  # after its session was seen: as long as a decision takes, about
HELD_MAX: Final = 100_000  # of `parked list`
EFFECT: Final = "charge"  # as the service's handler names it
# Of `onceward parked`: a loop's session has a longer name.
_SESSIONS: Final = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'onceward'"
KILLED: Final = -signal.SIGKILL


class Truth(Enum):
    """What the provider's books say of a held order, and whether the one who decides first has read them."""

    NOT_CHARGED = "not charged"
    CHARGED = "charged by hand"  # by a colleague, at the provider, since the order was held
    OVERLOOKED = "charged by hand, and overlooked"  # the same, and somebody says that it did not happen


class Hardship(Enum):
    """What makes a decision hard, as words for a table."""

    TWO_AT_ONCE = "two people at once"
    KILLED = "one killed while deciding"
    REDELIVERED = "its message redelivered meanwhile"


@dataclass(frozen=True, slots=True)
class Scene:
    """How one held order is ended."""

    truth: Truth
    hardships: frozenset[Hardship]


@dataclass(frozen=True, slots=True)
class Resolution:
    """What became of the orders that were held.

    `flaws`: sentences, one for each order of which not exactly one decision stands.
    """

    scenes: Mapping[str, Scene]  # by order: all that were held when the people came
    flaws: tuple[str, ...] = ()

    def told(self) -> str:
        """How hard it was: `two people at once: 2; ...`."""
        kinds = [*Hardship, Truth.CHARGED, Truth.OVERLOOKED]
        return "; ".join(f"{kind.value}: {count}" for kind in kinds if (count := self._count(kind)))

    def _count(self, kind: Hardship | Truth) -> int:
        return sum(kind is scene.truth or kind in scene.hardships for scene in self.scenes.values())


def plan_scenes(held: Collection[str], seed: int) -> dict[str, Scene]:
    """By order: each hardship meets half of them (one that is alone meets all), and the truths go round."""
    rng = random.Random(f"resolve {seed}")
    orders, half = sorted(held), (len(held) + 1) // 2
    struck = {hardship: frozenset(rng.sample(orders, half)) for hardship in Hardship}
    truths = dict(zip(rng.sample(orders, len(orders)), cycle(rng.sample(list(Truth), len(Truth))), strict=False))
    return {
        order: Scene(truths[order], frozenset(hardship for hardship in Hardship if order in struck[hardship]))
        for order in orders
    }


class Decision(NamedTuple):
    """One row of `decisions` about a parked message."""

    message_id: str
    decided_by: str


def find_flaws(held: Mapping[str, str], decisions: Sequence[Decision], ended: Mapping[str, Sequence[Ended]]) -> list[str]:
    """Why not exactly one decision stands, and is known to whoever made it.

    `held`: order by message id; `ended`: by message id, too.
    Of a killed command nobody knows whether its decision stands: it may be the one.
    """
    deciders: defaultdict[str, list[str]] = defaultdict(list)
    for decision in decisions:
        deciders[decision.message_id].append(decision.decided_by)
    flaws = [f"a decision about {message_id}, which was not held" for message_id in deciders if message_id not in held]
    for message_id, order in held.items():
        flaws += [f"{order}: {flaw}" for flaw in _flaws_of(deciders[message_id], ended.get(message_id, ()))]
    return flaws


def _flaws_of(deciders: Sequence[str], ended: Sequence[Ended]) -> Iterator[str]:
    for each in ended:
        if each.exit_code not in (STOOD, REFUSED, KILLED):
            yield f"the command of {each.person} ended with {each.exit_code} ({each.complaint})"
    if len(deciders) != 1:
        yield f"{len(deciders)} decisions are kept"
    sure = {each.person for each in ended if each.exit_code == STOOD}
    killed = {each.person for each in ended if each.exit_code == KILLED}
    if not sure <= set(deciders) or len(sure) > 1:
        yield f"{len(sure)} people were told that their decision stands, and {len(sure & set(deciders))} of these are kept"
    if not set(deciders) <= sure | killed:
        yield "a decision is kept whose command said that it was refused"


class Resolver:
    """Ends what one variant holds, while its service goes on."""

    def __init__(self, processes: Processes, seed: int) -> None:
        self._processes = processes
        self._seed = seed
        self._rng = random.Random(f"instants {seed}")
        self._held: dict[str, str] = {}  # order by message id
        self._scenes: dict[str, Scene] = {}
        self._ended: dict[str, list[Ended]] = {}  # by message id

    async def end_all(self) -> None:
        """Somebody has decided about each message that is held; the service has yet to carry it out."""
        rows = await self._person("reader").read("list", "--limit", str(HELD_MAX))
        self._held = {row["message_id"]: str(row["subject"]) for row in rows}
        self._scenes = plan_scenes(self._held.values(), self._seed)
        for message_id, order in self._held.items():
            self._ended[message_id] = await self._end(message_id, order, self._scenes[order])

    def resolution(self) -> Resolution:
        """What became of it, once the service is quiet again."""
        with self._connect() as conn:
            rows = conn.execute("SELECT message_id, decided_by FROM onceward.decisions WHERE about = 'parked'")
            decisions = [Decision(*row) for row in rows]
        return Resolution(self._scenes, tuple(find_flaws(self._held, decisions, self._ended)))

    async def _end(self, message_id: str, order: str, scene: Scene) -> list[Ended]:
        """How the commands of all who decided about it ended."""
        message = self._read_message(message_id)
        if scene.truth is not Truth.NOT_CHARGED:
            await asyncio.to_thread(self._charge_by_hand, order, message.json())
        seen = _claim(await asyncio.to_thread(self._read_books, order))
        # Whoever overlooks the charge says what was true before it.
        first = _claim({}) if scene.truth is Truth.OVERLOOKED else seen
        ended: list[Ended] = []
        async with self._redelivered(message) if Hardship.REDELIVERED in scene.hardships else nullcontext():
            if Hardship.KILLED in scene.hardships:
                ended.append(await self._person(f"killed at {order}").settle(message_id, first, self._kill))
            one = self._person(f"first at {order}").settle(message_id, first)
            if Hardship.TWO_AT_ONCE in scene.hardships:
                another = self._person(f"second at {order}").settle(message_id, seen)
                ended += await self._at_once(message_id, one, another)
            else:
                ended.append(await one)
        return ended

    def _read_message(self, message_id: str) -> Message:
        with self._connect() as conn:
            query = "SELECT headers, body FROM onceward.parked WHERE message_id = %s"
            rows = conn.execute(query, [message_id]).fetchall()
        return next(Message.from_wire(headers, bytes(body)) for headers, body in rows)

    async def _at_once(self, message_id: str, *deciding: Coroutine[Any, Any, Ended]) -> list[Ended]:
        """Neither is first: the row that a decision begins with is kept locked until each of them waits for it."""
        both = asyncio.gather(*deciding)
        waited = 0.0
        with self._connect() as conn, psycopg.connect(self._processes.database) as lock:
            lock.execute("SELECT 1 FROM onceward.parked WHERE message_id = %s FOR UPDATE", [message_id])
            # Where somebody who was killed has decided before, there is no row, and nobody waits.
            while not both.done() and waited < LOCK_SECONDS_MAX:
                waiting = len(conn.execute(f"{_SESSIONS} AND wait_event_type = 'Lock'").fetchall())
                if waiting == len(deciding):
                    break
                await asyncio.sleep(POLL_SECONDS)
                waited += POLL_SECONDS if waiting else 0.0
        return await both

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self._processes.database, autocommit=True)

    def _person(self, name: str) -> Person:
        return Person(name, self._processes.database)

    def _read_books(self, order: str) -> dict[str, Any]:
        """The order's charge, as the provider's dashboard shows it; empty when there is none."""
        charges = self._processes.provider.admin("ledger")
        return next((charge for charge in charges if charge["transfer_group"] == order), {})

    def _charge_by_hand(self, order: str, details: dict[str, Any]) -> None:
        """A colleague has charged the card at the provider, and the service does not know."""
        if self._read_books(order):
            return
        card, session = make_card(self._processes.provider.url, "by hand")
        # What came of it is read in the provider's books, as on a dashboard: a fault of the schedule may still wait there.
        with session, suppress(stripe.StripeError):
            card.create(Card.request(details), f"by hand: {order}")

    @asynccontextmanager
    async def _redelivered(self, message: Message) -> AsyncIterator[None]:
        """Inside, the message is sent to its queue over and over, as by a producer that is never sure."""
        sending = asyncio.create_task(self._send_again(message))
        try:
            yield
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending

    async def _send_again(self, message: Message) -> None:
        sink = self._processes.sink()
        try:
            while True:
                sink.publish([message])
                await asyncio.sleep(REDELIVERY_SECONDS)
        finally:
            sink.close()

    async def _kill(self, process: Process) -> None:
        """At a random instant of its decision: before its session is there, it could not have decided anything."""
        with self._connect() as conn:
            while process.returncode is None and not conn.execute(_SESSIONS).fetchall():  # noqa: ASYNC110 - short
                await asyncio.sleep(POLL_SECONDS)
        await asyncio.sleep(self._rng.uniform(0, KILL_SECONDS_MAX))
        with suppress(ProcessLookupError):
            process.kill()


def _claim(charge: Mapping[str, Any]) -> tuple[str, ...]:
    """What somebody types who has seen this charge in the provider's books, or none (empty)."""
    if charge:
        answer = json.dumps({"id": charge["id"], "amount": charge["amount"]})
        return "--effect", EFFECT, "--answer", answer
    # Forced inside the provider's window: the service is quiet, so no call under the former key is under way.
    return "--effect", EFFECT, "--did-not-happen", "--yes", "--force"

"""The second door for asyncio: `Inbox`, `Intents` and `publish` on a psycopg `AsyncConnection`.

Each call does what its namesake of `onceward` does, with the same statements, results and errors: both carry out the same
steps, and the docstrings there hold here. Results (`Take`, `TakeResult`, `Intent`, ...) come from `onceward`. An
`AsyncConnection` serves one task at a time, as a connection serves one thread.

A task that is cancelled in a call leaves what a crash at that place would leave.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from onceward.database import check_idle
from onceward.errors import UsageError
from onceward.inbox import InboxCalls, Take
from onceward.intents import Intent, IntentCalls, Record, check_commits_by_itself
from onceward.message import Message, canonical_json
from onceward.outbox import check_would_join, publish_steps
from onceward.provider import ProviderProfile
from onceward.statements import SCHEMA_DEFAULT
from onceward.steps import carry_out_async

__all__ = ["Inbox", "Intents", "publish"]


class Inbox(InboxCalls):
    """The inbox of one consumer, for a loop of asyncio; as `onceward.Inbox`."""

    async def register(self, conn: AsyncConnection[Any]) -> None:
        """Upkeep knows this consumer's window, and there are partitions for the ids of these days."""
        _check_outside_transaction(conn, "register()")
        await carry_out_async(conn, self._register_steps(conn.info.user))

    async def make_partition(self, conn: AsyncConnection[Any], message: Message) -> None:
        """There is a partition for the id of `message`, unless its day was retired: then a take says so."""
        _check_outside_transaction(conn, "make_partition()")
        await carry_out_async(conn, self._make_partition_steps(message))

    async def take(self, conn: AsyncConnection[Any], message: Message) -> Take:
        """Take `message` inside the transaction open on `conn`: its row is done when the caller commits."""
        _check_in_transaction(conn)
        return await carry_out_async(conn, self._take_durably_steps(message, "done"))

    async def claim(self, conn: AsyncConnection[Any], message: Message) -> Take:
        """Claim `message` for work that touches the outside: its row is committed as pending, under a lease."""
        _check_outside_transaction(conn, "claim()")
        return await carry_out_async(conn, self._claim_steps(message))

    async def finish(self, conn: AsyncConnection[Any], message: Message, *, take: Take) -> bool:
        """The claimed row is done, in the transaction open on `conn`; the first statement there, before any write."""
        _check_in_transaction(conn)
        return await carry_out_async(conn, self._finish_steps(message, take))

    async def give_back(self, conn: AsyncConnection[Any], message: Message, *, take: Take) -> bool:
        """The claim is given back uncounted, so that a retry may take over at once. False: it was lost already."""
        _check_connection(conn)
        return await carry_out_async(conn, self._give_back_steps(message, take))


class Intents(IntentCalls):
    """The intents of one consumer, for a loop of asyncio; as `onceward.Intents`."""

    async def intend(
        self,
        conn: AsyncConnection[Any],
        message: Message,
        *,
        take: Take,
        n: int,
        name: str,
        request: object,
        provider: ProviderProfile,
        checked: bool = False,
    ) -> Intent:
        """The intent is committed, or what is known of it is returned; see `IntentResult`."""
        _check_connection(conn)
        check_commits_by_itself(conn)
        steps = self._intend_steps(message, take=take, n=n, name=name, request=request, provider=provider, checked=checked)
        return await carry_out_async(conn, steps)

    async def record(
        self,
        conn: AsyncConnection[Any],
        message: Message,
        *,
        n: int,
        answer: object,
        refused: bool = False,
        key: str | None = None,
    ) -> Record:
        """The answer (any JSON value) of the n-th effect is stored, write-once."""
        _check_connection(conn)
        check_commits_by_itself(conn)
        steps = self.record_steps(message, n=n, answer_json=canonical_json(answer), refused=refused, key=key)
        return await carry_out_async(conn, steps)


async def publish(
    conn: AsyncConnection[Any], message: Message, *, schema: str = SCHEMA_DEFAULT, untimed_ids: bool = False
) -> None:
    """Store `message` for sending, inside the transaction open on `conn`, which will commit durably."""
    _check_in_transaction(conn)
    await carry_out_async(conn, publish_steps(message, schema=schema, untimed_ids=untimed_ids))


def _check_connection(conn: object) -> None:
    if not isinstance(conn, AsyncConnection):
        kind = f"{type(conn).__module__}.{type(conn).__qualname__}"
        raise UsageError(f"a psycopg 3 AsyncConnection is needed here, not a {kind}: for that, use onceward's own calls")


def _check_in_transaction(conn: AsyncConnection[Any]) -> None:
    _check_connection(conn)
    check_would_join(conn)


def _check_outside_transaction(conn: AsyncConnection[Any], what: str) -> None:
    _check_connection(conn)
    check_idle(conn, what)

"""Postgres: whether what it has committed stands, and whether a consumer can work in it; and pgmq's queues in it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from psycopg import Connection
from psycopg.rows import tuple_row

from onceward.consumer import CONNECTIONS_BESIDE_THREADS
from onceward.doctor.diagnosis import Check, Diagnosis, Leg, spoken
from onceward.doctor.needs import LEASE, Needs, judge_lease, judge_window, visibility_command
from onceward.errors import UsageError
from onceward.statements import statements

FSYNC: Final = Check(
    "postgres.fsync",
    Leg.CONSUMER,
    "What was committed may be gone after a crash of the machine: an inbox row whose message was acknowledged, an "
    "intent whose call was made.",
)
PAGES: Final = Check(
    "postgres.full_page_writes",
    Leg.CONSUMER,
    "A crash of the machine in the middle of writing a page may leave half of it: rows are damaged or gone.",
)
SYNCHRONOUS: Final = Check(
    "postgres.synchronous_commit",
    Leg.PRODUCER,
    "A consumer commits durably whatever this is. Your own code that calls publish does not: an order that a customer"
    " has been told of may be gone after a crash, with its outbox row.",
)
READ_ONLY: Final = Check(
    "postgres.read_only",
    Leg.CONSUMER,
    "Nothing can be taken: a standby, or a role whose transactions only read, refuses every inbox row.",
)
TRANSACTION_LIMIT: Final = Check(
    "postgres.transaction_timeout",
    Leg.TIMEOUT,
    "Postgres ends the session of a transactional handler that takes longer, every time: its message is parked in the end.",
)
CONNECTIONS: Final = Check(
    "postgres.connections",
    Leg.CONSUMER,
    "Each thread has a connection, and three more are shared. Where the server allows fewer, handlers wait for one "
    "and fail.",
)
LOGGED: Final = Check(
    "pgmq.logged",
    Leg.QUEUE,
    "A crash of its server empties an UNLOGGED queue: what it has confirmed is lost.",
)


class Setting(NamedTuple):
    """One setting of the server as a new session of this role has it."""

    value: str
    source: str  # as pg_settings says: where it comes from


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresFacts:
    """What a session of this role finds. `settings` by name; those that this server does not know are not in it."""

    role: str
    database: str
    settings: Mapping[str, Setting]
    standby: bool = False
    connections_max: int = 100  # for this role in this database; what is kept for superusers is not counted
    threads: int | None = None  # of one process of the consumer; None: not known


def gather(conn: Connection[Any], *, threads: int | None = None) -> PostgresFacts:
    """The facts of the database that `conn` is a fresh session of."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute(statements()["doctor_settings"]).fetchall()
        row = cursor.execute(statements()["doctor_session"]).fetchone()
    if row is None:
        raise UsageError("the database does not say who is connected")
    role, database, standby, connections_max = row
    return PostgresFacts(
        role=role,
        database=database,
        settings={name: Setting(value, source) for name, value, source in rows},
        standby=standby,
        connections_max=connections_max,
        threads=threads,
    )


def judge(facts: PostgresFacts, needs: Needs) -> Iterator[Diagnosis]:
    """What is right and what is wrong with them."""
    place = f"postgres:{facts.database}"
    yield _judge_switch(FSYNC, "fsync", facts, place)
    yield _judge_switch(PAGES, "full_page_writes", facts, place)
    yield _judge_switch(SYNCHRONOUS, "synchronous_commit", facts, place, severe=False)
    yield _judge_read_only(facts, place)
    yield from _judge_transaction_limit(facts, needs, place)
    if facts.threads is not None:
        yield _judge_connections(facts, facts.threads, place)


def _judge_switch(check: Check, name: str, facts: PostgresFacts, place: str, *, severe: bool = True) -> Diagnosis:
    value = facts.settings[name].value
    if value != "off":
        return check.right(place, value)
    return check.wrong(place, value, wanted="on", mend=_set(facts, name, "on"), severe=severe)


def _judge_read_only(facts: PostgresFacts, place: str) -> Diagnosis:
    if facts.standby:
        return READ_ONLY.wrong(
            place, "a standby", wanted="the primary", mend="name the primary: target_session_attrs=read-write in the DSN"
        )
    if facts.settings["default_transaction_read_only"].value == "on":
        mend = _set(facts, "default_transaction_read_only", "off")
        return READ_ONLY.wrong(place, "default_transaction_read_only is on", wanted="off", mend=mend)
    return READ_ONLY.right(place, "it writes")


def _judge_transaction_limit(facts: PostgresFacts, needs: Needs, place: str) -> Iterator[Diagnosis]:
    setting = facts.settings.get("transaction_timeout")
    if setting is None:
        return  # Postgres knows it from version 17 on
    seconds = int(setting.value) / 1000
    wanted = needs.claim_seconds if needs.times is None else max(needs.claim_seconds, needs.times.lease_seconds_min)
    if seconds == 0:
        yield TRANSACTION_LIMIT.right(place, "none")
    elif seconds >= wanted:
        yield TRANSACTION_LIMIT.right(place, spoken(seconds))
    else:
        mend = _set(facts, "transaction_timeout", "0")
        yield TRANSACTION_LIMIT.wrong(place, spoken(seconds), wanted=f"none, or at least {spoken(wanted)}", mend=mend)


def _judge_connections(facts: PostgresFacts, threads: int, place: str) -> Diagnosis:
    wanted = threads + CONNECTIONS_BESIDE_THREADS
    found = f"{facts.connections_max} for the role {facts.role}; a process with {threads} threads uses {wanted}"
    if wanted <= facts.connections_max:
        return CONNECTIONS.right(place, found)
    return CONNECTIONS.wrong(
        place, found, wanted=f"at least {wanted} for each process",
        mend=f"{psql(f'ALTER SYSTEM SET max_connections = {wanted + 20}')} and a restart, or fewer --threads",
    )  # fmt: skip


def _set(facts: PostgresFacts, name: str, value: str) -> str:
    """The command that changes a setting where it comes from."""
    role, database = quoted(facts.role), quoted(facts.database)
    match facts.settings[name].source:
        case "user":
            return psql(f"ALTER ROLE {role} SET {name} = {value}")
        case "database":
            return psql(f"ALTER DATABASE {database} SET {name} = {value}")
        case "database user":
            return psql(f"ALTER ROLE {role} IN DATABASE {database} SET {name} = {value}")
        case "command line":
            return f"take -c {name} out of the command that starts the server, and restart it"
        case "client":
            return f"take {name} out of the options of the DSN, or out of PGOPTIONS"
        case _:
            return psql(f"ALTER SYSTEM SET {name} = {value}", "SELECT pg_reload_conf()")


def psql(*statements_: str) -> str:
    """The command that runs these, each by itself: ALTER SYSTEM cannot run in a transaction with others."""
    return " ".join(["psql", *(f"-c {shlex.quote(statement)}" for statement in statements_)])


def quoted(name: str) -> str:
    """The name as SQL reads it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True, kw_only=True)
class PgmqFacts:
    """What pgmq says of one queue."""

    name: str
    table: str
    logged: bool


def gather_queue(conn: Connection[Any], name: str) -> PgmqFacts:
    """The facts of a pgmq queue. Raises `UsageError` when there is none."""
    from onceward.transports import pgmq  # noqa: PLC0415 - a transport is imported where it is used

    queue = next((queue for queue in pgmq.list_queues(conn) if queue.name == name), None)
    if queue is None:
        raise UsageError(f"there is no pgmq queue {name!r} in this database: make it with `onceward queue create {name}`")
    return PgmqFacts(name=name, table=f"pgmq.q_{name.lower()}", logged=queue.durable)


def judge_queue(facts: PgmqFacts, needs: Needs) -> Iterator[Diagnosis]:
    """What is right and what is wrong with it."""
    place = f"pgmq:{facts.name}"
    yield judge_lease(LEASE, place, needs.visibility_seconds, needs, visibility_command)
    if facts.logged:
        yield LOGGED.right(place, "logged")
    else:
        yield LOGGED.wrong(
            place, "UNLOGGED", wanted="logged", mend=psql(" ".join(("ALTER TABLE", facts.table, "SET LOGGED")))
        )
    yield from judge_window(place, None, needs)

"""The witness: whether what a process was told to do, or not to do, was seen where it would show.

The controller can tell a sink to drop a message; it cannot see whether the sink does. So the queue's own database keeps,
by triggers that no worker knows of, what was ever stored in it and what was ever taken away; and the provider keeps in its
ledger which faults it carried out. Read at the end, when the run is quiet.
"""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from onceward_proof.prove.faults import Answer, Boundary
from onceward_proof.prove.provider_hook import VERDICTS
from onceward_proof.prove.strikes import Told
from onceward_proof.workers.setting import QUEUES

# Plain inserts: they stand or fall with the transaction that they are about, also when the server is killed.
_TABLES: Final = """
CREATE SCHEMA witness;
CREATE TABLE witness.stored (message_type text NOT NULL, subject text NOT NULL, at double precision NOT NULL);
CREATE TABLE witness.removed (message_type text NOT NULL, msg_id bigint NOT NULL, at double precision NOT NULL);
CREATE FUNCTION witness.store() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO witness.stored VALUES
        (NEW.headers->>'type', NEW.headers->>'subject', extract(epoch FROM clock_timestamp()));
    RETURN NULL; END $$;
CREATE FUNCTION witness.remove() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO witness.removed VALUES (OLD.headers->>'type', OLD.msg_id, extract(epoch FROM clock_timestamp()));
    RETURN NULL; END $$;
"""
_TRIGGERS: Final = (
    "CREATE TRIGGER witness_store AFTER INSERT ON {queue} FOR EACH ROW EXECUTE FUNCTION witness.store()",
    "CREATE TRIGGER witness_remove AFTER DELETE ON {queue} FOR EACH ROW EXECUTE FUNCTION witness.remove()",
)
_STORED: Final = "SELECT message_type, subject, min(at) FROM witness.stored GROUP BY message_type, subject"
_REMOVED: Final = "SELECT message_type, msg_id::text, at FROM witness.removed"


@dataclass(frozen=True, slots=True)
class Witnessed:
    """What was seen at the queue and at the provider."""

    stored: Mapping[tuple[str, str], float]  # (message type, order) -> when the first message was stored
    removed: Mapping[tuple[str, str], float]  # (message type, the queue's id) -> when it was removed
    carried_out: Counter[tuple[str, str]]  # (the provider's word for a fault, order) -> how often it did that

    def saw(self, told: Told) -> bool:
        """The fault had its effect."""
        place = told.place
        match told.fault.action:
            # What happened at the queue happened because somebody else passed there later, and nothing struck them. The
            # delivery's count would not tell for an ack: another thread may still have an older delivery of the message.
            case Answer.DROP:
                return self.stored.get((place.message_type, place.order), math.inf) >= told.passed_again_at
            case Answer.LOSE if place.boundary is Boundary.ACK_BEFORE:
                return self.removed.get((place.message_type, told.delivery), math.inf) >= told.passed_again_at
            case Answer.LOSE:
                return (place.message_type, place.order) in self.stored
            case (Answer.SLOW | Answer.CUT | Answer.ERROR_BEFORE | Answer.ERROR_AFTER) as action:
                return self.carried_out[VERDICTS[Answer(action)].kind.value, place.order] > 0
            case _:
                # A failed statement of a handler shows in nothing but what the handler makes of it.
                return True


def install(queue_database: str, queues: Iterable[str] = QUEUES.values()) -> None:
    """From now on the queues' database keeps what is stored and removed."""
    with psycopg.connect(queue_database, autocommit=True) as conn:
        conn.execute(_TABLES.encode())
        for queue in queues:
            for trigger in _TRIGGERS:
                conn.execute(sql.SQL(trigger).format(queue=sql.Identifier("pgmq", f"q_{queue}")))


def hear(queue_database: str, ledger: Path) -> Witnessed:
    """What was seen of the whole run."""
    with psycopg.connect(queue_database, autocommit=True) as conn:
        stored = {(row[0], row[1]): row[2] for row in conn.execute(_STORED.encode())}
        removed = {(row[0], row[1]): row[2] for row in conn.execute(_REMOVED.encode())}
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        carried_out = Counter((row[0], row[1]) for row in connection.execute("SELECT kind, transfer_group FROM faults"))
    return Witnessed(stored, removed, carried_out)


def unseen(told: Iterable[Told], witnessed: Witnessed) -> Counter[str]:
    """How many of each fault had no effect that anybody saw."""
    return Counter(each.fault.name for each in told if not witnessed.saw(each))

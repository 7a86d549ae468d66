"""Ambiguous commits: the connection is cut between COMMIT and its answer, and nobody can tell whether it happened.

A proxy before Postgres knows the commit guard's own bytes, and cuts before or after the server has them. Both outcomes
must be met, in both shapes, and both must come out right: leave the message, redelivery decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from onceward.events import Event
from onceward.testing.proxy import Proxy
from onceward_proof.sweep.stand import SERVED, Stand, deliver_one

COMMIT: Final = b"; COMMIT"  # of the commit guard; no other statement of ours ends so
Cut = Literal["before", "after"]
CUTS: Final[tuple[Cut, ...]] = ("before", "after")
SHAPES: Final = {"effectful": "charge", "transactional": "ledger"}


@dataclass(frozen=True, slots=True)
class Met:
    """One ambiguous commit: what the server had, what the queue was told, and what came of the message."""

    shape: str
    cut: Cut
    hits: int  # how often the proxy cut; 1
    committed: bool
    settlement: str
    redelivery: str
    written: int  # attempts and parked rows: neither may be written while nobody knows
    doubled: int
    lost: int

    @property
    def ok(self) -> bool:
        """The outcome that was aimed at was met, and it came out right."""
        met = self.hits == 1 and self.committed == (self.cut == "after") and self.settlement == "leave"
        decided = self.redelivery == ("duplicate" if self.committed else "handled")
        return met and decided and not (self.written or self.doubled or self.lost)

    def to_json(self) -> dict[str, Any]:
        return {
            "committed": self.committed, "settlement": self.settlement, "redelivery": self.redelivery,
            "doubled": self.doubled, "lost": self.lost, "ok": self.ok,
        }  # fmt: skip


def ambiguous_commits(place: Stand) -> list[Met]:
    """Each shape, cut before and after. The stand must be at rest."""
    return [_meet(place, shape, cut) for shape in SHAPES for cut in CUTS]


def _meet(place: Stand, shape: str, cut: Cut) -> Met:
    order = f"{shape}-{cut}"
    place.place(order)
    place.send_one("order.placed")
    if shape == "transactional":
        place.consume("charge")
        place.send_one("order.paid")
    name = SHAPES[shape]
    (message_id,) = place.ids(SERVED[name])[order]
    settlement, hits = _deliver_cut(place, name, cut)
    committed = _is_committed(place, message_id, name)
    written = _written(place)
    place.make_due()
    _, redelivery = _deliver(place, name, place.database)
    if shape == "effectful":
        place.send_one("order.paid")
        place.consume("ledger")
    verdict = place.judge()
    doubled = order in {*verdict.double_charged, *verdict.doubled_writes}
    lost = order in {*verdict.lost, *verdict.wrong_charge, *verdict.parked}
    return Met(shape, cut, hits, committed, settlement, redelivery, written, int(doubled), int(lost))


def _deliver_cut(place: Stand, name: str, cut: Cut) -> tuple[str, int]:
    with Proxy(place.database) as proxy:
        arm = proxy.lose_request if cut == "before" else proxy.lose_reply_to

        def arm_at_commit(event: Event) -> None:
            if event.point == "consumer.handled":
                arm(COMMIT)

        settlement, _ = _deliver(place, name, proxy.dsn, arm_at_commit)
        return settlement, proxy.hits


def _deliver(place: Stand, name: str, database: str, listener: Callable[[Event], None] = lambda _: None) -> tuple[str, str]:
    """How one delivery was settled, and whether its handler ran: `handled`, `duplicate`, or `none`."""
    points: list[str] = []
    source = place.source(name)
    with place.consumer(name).open(
        database, source=source, listeners=[listener, lambda event: points.append(event.point)]
    ) as opened:
        settlement = deliver_one(opened, source)
    source.close()
    seen = "duplicate" if "consumer.duplicate" in points else "handled" if "consumer.committed" in points else "none"
    return settlement.action if settlement else "nothing came", seen


def _is_committed(place: Stand, message_id: str, name: str) -> bool:
    """The message is done, as the database has it."""
    key = [place.consumer(name).name, message_id]
    statement = "SELECT state FROM onceward.inbox WHERE consumer = %s AND message_id = %s"
    row = place.conn.execute(statement, key).fetchone()
    return row is not None and row[0] == "done"


def _written(place: Stand) -> int:
    row = place.conn.execute("SELECT (SELECT count(*) FROM onceward.attempts) + (SELECT count(*) FROM onceward.parked)")
    return int((row.fetchone() or (0,))[0])

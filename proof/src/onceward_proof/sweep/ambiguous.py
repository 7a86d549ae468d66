"""Ambiguous commits: the connection is cut between COMMIT and its answer, and the client cannot tell whether it happened.

A proxy before Postgres knows the commit guard's own bytes, and cuts before or after the server has them. Both outcomes
must be met, in both shapes, and both must come out right: leave the message, redelivery decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, LiteralString

from onceward.events import Event
from onceward.testing.proxy import Proxy
from onceward_proof.sweep.payments_at_rest import SERVED, Payments, deliver_one
from onceward_proof.workers.setting import Role

COMMIT: Final = b"; COMMIT"  # of the commit guard; no other statement of ours ends so
Cut = Literal["before", "after"]
Shape = Literal["effectful", "transactional"]
CUTS: Final[tuple[Cut, ...]] = ("before", "after")
SHAPES: Final[dict[Shape, Role]] = {"effectful": "charge", "transactional": "ledger"}


@dataclass(frozen=True, slots=True)
class AmbiguousCommit:
    """One ambiguous commit: what the server had, what the queue was told, and what came of the message."""

    shape: Shape
    cut: Cut
    hits: int  # how often the proxy cut; 1
    committed: bool
    settlement: str
    redelivery: str
    written: int  # attempts and parked rows: neither may be written while the outcome is unknown
    doubled: int
    lost: int

    @property
    def ok(self) -> bool:
        """The commit was cut as intended, and it came out right."""
        is_met = self.hits == 1 and self.committed == (self.cut == "after") and self.settlement == "leave"
        is_right = self.redelivery == ("duplicate" if self.committed else "handled")
        return is_met and is_right and not (self.written or self.doubled or self.lost)

    def to_json(self) -> dict[str, Any]:
        return {
            "committed": self.committed, "settlement": self.settlement, "redelivery": self.redelivery,
            "doubled": self.doubled, "lost": self.lost, "ok": self.ok,
        }  # fmt: skip


def ambiguous_commits(payments: Payments) -> list[AmbiguousCommit]:
    """Each shape, cut before and after. The payments must be at rest."""
    return [_cut_at_commit(payments, shape, cut) for shape in SHAPES for cut in CUTS]


def _cut_at_commit(payments: Payments, shape: Shape, cut: Cut) -> AmbiguousCommit:
    order = f"{shape}-{cut}"
    payments.place(order)
    payments.send_one("order.placed")
    if shape == "transactional":
        payments.consume("charge")
        payments.send_one("order.paid")
    role = SHAPES[shape]
    (message_id,) = payments.ids(SERVED[role])[order]
    settlement, hits = _deliver_cut(payments, role, cut)
    committed = _is_committed(payments, message_id, role)
    written = _written(payments)
    payments.make_due()
    _, redelivery = _deliver(payments, role, payments.database)
    if shape == "effectful":
        payments.send_one("order.paid")
        payments.consume("ledger")
    verdict = payments.judge()
    doubled = order in {*verdict.double_charged, *verdict.doubled_writes}
    lost = order in {*verdict.lost, *verdict.wrong_charge, *verdict.parked}
    return AmbiguousCommit(shape, cut, hits, committed, settlement, redelivery, written, int(doubled), int(lost))


def _deliver_cut(payments: Payments, role: Role, cut: Cut) -> tuple[str, int]:
    with Proxy(payments.database) as proxy:
        arm = proxy.lose_request if cut == "before" else proxy.lose_reply_to

        def arm_at_commit(event: Event) -> None:
            if event.point == "consumer.handled":
                arm(COMMIT)

        settlement, _ = _deliver(payments, role, proxy.dsn, arm_at_commit)
        return settlement, proxy.hits


def _deliver(
    payments: Payments, role: Role, database: str, listener: Callable[[Event], None] = lambda _: None
) -> tuple[str, str]:
    """How one delivery was settled, and whether its handler ran: `handled`, `duplicate`, or `none`."""
    points: list[str] = []
    source = payments.source(role)
    with payments.consumer(role).open(
        database, source=source, listeners=[listener, lambda event: points.append(event.point)]
    ) as opened:
        settlement = deliver_one(opened, source)
    source.close()
    seen = "duplicate" if "consumer.duplicate" in points else "handled" if "consumer.committed" in points else "none"
    return settlement.action if settlement else "nothing came", seen


def _is_committed(payments: Payments, message_id: str, role: Role) -> bool:
    """The message is done, as the database has it."""
    statement: LiteralString = "SELECT state FROM onceward.inbox WHERE consumer = %s AND message_id = %s"
    return bool(payments.look(statement, payments.consumer(role).name, message_id) == "done")


def _written(payments: Payments) -> int:
    return int(payments.look("SELECT (SELECT count(*) FROM onceward.attempts) + (SELECT count(*) FROM onceward.parked)"))

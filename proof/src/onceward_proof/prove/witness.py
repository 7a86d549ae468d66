"""The witness: whether what a process was told to do, or not to do, was seen where it would show.

The controller can tell a sink to drop a message; it cannot see whether the sink does. So each broker has somebody, of whom
no worker knows, who sees what is ever stored and what is ever taken away; and the provider keeps in its ledger which faults
it carried out. Read at the end, when the run is quiet.
"""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from onceward_proof.brokers.broker import Passed, Queues
from onceward_proof.prove.faults import Answer, Boundary, Wire
from onceward_proof.prove.provider_hook import VERDICTS
from onceward_proof.prove.strikes import Told


@dataclass(frozen=True, slots=True)
class Witnessed:
    """What was seen at the queue and at the provider."""

    passed: Passed
    carried_out: Counter[tuple[str, str]]  # (the provider's word for a fault, order) -> how often it did that

    def saw(self, told: Told) -> bool:
        """The fault had its effect."""
        place = told.place
        message = place.message_type, place.order
        match told.fault.action:
            # What happened at the queue happened because somebody else passed there later, and nothing struck them. The
            # delivery's count would not tell for an ack: another thread may still have an older delivery of the message.
            case Answer.DROP:
                return self.passed.stored.get(message, math.inf) >= told.passed_again_at
            case Answer.LOSE if place.boundary is Boundary.ACK_BEFORE:
                return self._kept(message, told)
            case Answer.LOSE:
                return message in self.passed.stored
            case Wire.CUT_AT_ACK:
                # Had the ack arrived, the message would never have come again.
                came_again = told.passed_again_at < math.inf
                return message in self.passed.cut and came_again and self._kept(message, told)
            case (Answer.SLOW | Answer.CUT | Answer.ERROR_BEFORE | Answer.ERROR_AFTER) as action:
                return self.carried_out[VERDICTS[Answer(action)].kind.value, place.order] > 0
            case _:
                # A failed statement of a handler shows in nothing but what the handler makes of it.
                return True

    def _kept(self, message: tuple[str, str], told: Told) -> bool:
        """Nobody took the message away before the same place was passed again."""
        return not any(told.struck_at <= at < told.passed_again_at for at in self.passed.removed.get(message, ()))


def hear(queues: Queues, ledger: Path) -> Witnessed:
    """What was seen of the whole run."""
    passed = queues.passed()
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        carried_out = Counter((row[0], row[1]) for row in connection.execute("SELECT kind, transfer_group FROM faults"))
    return Witnessed(passed, carried_out)


def unseen(told: Iterable[Told], witnessed: Witnessed) -> Counter[str]:
    """How many of each fault had no effect that anybody saw."""
    return Counter(each.fault.name for each in told if not witnessed.saw(each))

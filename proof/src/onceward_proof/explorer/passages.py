"""Where the explorer goes. A passage is one search: the state in which its messages begin, and its bound."""

from __future__ import annotations

from typing import Final, NamedTuple

from onceward_proof.explorer.message_state import MessageState
from onceward_proof.explorer.outbox import Lane, OutboxState
from onceward_proof.explorer.rules import RELAY, RelayRules, Rules


class Bound(NamedTuple):
    """How far a passage goes: exhaustive means every world within this."""

    workers: int = 2
    messages: int = 2
    faults: int = 2
    redrives: int = 1
    lanes: int = 0  # of the relay; 0: no relay, what is redriven is in the queue at once


class Passage(NamedTuple):
    """One search: where it begins, and its bound."""

    name: str
    messages: tuple[MessageState, ...]
    outbox: OutboxState
    bound: Bound


def passage(name: str, *rules: Rules, faults: int, lanes: int = 0, redrives: int = 1, relay: RelayRules = RELAY) -> Passage:
    """One message for each of `rules`, nothing done yet, and a relay of so many lanes."""
    messages = tuple(MessageState(rules) for rules in rules)
    bound = Bound(messages=len(messages), faults=faults, redrives=redrives, lanes=lanes)
    return Passage(name, messages, OutboxState(relay, lanes=(Lane(),) * lanes), bound)


LOOK_UP: Final = Rules(other_payload=True)
NO_LOOK_UP: Final = Rules(lookup=False, other_payload=True)
TRANSACTIONAL: Final = Rules(shape="transactional", other_payload=True)
RETIRED: Final = Rules(longer_window=True)
DECIDED: Final = Rules(decisions=True)
DECIDED_WITHOUT_LOOK_UP: Final = Rules(lookup=False, decisions=True)
DECIDED_CARELESSLY: Final = Rules(decisions=True, careless=True)
DECIDED_TRANSACTIONAL: Final = Rules(shape="transactional", other_payload=True, decisions=True)
RETIRED_TRANSACTIONAL: Final = Rules(shape="transactional", longer_window=True)

# What is taken for granted; outside of it nothing is promised.
ASSUMED: Final = (
    "a call to the provider ends within the margin that is kept before its key expires",
    "no transaction and no call is open at the moment at which a message's id leaves the dedup window",
    "a redrive is done by somebody who looked: two answers and foreign commits are not redriven",
    "whether an effect happened is said by somebody who looked; or, if it has a look-up, past the window without a look",
    "--force is used only by somebody who looked, and when no call is under way",
    "Postgres keeps what it said is committed",
)
# Two messages show what shared workers and a shared relay do to each other; one message affords more faults.
PASSAGES: Final = (
    passage("effectful, without a look-up", NO_LOOK_UP, NO_LOOK_UP, faults=1),
    passage("transactional", TRANSACTIONAL, TRANSACTIONAL, faults=2),
    passage("one of each shape", LOOK_UP, TRANSACTIONAL, faults=1),
    passage("transactional and relay", TRANSACTIONAL, TRANSACTIONAL, faults=1, lanes=2, redrives=0),
    passage("effectful and relay, deeper", LOOK_UP, faults=2, lanes=1),
    passage("effectful without a look-up, deeper", NO_LOOK_UP, faults=2),
    passage("effectful, with a look-up", LOOK_UP, LOOK_UP, faults=2),
    passage("decided by a person", DECIDED, faults=1, redrives=2),
    passage("decided by a person, without a look-up", DECIDED_WITHOUT_LOOK_UP, faults=2),
    passage("decided by a careless person, with a look-up", DECIDED_CARELESSLY, faults=1, redrives=2),
    passage("decided by a person, transactional", DECIDED_TRANSACTIONAL, faults=2),
    passage("retired by another process's shorter window", RETIRED, RETIRED_TRANSACTIONAL, faults=1),
)
DEEPER: Final = (
    *PASSAGES,
    passage("decided by a person, deeper", DECIDED, faults=2, redrives=2),
    passage("decided by a person without a look-up, deeper", DECIDED_WITHOUT_LOOK_UP, faults=2, redrives=2),
    passage("decided by a careless person, deeper", DECIDED_CARELESSLY, faults=2, redrives=2),
    passage("effectful, three faults", LOOK_UP, faults=3),
    passage("transactional, three faults", TRANSACTIONAL, faults=3),
)

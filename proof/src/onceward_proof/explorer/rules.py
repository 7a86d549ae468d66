"""What is explored: the production `step` functions, and the one line that a planted bug changes."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from onceward.protocol import delivery, relay
from onceward.protocol import words as p
from onceward.protocol.delivery import State, Step


class Bug(Enum):
    """A wrong line outside `step`: in a statement, or in how a command is carried out. planted_bugs.py describes each."""

    ACK_BEFORE_COMMIT = auto()
    ANSWER_ONLY_IN_FINISH = auto()
    CALL_BEFORE_INTENT = auto()
    CONFLICT_AFTER_IN_FLIGHT = auto()
    DEFAULT_PARTITION = auto()
    DISCARD_FORGETS_ANSWERS = auto()
    FAILED_ROW_STAYS = auto()
    FENCED_RECORDING = auto()
    FRESH_KEY = auto()
    NO_FENCE = auto()
    PARK_LEAVES_ROW = auto()
    PARKED_ROW_MISSING = auto()
    PUBLISH_OUTSIDE = auto()
    REOPENED_INSIDE_WINDOW = auto()
    REOPENED_THOUGH_ANSWERED = auto()
    RELAY_DELETES_FIRST = auto()
    RELAY_OVERTAKES = auto()
    RETIRED_MADE_AGAIN = auto()
    SESSION_LIES = auto()
    SKIP_ON_ZERO_ROWS = auto()
    TOKEN_NOT_CHECKED = auto()


class Rules(NamedTuple):
    """One consumer, what its surroundings allow, and the bug that is planted in it, if any."""

    shape: p.Shape = "effectful"
    lookup: bool = True  # the provider can be asked whether an effect happened
    other_payload: bool = False  # a message of another payload may come under the same id
    decisions: bool = False  # a person who looked at the provider may settle, start the effect again, or discard
    careless: bool = False  # the person says that the effect did not happen without having looked
    longer_window: bool = False  # upkeep went by the window of another process, which is shorter than the workers' own
    step: Callable[[State, p.Event], Step] = delivery.step
    bug: Bug | None = None


class RelayRules(NamedTuple):
    """The relay, how patient it is with a row, and the bug that is planted in it, if any."""

    patience: relay.Patience = relay.Patience(attempts_max=2)
    step: Callable[[relay.State, relay.Event], relay.Step] = relay.step
    bug: Bug | None = None


PRODUCTION = Rules()
RELAY = RelayRules()

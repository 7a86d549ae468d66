"""What is on trial: the production `step` functions, and what a planted bug may change of them or of a statement."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from onceward.protocol import delivery
from onceward.protocol import relay as dispatch
from onceward.protocol import words as p
from onceward.protocol.delivery import State, Step


class Rules(NamedTuple):
    """One consumer's shape, and one line of the protocol or of a statement that may be wrong."""

    shape: p.Shape = "effectful"
    lookup: bool = True  # the provider can be asked whether an effect happened
    other_payload: bool = False  # a message of another payload may come under the same id
    longer_window: bool = False  # upkeep went by the window of another process, which is shorter than the workers' own
    step: Callable[[State, p.Event], Step] = delivery.step
    fence: str = "state and token"  # state | nothing
    key_stable: bool = True
    zero_rows_skip: bool = False
    conflict_late: bool = False
    failed_row_stays: bool = False
    park_leaves_row: bool = False
    parked_row_missing: bool = False
    record_fenced: bool = False
    record_in_finish: bool = False
    ack_before_commit: bool = False
    call_before_intent: bool = False
    publish_outside: bool = False
    default_partition: bool = False
    session_lies: bool = False  # a decision is durable only if its session says so, and some handler switched that off
    retired_made_again: bool = False


class RelayRules(NamedTuple):
    """The relay, and one line of it that may be wrong."""

    step: Callable[[dispatch.State, dispatch.Event], dispatch.Step] = dispatch.step
    delete_before_publish: bool = False
    heads_only: bool = True  # a row goes only when no earlier row of its key is there


PRODUCTION = Rules()
RELAY = RelayRules()

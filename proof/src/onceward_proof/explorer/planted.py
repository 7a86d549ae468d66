"""Bugs, planted one at a time: a line of the protocol, of a statement or of the relay is wrong. Each must be found.

An explorer that finds nothing in the production protocol means something only if it finds these.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from onceward.protocol import delivery
from onceward.protocol import relay as dispatch
from onceward.protocol import words as p
from onceward.protocol.delivery import Place, State, Step
from onceward.transport import ACK
from onceward_proof.explorer import promises
from onceward_proof.explorer.cell import Cell
from onceward_proof.explorer.outbox import Lane, Post
from onceward_proof.explorer.rules import RELAY, RelayRules, Rules
from onceward_proof.explorer.search import Bound, Passage


class Planted(NamedTuple):
    """One bug: what is wrong, the promise that it must be seen to break, and where it is looked for."""

    what: str
    promise: str
    rules: Rules = Rules()
    relay: RelayRules = RELAY
    messages: int = 1
    lanes: int = 0
    faults: int = 2

    def passage(self, name: str) -> Passage:
        post = Post(rules=self.relay, lanes=(Lane(),) * self.lanes)
        bound = Bound(messages=self.messages, faults=self.faults)
        return Passage(name, (Cell(rules=self.rules),) * self.messages, post, bound)


def ambiguous_is_acked(state: State, event: p.Event) -> Step:
    return delivery.step(state, p.Committed() if isinstance(event, p.Ambiguous) and state.at is Place.COMMITTING else event)


def unknown_is_called_again(state: State, event: p.Event) -> Step:
    after, command = delivery.step(state, event)
    return (after._replace(at=Place.CALLING), p.Call(after.n)) if isinstance(command, p.LookUp) else (after, command)


def in_flight_is_acked(state: State, event: p.Event) -> Step:
    after, command = delivery.step(state, event)
    return after, p.Settle(ACK) if isinstance(event, p.InFlight) else command


def aborted_is_acked(state: State, event: p.Event) -> Step:
    return delivery.step(state, p.Committed() if isinstance(event, p.Aborted) else event)


def lost_park_is_acked(state: State, event: p.Event) -> Step:
    lost = isinstance(event, p.FencedOff | p.DatabaseLost) and state.at is Place.PARKING
    return delivery.step(state, p.Parked() if lost else event)


def failed_call_goes_on(state: State, event: p.Event) -> Step:
    """The handler of a call that failed is not unwound: it may swallow the error and ask for its finish."""
    if state.at is Place.CALLING and isinstance(event, p.Failed):
        return state._replace(at=Place.HANDLING), p.Interrupt(p.Interruption.CALL_FAILED, event.detail)
    return delivery.step(state, event)


def open_effect_is_finished(state: State, event: p.Event) -> Step:
    return failed_call_goes_on(state, p.Finishing(event.intents, 0) if isinstance(event, p.Finishing) else event)


def unconfirmed_is_deleted(state: dispatch.State, event: dispatch.Event) -> dispatch.Step:
    after, command = dispatch.step(state, event)
    if isinstance(command, dispatch.SettleRows):
        return after, dispatch.SettleRows(tuple(row.position for row in state.rows), ())
    return after, command


def keys_are_forgotten(state: dispatch.State, event: dispatch.Event) -> dispatch.Step:
    if isinstance(event, dispatch.Taken):
        event = dispatch.Taken(tuple(row._replace(key=None) for row in event.rows))
    return dispatch.step(state, event)


TRANSACTIONAL: Final = Rules(shape="transactional")
PLANTED: Final = {
    "ack-before-commit": Planted(
        "the message is acknowledged before its COMMIT is sent", promises.LOST, Rules(ack_before_commit=True)
    ),
    "token-not-checked": Planted(
        "the finish checks the state of the row, and not the token", promises.TRESPASSED, Rules(fence="state")
    ),
    "no-fence": Planted(
        "the finish checks neither state nor token", promises.WRITTEN_TWICE, Rules(fence="nothing")
    ),
    "fresh-key": Planted(
        "each attempt makes a new idempotency key", promises.CHARGED_TWICE, Rules(key_stable=False)
    ),
    "conflict-after-in-flight": Planted(
        "the payload is compared only once the row is pending and lapsed: another payload of a done id is a duplicate",
        promises.LOST, Rules(conflict_late=True, other_payload=True),
    ),
    "skip-on-zero-rows": Planted(
        "0 rows inserted, so the message is skipped", promises.LOST, Rules(zero_rows_skip=True)
    ),
    "answer-only-in-finish": Planted(
        "the answer is recorded in the finishing transaction only", promises.ANSWER_GONE, Rules(record_in_finish=True)
    ),
    "fenced-recording": Planted(
        "recording an answer is fenced, so a worker that lost its lease throws it away",
        promises.ANSWER_GONE, Rules(record_fenced=True),
    ),
    "call-before-intent": Planted(
        "the provider is called without a committed intent", promises.CHARGED_BLIND, Rules(call_before_intent=True)
    ),
    "blind-retry": Planted(
        "past the provider's window the effect is called again, not looked up",
        promises.CHARGED_BLIND, Rules(step=unknown_is_called_again),
    ),
    "default-partition": Planted(
        "a default partition takes an old id as new, after its own partition was dropped",
        promises.WRITTEN_TWICE, Rules(default_partition=True),
    ),
    "session-lies": Planted(
        "a park is only as durable as its session, in which an earlier handler switched durable commits off",
        promises.LOST, Rules(session_lies=True),
    ),
    "retired-made-again": Planted(
        "a process with a longer window makes the partition of a retired day again, and takes what was done there as new",
        promises.WRITTEN_TWICE, TRANSACTIONAL._replace(longer_window=True, retired_made_again=True),
    ),
    "failed-row-stays": Planted(
        "a failed attempt leaves its row as done, so that its own retry looks like a duplicate",
        promises.UNWRITTEN, TRANSACTIONAL._replace(failed_row_stays=True),
    ),
    "park-leaves-row": Planted(
        "a park writes the parked row and leaves the inbox row pending",
        promises.DONE_AND_PARKED, Rules(park_leaves_row=True), faults=3,
    ),
    "parked-row-missing": Planted(
        "a park sets the inbox row and writes no parked row", promises.NAMELESS, Rules(parked_row_missing=True)
    ),
    "ambiguous-acked": Planted(
        "a COMMIT without a reply is taken for committed", promises.LOST, Rules(step=ambiguous_is_acked)
    ),
    "aborted-acked": Planted(
        "a COMMIT that the server answered with ROLLBACK is taken for committed",
        promises.LOST, Rules(step=aborted_is_acked),
    ),
    "in-flight-acked": Planted(
        "a message in another worker's hands is acknowledged", promises.LOST, Rules(step=in_flight_is_acked)
    ),
    "open-effect-finished": Planted(
        "a handler may go on after a call that failed, and the finish does not look whether all effects have an answer",
        promises.UNANSWERED, Rules(step=open_effect_is_finished),
    ),
    "lost-park-acked": Planted(
        "a park that was not written is acknowledged", promises.LOST, TRANSACTIONAL._replace(step=lost_park_is_acked)
    ),
    "publish-outside": Planted(
        "the event is put into the outbox in a transaction of its own, before the handler's",
        promises.EVENT_PHANTOM, Rules(publish_outside=True), lanes=1,
    ),
    "relay-deletes-first": Planted(
        "the relay deletes what it took before it publishes",
        promises.EVENT_LOST, TRANSACTIONAL, RelayRules(delete_before_publish=True), lanes=1,
    ),
    "relay-deletes-unconfirmed": Planted(
        "the relay deletes all that it sent, confirmed or not",
        promises.EVENT_LOST, TRANSACTIONAL, RelayRules(step=unconfirmed_is_deleted), lanes=1,
    ),
    "relay-goes-on": Planted(
        "the relay goes on, in its next chunk, behind a row that the sink has refused",
        promises.OVERTAKEN, TRANSACTIONAL, RelayRules(step=keys_are_forgotten), messages=2, lanes=1, faults=1,
    ),
    "relay-overtakes": Planted(
        "a relay takes any row that nobody holds (SKIP LOCKED alone), also behind an earlier one of its key",
        promises.OVERTAKEN, TRANSACTIONAL, RelayRules(heads_only=False), messages=2, lanes=2, faults=0,
    ),
}  # fmt: skip

"""Bugs, planted one at a time: a line of the protocol, of a statement or of the relay is wrong. Each must be found.

An explorer that finds nothing in the production protocol means something only if it finds these.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from onceward.protocol import delivery, relay
from onceward.protocol import words as p
from onceward.protocol.delivery import Place, State, Step
from onceward.transport import ACK
from onceward_proof.explorer.passages import Passage, passage
from onceward_proof.explorer.promises import Promise
from onceward_proof.explorer.rules import RELAY, Bug, RelayRules, Rules


class PlantedBug(NamedTuple):
    """One bug: what is wrong, the promise that it must be seen to break, and where it is looked for."""

    what: str
    promise: Promise
    rules: Rules = Rules()
    relay: RelayRules = RELAY
    messages: int = 1
    lanes: int = 0
    faults: int = 2

    def passage(self, name: str) -> Passage:
        rules = (self.rules,) * self.messages
        return passage(name, *rules, faults=self.faults, lanes=self.lanes, relay=self.relay)


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


def reopened_is_called_at_once(state: State, event: p.Event) -> Step:
    return delivery.step(state, p.Intended() if isinstance(event, p.Reopened) else event)


def unconfirmed_is_deleted(state: relay.State, event: relay.Event) -> relay.Step:
    after, command = relay.step(state, event)
    if isinstance(command, relay.CommitBatch):
        return after, relay.CommitBatch(tuple(row.position for row in state.rows), ())
    return after, command


def keys_are_forgotten(state: relay.State, event: relay.Event) -> relay.Step:
    if isinstance(event, relay.BatchLocked):
        event = relay.BatchLocked(tuple(row._replace(key=None) for row in event.rows))
    return relay.step(state, event)


def set_aside_is_deleted(state: relay.State, event: relay.Event) -> relay.Step:
    after, command = relay.step(state, event)
    if isinstance(command, relay.CommitBatch):
        given_up = tuple(row.position for row, _ in command.set_aside)
        return after, relay.CommitBatch(command.confirmed + given_up, command.postponed)
    return after, command


def hold_is_ignored(state: relay.State, event: relay.Event) -> relay.Step:
    return relay.step(state._replace(patience=state.patience._replace(hold_subjects=False)), event)


# Bounds are as small as the shortest story of the bug allows: a wider one only takes longer.
TRANSACTIONAL: Final = Rules(shape="transactional")
ONE_TRY: Final = relay.Patience(attempts_max=1)
PLANTED: Final = {
    "ack-before-commit": PlantedBug("the message is acknowledged before its COMMIT is sent",
        Promise.LOST, Rules(bug=Bug.ACK_BEFORE_COMMIT)),
    "token-not-checked": PlantedBug("the finish checks the state of the row, and not the token",
        Promise.TRESPASSED, Rules(bug=Bug.TOKEN_NOT_CHECKED)),
    "no-fence": PlantedBug("the finish checks neither state nor token", Promise.WRITTEN_TWICE, Rules(bug=Bug.NO_FENCE)),
    "fresh-key": PlantedBug("each attempt makes a new idempotency key", Promise.CHARGED_TWICE, Rules(bug=Bug.FRESH_KEY)),
    "conflict-after-in-flight": PlantedBug(
        "the payload is compared only once the row is pending and lapsed: another payload of a done id is a duplicate",
        Promise.LOST, Rules(bug=Bug.CONFLICT_AFTER_IN_FLIGHT, other_payload=True),
    ),
    "skip-on-zero-rows": PlantedBug("0 rows inserted, so the message is skipped",
        Promise.LOST, Rules(bug=Bug.SKIP_ON_ZERO_ROWS)),
    "answer-only-in-finish": PlantedBug("the answer is recorded in the finishing transaction only",
        Promise.ANSWER_GONE, Rules(bug=Bug.ANSWER_ONLY_IN_FINISH)),
    "fenced-recording": PlantedBug("recording an answer is fenced, so a worker that lost its lease throws it away",
        Promise.ANSWER_GONE, Rules(bug=Bug.FENCED_RECORDING)),
    "call-before-intent": PlantedBug("the provider is called without a committed intent",
        Promise.CHARGED_BLIND, Rules(bug=Bug.CALL_BEFORE_INTENT)),
    "blind-retry": PlantedBug("past the provider's window the effect is called again, not looked up",
        Promise.CHARGED_BLIND, Rules(step=unknown_is_called_again)),
    "default-partition": PlantedBug("a default partition takes an old id as new, after its own partition was dropped",
        Promise.WRITTEN_TWICE, Rules(bug=Bug.DEFAULT_PARTITION)),
    "session-lies": PlantedBug(
        "a park is only as durable as its session, in which an earlier handler switched durable commits off",
        Promise.LOST, Rules(bug=Bug.SESSION_LIES),
    ),
    "retired-made-again": PlantedBug(
        "a process with a longer window makes the partition of a retired day again, and takes what was done there as new",
        Promise.WRITTEN_TWICE, TRANSACTIONAL._replace(longer_window=True, bug=Bug.RETIRED_MADE_AGAIN),
    ),
    "failed-row-stays": PlantedBug("a failed attempt leaves its row as done, so that its own retry looks like a duplicate",
        Promise.UNWRITTEN, TRANSACTIONAL._replace(bug=Bug.FAILED_ROW_STAYS)),
    "park-leaves-row": PlantedBug("a park writes the parked row and leaves the inbox row pending",
        Promise.DONE_AND_PARKED, Rules(bug=Bug.PARK_LEAVES_ROW), faults=3),
    "parked-row-missing": PlantedBug("a park sets the inbox row and writes no parked row",
        Promise.NAMELESS, Rules(bug=Bug.PARKED_ROW_MISSING)),
    "ambiguous-acked": PlantedBug("a COMMIT without a reply is taken for committed",
        Promise.LOST, Rules(step=ambiguous_is_acked)),
    "aborted-acked": PlantedBug("a COMMIT that the server answered with ROLLBACK is taken for committed",
        Promise.LOST, Rules(step=aborted_is_acked)),
    "in-flight-acked": PlantedBug("a message in another worker's hands is acknowledged",
        Promise.LOST, Rules(step=in_flight_is_acked)),
    "open-effect-finished": PlantedBug(
        "a handler may go on after a call that failed, and the finish does not look whether all effects have an answer",
        Promise.UNANSWERED, Rules(step=open_effect_is_finished),
    ),
    "lost-park-acked": PlantedBug("a park that was not written is acknowledged",
        Promise.LOST, TRANSACTIONAL._replace(step=lost_park_is_acked)),
    "reopened-called-at-once": PlantedBug(
        "an effect that did not happen, as somebody said who had not looked, is called without a look-up",
        Promise.CHARGED_TWICE, Rules(decisions=True, careless=True, step=reopened_is_called_at_once),
    ),
    "reopened-inside-window": PlantedBug("an effect begins again under a new key while a call is still under way",
        Promise.CHARGED_TWICE, Rules(decisions=True, bug=Bug.REOPENED_INSIDE_WINDOW)),
    "reopened-though-answered": PlantedBug("an effect begins again, whatever its row says",
        Promise.CHARGED_TWICE, Rules(lookup=False, decisions=True, careless=True, bug=Bug.REOPENED_THOUGH_ANSWERED)),
    "discard-forgets-answers": PlantedBug("an answer that comes after a discard is thrown away",
        Promise.ANSWER_GONE, Rules(decisions=True, bug=Bug.DISCARD_FORGETS_ANSWERS)),
    "publish-outside": PlantedBug("the event is put into the outbox in a transaction of its own, before the handler's",
        Promise.EVENT_PHANTOM, Rules(bug=Bug.PUBLISH_OUTSIDE), lanes=1),
    "relay-deletes-first": PlantedBug("the relay deletes what it took before it publishes",
        Promise.EVENT_LOST, TRANSACTIONAL, RelayRules(bug=Bug.RELAY_DELETES_FIRST), lanes=1),
    "relay-deletes-unconfirmed": PlantedBug("the relay deletes all that it sent, confirmed or not",
        Promise.EVENT_LOST, TRANSACTIONAL, RelayRules(step=unconfirmed_is_deleted), lanes=1),
    "relay-goes-on": PlantedBug("the relay goes on, in its next chunk, behind a row that the sink has refused",
        Promise.OVERTAKEN, TRANSACTIONAL, RelayRules(step=keys_are_forgotten), messages=2, lanes=1, faults=1),
    "relay-deletes-set-aside": PlantedBug("the relay deletes a row that has failed too often",
        Promise.EVENT_LOST, TRANSACTIONAL, RelayRules(ONE_TRY, set_aside_is_deleted), lanes=1),
    "relay-gives-up-subject": PlantedBug("the relay sets aside a row whose subject must hold, and goes on behind it",
        Promise.OVERTAKEN, TRANSACTIONAL, RelayRules(ONE_TRY._replace(hold_subjects=True), hold_is_ignored),
        messages=2, lanes=1, faults=1),
    "relay-overtakes": PlantedBug(
        "a relay takes any row that nobody holds (SKIP LOCKED alone), also behind an earlier one of its key",
        Promise.OVERTAKEN, TRANSACTIONAL, RelayRules(bug=Bug.RELAY_OVERTAKES), messages=2, lanes=2, faults=0,
    ),
}  # fmt: skip

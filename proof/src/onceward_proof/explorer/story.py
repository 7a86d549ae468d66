"""The path to a broken world, in plain words.

The search keeps worlds without names. The path is walked once more with names (worker 1 and 2, message A and B), so that
each keeps its name all the way through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from onceward.protocol import words as p
from onceward_proof.explorer.facts import Emitted, Happening, Relayed, RowFate
from onceward_proof.explorer.message_state import MessageMove, MessageState
from onceward_proof.explorer.outbox import OutboxMove, OutboxState, emitted_of, message_of, relay_moves, with_rows
from onceward_proof.explorer.rules import Bug
from onceward_proof.explorer.space import NOBODY, PARTS_MASK, StateSpace, message_moves

MESSAGES: Final = ("A", "B")
Names = tuple[int, ...]  # the number of each worker, in the order in which a message's state holds them


class NamedWorld(NamedTuple):
    """A world as the moves left it: nothing in it is sorted or mirrored, so that workers and lanes keep their places."""

    messages: tuple[MessageState, ...]
    workers: tuple[Names, ...]
    outbox: OutboxState


def tell(space: StateSpace, path: tuple[int, ...]) -> list[str]:
    """One sentence per step."""
    messages = space.passage.messages
    world = NamedWorld(messages, ((),) * len(messages), space.passage.outbox)
    sentences: list[str] = []
    # The path holds only numbers of worlds: every step is tried until one leads to the next number.
    for after in path[1:]:
        sentence, world = next(step for step in _steps(space, world) if _is_the_same(space, step[1], after))
        sentences.append(sentence)
    return sentences


def _is_the_same(space: StateSpace, named: NamedWorld, world: int) -> bool:
    first, second = (*(space.messages.number(state) for state in named.messages), NOBODY)[:2]
    return space.canonical(first, second, space.outboxes.number(named.outbox)) == world & PARTS_MASK


def _steps(space: StateSpace, world: NamedWorld) -> Iterator[tuple[str, NamedWorld]]:
    for message, state in enumerate(world.messages):
        for move in message_moves(state):
            yield _message_step(space, world, message, move)
    for outbox_move in relay_moves(world.outbox):
        yield _outbox_step(world, outbox_move)


def _message_step(space: StateSpace, world: NamedWorld, message: int, move: MessageMove) -> tuple[str, NamedWorld]:
    workers = world.workers[message]
    worker = _free_number(world) if move.actor < 0 else workers[move.actor]
    state, emitted = space.messages.delivered(move)
    if len(state.workers) > len(workers):
        workers = (*workers, worker)
    elif len(state.workers) < len(workers):
        workers = (*workers[: move.actor], *workers[move.actor + 1 :])
    sentence = message_sentence(world.messages[message], move, f"worker {worker}", MESSAGES[message])
    return sentence, world._replace(
        messages=_with(world.messages, message, state),
        workers=(*world.workers[:message], workers, *world.workers[message + 1 :]),
        outbox=with_rows(world.outbox, message, emitted),
    )


def _outbox_step(world: NamedWorld, move: OutboxMove) -> tuple[str, NamedWorld]:
    messages = world.messages
    for message, payload in move.arrivals:
        messages = _with(messages, message, messages[message].with_arrival(payload))
    sentence = relay_sentence(move.fact, f"relay {move.lane + 1}")
    return sentence, world._replace(messages=messages, outbox=move.after)


def _free_number(world: NamedWorld) -> int:
    """The number of a worker that has nothing to do."""
    # Two may work at once. The third number words the moves that the bound forbids, on the way to the one that was made.
    return min({1, 2, 3}.difference(*world.workers))


def _with(messages: tuple[MessageState, ...], index: int, state: MessageState) -> tuple[MessageState, ...]:
    return (*messages[:index], state, *messages[index + 1 :])


# Every pair that can occur, except that a fence or the database was lost: TRIES words those.
DOES: Final[Mapping[tuple[type[p.Command], type[p.Event]], str]] = {
    (p.Take, p.Taken): "takes {message}",
    (p.Take, p.Duplicate): "finds {message} done or parked: a duplicate",
    (p.Take, p.InFlight): "finds {message} in another worker's hands",
    (p.Take, p.Conflict): "finds {message} with another payload: a conflict",
    (p.Take, p.OutsideWindow): "finds the id of {message} outside the window, and unseen",
    (p.Intend, p.Intended): "commits the intent of {message}",
    (p.Intend, p.Recorded): "reads the recorded answer of {message}",
    (p.Intend, p.Reopened): "finds that a person began the effect of {message} again",
    (p.Intend, p.Expired): "finds the intent of {message} past the provider's window",
    (p.Call, p.Answered): "calls the provider for {message} and is answered",
    (p.Call, p.Failed): "calls the provider for {message}",
    (p.Call, p.Cancelled): "calls the provider for {message}",
    (p.Call, p.Unreadable): "calls the provider for {message}",
    (p.Call, p.Later): "calls the provider for {message}",
    (p.Call, p.Replayed): "calls the provider for {message} and gets the saved 500",
    (p.LookUp, p.Failed): "looks {message} up at the provider",
    (p.LookUp, p.Unreadable): "looks {message} up at the provider",
    (p.LookUp, p.Answered): "looks {message} up at the provider and finds it",
    (p.LookUp, p.NotFound): "looks {message} up at the provider and does not find it",
    (p.Record, p.Recorded): "has the answer of {message} recorded",
    (p.Record, p.TwoAnswers): "finds another answer of {message} recorded",
    (p.Record, p.AnsweredAfterDiscard): "finds {message} discarded, and cannot record its answer",
    (p.Finish, p.Finishing): "begins the finish of {message}",
    (p.Commit, p.Committed): "commits {message}",
    (p.Commit, p.Ambiguous): "sends COMMIT for {message}",
    (p.Commit, p.Aborted): "sends COMMIT for {message}",
    (p.Commit, p.ForeignCommit): "finds that the transaction of {message} has ended",
    (p.Fail, p.Counted): "counts a failed attempt, or a lost session, of {message}",
    (p.Fail, p.Parked): "counts a failed attempt, or a lost session, of {message} and parks it",
    (p.Park, p.Parked): "parks {message}",
    (p.GiveBack, p.GivenBack): "gives its claim on {message} back, uncounted",
}
TRIES: Final[Mapping[type[p.Command], str]] = {
    p.Take: "take {message}",
    p.Intend: "start the effect of {message}",
    p.Record: "record the answer of {message}",
    p.Finish: "finish {message}",
    p.Commit: "commit {message}",
    p.Fail: "count a failed attempt of {message}",
    p.Park: "park {message}",
    p.GiveBack: "give its claim on {message} back",
}


def message_sentence(before: MessageState, move: MessageMove, worker: str, message: str) -> str:
    """What the move does to this message, in the name of this worker."""
    fact, rows = move.fact, move.after.rows
    if isinstance(fact, Happening):
        return fact.value.format(worker=worker, message=message)
    sentence = f"{worker} {_deed(before, move, fact.command, fact.event).format(message=message)}"
    row = move.after.workers[move.actor].open or rows.inbox
    if isinstance(fact.event, p.Taken) and row is not None:
        sentence += f" (row {row.state}, token {row.token})"
    changed = (new for new, old in zip(rows.parked, before.rows.parked, strict=True) if new is not old)
    reason = next(changed, None)
    if isinstance(fact.event, p.Parked) and reason is not None:
        sentence += f" ({reason.value})"
    if fact.fault is not None:
        sentence += f": {fact.fault.value}"
    return sentence if fact.slip is None else f"{sentence}; its handler {fact.slip.value}"


def _deed(before: MessageState, move: MessageMove, command: p.Command, event: p.Event) -> str:
    if isinstance(event, p.FencedOff):
        return f"may not {TRIES[type(command)]}: it has lost its lease"
    if isinstance(event, p.DatabaseLost):
        return f"tries to {TRIES[type(command)]}"
    intent = move.after.rows.intent
    # A planted bug may leave undone what the event says.
    if isinstance(event, p.Intended) and intent is None:
        return "goes on to the effect of {message} without an intent"
    if isinstance(command, p.Record) and isinstance(event, p.Recorded) and (intent is None or intent.state != "done"):
        return "has the answer of {message}, and does not record it"
    does = DOES[type(command), type(event)]
    if isinstance(command, p.Commit) and before.rules.bug is Bug.ACK_BEFORE_COMMIT:
        return f"acknowledges {{message}} first, then {does}"
    return does


def relay_sentence(fact: Relayed, relay: str) -> str:
    rows = ", ".join(_row_words(position, fate) for position, fate in fact.rows) or "nothing"
    return fact.kind.value.format(relay=relay, rows=rows)


def _row_words(position: int, fate: RowFate | None) -> str:
    what = "the event of" if emitted_of(position) is Emitted.EVENT else "the redriven"
    return f"{what} {MESSAGES[message_of(position)]}{'' if fate is None else f' {fate.value}'}"

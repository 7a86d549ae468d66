"""The protocol of one relay lane, as a pure function: `step(state, event) -> (state, command)`. No I/O.

    idle ─ Take ─▶ taking ─ Publish ─▶ publishing ─ Mark ─▶ marking ─▶ idle

What is deleted is what the sink confirmed, and nothing else. A row that could not be sent waits for its retry and, if it
has a key, holds that key: no later row of the key counts as sent, even if the sink says so (sent twice is harmless,
overtaking is not).
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """What the protocol needs to know of an outbox row."""

    position: int
    key: str | None
    attempts: int = 0


class Take(NamedTuple):
    """Lock a batch."""


class Publish(NamedTuple):
    """Send these rows, in this order, while they are locked."""

    rows: tuple[Row, ...]


class Mark(NamedTuple):
    """Delete the confirmed rows, postpone the failed ones, and commit."""

    confirmed: tuple[int, ...]
    failed: tuple[tuple[Row, str], ...]


class Sleep(NamedTuple):
    """Nothing to do, or nothing can be done: wait for a nudge or for the poll. `failures` in a row lengthen it."""

    failures: int


class Woken(NamedTuple):
    """A nudge came, or it is time to poll."""


class Taken(NamedTuple):
    """These rows are locked (none: there is nothing to send)."""

    rows: tuple[Row, ...]


class Published(NamedTuple):
    """The sink's answer, one per row: None = confirmed, else why not."""

    errors: tuple[str | None, ...]


class Marked(NamedTuple):
    """The batch is committed."""


class SinkLost(NamedTuple):
    """The sink as a whole does not answer; some rows may have been stored."""


class DatabaseLost(NamedTuple):
    """The database does not answer; whatever was locked is free again, and may or may not be deleted."""


Command = Take | Publish | Mark | Sleep
Event = Woken | Taken | Published | Marked | SinkLost | DatabaseLost


class State(NamedTuple):
    """Where one lane is."""

    at: str = "idle"
    rows: tuple[Row, ...] = ()
    failures: int = 0


Step = tuple[State, Command]


def step(state: State, event: Event) -> Step:
    """The next state and what to do, given what happened."""
    if isinstance(event, SinkLost | DatabaseLost):
        # Nothing is marked: what was sent already is sent again, under the same id.
        return State(failures=state.failures + 1), Sleep(state.failures + 1)
    match state.at, event:
        case "idle", Woken():
            return state._replace(at="taking"), Take()
        case "taking", Taken(rows) if rows:
            return state._replace(at="publishing", rows=rows), Publish(rows)
        case "taking", Taken():
            return State(), Sleep(0)
        case "publishing", Published(errors):
            return state._replace(at="marking"), _mark(state.rows, errors)
        case "marking", Marked():
            return State(at="taking"), Take()
    raise AssertionError(f"{event!r} cannot follow in {state!r}")


def _mark(rows: tuple[Row, ...], errors: tuple[str | None, ...]) -> Mark:
    confirmed: list[int] = []
    failed: list[tuple[Row, str]] = []
    held: set[str] = set()
    for row, error in zip(rows, errors, strict=True):
        if row.key is not None and row.key in held:
            continue
        if error is None:
            confirmed.append(row.position)
            continue
        failed.append((row, error))
        if row.key is not None:
            held.add(row.key)
    return Mark(tuple(confirmed), tuple(failed))

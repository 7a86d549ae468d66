"""The protocol of one relay lane, as a pure function: `step`. No I/O.

`step(state, event)` is the next state and a command:

    idle ─ LockBatch ─▶ locking ─ Publish ─▶ publishing ─ CommitBatch ─▶ committing ─▶ idle
                                               └─ Publish ─┘  chunk by chunk

What is deleted is what the sink confirmed, and nothing else. A row that could not be sent waits for its retry and, if it
has a key, holds that key: no later row of the key counts as sent, even if the sink says so (sent twice is harmless,
overtaking is not).

A row that has failed `attempts_max` times is *set aside*: no relay takes it any more, and it holds nothing up, until a
person decides. Where subjects must hold, a row with a key is never set aside; it waits, and its key with it.

A batch goes out in chunks, so that confirmed rows are deleted in time however slow the sink is: the first chunk is one row,
and the following ones are larger or smaller by how long the sink took. When the time of the batch is over, the remaining
rows stay as they are and come with a later batch.

**Who is at fault when the sink is lost?** A sink that is away and a row that ends its connection look the same at first. So
a chunk at which the sink was lost is halved at once, until one row stands alone; then the lane pauses and tries the *other*
rows first. If nothing goes through, the sink is at fault: nothing is postponed, every row keeps its place, and the pauses
grow. If something goes through, the row is tried once more, alone. Only a row at which the sink is lost a second time,
after others went through in between, is at fault: it alone is postponed with its error, and holds its key. A sink that went
away at that very moment costs the row one pause and nothing else. A row that is the only one to be sent is never blamed:
nothing waits behind it, and postponing it would make it late when the sink comes back.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from onceward.protocol.words import Word

CHUNK_SECONDS: Final = 5.0  # what one chunk should take: a crash repeats at most a chunk, and a stop waits for one
CHUNK_BYTES_MAX: Final = 8 * 1024 * 1024  # of payloads in one chunk; a larger row goes alone
# With the default backoff, 11 to 22 hours: a queue that is missing is most often a deploy that is mended the same day.
ATTEMPTS_MAX: Final = 100


class OutboxRow(NamedTuple):
    """What the protocol needs to know of an outbox row."""

    position: int
    key: str | None
    attempts: int = 0
    payload_bytes: int = 0


class Patience(NamedTuple):
    """How often a row may fail before it is set aside; `hold_subjects`: a row with a key never is."""

    attempts_max: int = ATTEMPTS_MAX
    hold_subjects: bool = False


Failures = tuple[tuple[OutboxRow, str], ...]  # rows that could not be sent, each with its error


class LockBatch(Word):
    """Lock a batch of rows that are not at these positions."""

    beside: tuple[int, ...] = ()


class Publish(Word):
    """Send these rows, in this order, while they are locked."""

    rows: tuple[OutboxRow, ...]


class CommitBatch(Word):
    """Delete the confirmed rows, postpone the failed ones or set them aside, and commit.

    Rows that are in none of these are free again, as they were.
    """

    confirmed: tuple[int, ...]
    postponed: Failures
    set_aside: Failures = ()


class Sleep(Word):
    """Nothing can be done now: wait for a nudge or for the poll.

    `failures`: how many there were in a row; each makes the pause longer.
    """

    failures: int


class Woken(Word):
    """A nudge came, or it is time to poll."""


class BatchLocked(Word):
    """These rows are locked (none: there is nothing to send)."""

    rows: tuple[OutboxRow, ...]


class Published(Word):
    """The sink has answered.

    `errors`: one entry per row; None: confirmed, else why not. `late`: the time of the batch is over.
    """

    errors: tuple[str | None, ...]
    seconds: float = 0.0
    late: bool = False


class Stopped(Word):
    """The relay is to stop: the chunk was not sent."""


class BatchCommitted(Word):
    """The batch is committed."""


class SinkLost(Word):
    """The sink gave no answer for this chunk; some of its rows may have been stored."""

    error: str = ""


class DatabaseLost(Word):
    """The database does not answer.

    Locked rows are free again; whether the confirmed ones are deleted is not known.
    """


Command = LockBatch | Publish | CommitBatch | Sleep
Event = Woken | BatchLocked | Published | Stopped | BatchCommitted | SinkLost | DatabaseLost


class Place(Enum):
    """Where a lane is: which event is awaited."""

    IDLE = "idle"
    LOCKING = "locking"
    PUBLISHING = "publishing"
    COMMITTING = "committing"

    __hash__ = object.__hash__  # as in `delivery.Place`


class State(NamedTuple):
    """Where one lane is.

    `rows`: locked and without an answer; the first `chunk` of them are with the sink. `reach`: how many rows the next chunk
    may have. `suspects`: positions at which the sink was lost while they were alone (one more per pause, so a long outage
    may suspect many); `answering`: something went through since the last of these losses.
    """

    patience: Patience = Patience()

    at: Place = Place.IDLE
    rows: tuple[OutboxRow, ...] = ()
    chunk: int = 0
    confirmed: tuple[int, ...] = ()
    failed: Failures = ()
    reach: int = 1
    suspects: tuple[int, ...] = ()
    answering: bool = False
    failures: int = 0


Step = tuple[State, Command]


def step(state: State, event: Event) -> Step:
    """The next state and what to do, given what happened."""
    if isinstance(event, DatabaseLost):
        # Nothing is deleted: what was sent already is sent again, under the same id.
        return _rest(state, state.failures + 1)
    match state.at, event:
        case Place.IDLE, Woken():
            return _lock(state)
        case Place.LOCKING, BatchLocked(rows) if rows:
            return _publish(state._replace(rows=rows, suspects=_still_suspected(state, rows)))
        case Place.LOCKING, BatchLocked():
            return _nothing_locked(state)
        case Place.PUBLISHING, Published(errors, seconds, late):
            return _answered(state, errors, seconds, late=late)
        case Place.PUBLISHING, Stopped():
            return _commit(state)
        case Place.PUBLISHING, SinkLost(error):
            return _commit(_sink_lost(state, error))
        case Place.COMMITTING, BatchCommitted():
            resting, sleep = _rest(state, state.failures)
            return (resting, sleep) if state.failures else _lock(resting)
        case _:
            raise AssertionError(f"{event!r} cannot follow in {state!r}")


def _rest(state: State, failures: int) -> Step:
    """Outside any batch: only what was learned is kept."""
    resting = State(
        patience=state.patience,
        reach=state.reach,
        suspects=state.suspects,
        answering=state.answering,
        failures=failures,
    )
    return resting, Sleep(failures)


def _lock(state: State) -> Step:
    return state._replace(at=Place.LOCKING), LockBatch(_beside(state))


def _beside(state: State) -> tuple[int, ...]:
    """The suspects, which the next batch leaves out until something has gone through."""
    return () if state.answering else state.suspects


def _still_suspected(state: State, rows: tuple[OutboxRow, ...]) -> tuple[int, ...]:
    """The suspects that are still in the outbox and may be this lane's."""
    if _beside(state):
        return state.suspects
    # Nothing was left out of this batch: a suspect that is not in it was sent, or is another lane's.
    positions = {row.position for row in rows}
    return tuple(position for position in state.suspects if position in positions)


def _nothing_locked(state: State) -> Step:
    # Beside the suspects there is nothing to send: the pause goes on growing, and then they themselves are tried again.
    failures = state.failures if _beside(state) else 0
    return State(patience=state.patience, reach=state.reach, failures=failures), Sleep(failures)


def _publish(state: State) -> Step:
    chunk = _chunk(state)
    return state._replace(at=Place.PUBLISHING, chunk=len(chunk)), Publish(chunk)


def _chunk(state: State) -> tuple[OutboxRow, ...]:
    """The next rows, as many as reach and bytes allow; at least one, and a suspect alone."""
    chunk: list[OutboxRow] = []
    payload_bytes = 0
    for row in state.rows[: state.reach]:
        payload_bytes += row.payload_bytes
        suspect = row.position in state.suspects
        if chunk and (suspect or payload_bytes > CHUNK_BYTES_MAX):
            break
        chunk.append(row)
        if suspect:
            break
    return tuple(chunk)


def _answered(state: State, errors: tuple[str | None, ...], seconds: float, *, late: bool) -> Step:
    sent, remaining = state.rows[: state.chunk], state.rows[state.chunk :]
    confirmed, failed, held = _sorted(sent, errors)
    suspects = tuple(position for position in state.suspects if position not in {row.position for row in sent})
    after = state._replace(
        rows=tuple(row for row in remaining if row.key not in held),
        confirmed=state.confirmed + confirmed,
        failed=state.failed + failed,
        reach=_reach(state, seconds),
        suspects=suspects,
        answering=bool(suspects) and (state.answering or bool(confirmed)),
        failures=0,
    )
    return _publish(after) if after.rows and not late else _commit(after)


def _sorted(
    rows: tuple[OutboxRow, ...], errors: tuple[str | None, ...]
) -> tuple[tuple[int, ...], Failures, set[str | None]]:
    """What is confirmed, what has failed, and the keys that are held from now on."""
    confirmed: list[int] = []
    failed: list[tuple[OutboxRow, str]] = []
    held: set[str | None] = set()
    for row, error in zip(rows, errors, strict=True):
        if row.key in held:
            continue  # even if it was confirmed: deleted, it would have overtaken the failed row of its key
        if error is None:
            confirmed.append(row.position)
            continue
        failed.append((row, error))
        held.update(() if row.key is None else (row.key,))
    return tuple(confirmed), tuple(failed), held


def _reach(state: State, seconds: float) -> int:
    """How many rows the next chunk may have, so that it takes `CHUNK_SECONDS` at the most."""
    if seconds > CHUNK_SECONDS:
        return max(1, int(state.chunk * CHUNK_SECONDS / seconds))
    # A chunk that was cut short by its bytes or by a suspect says nothing about a longer one.
    if state.chunk == state.reach and seconds * 2 <= CHUNK_SECONDS:
        return state.reach * 2
    return state.reach


def _sink_lost(state: State, error: str) -> State:
    """Halve the chunk; suspect a row alone; blame a suspect when others went through."""
    row = state.rows[0]
    if state.chunk > 1:
        return state._replace(reach=state.chunk // 2, answering=False)
    suspects = tuple(position for position in state.suspects if position != row.position)
    if state.answering and row.position in state.suspects:
        failed = (*state.failed, (row, error))
        return state._replace(rows=state.rows[1:], failed=failed, suspects=suspects, answering=False, failures=0)
    return state._replace(reach=1, suspects=(*suspects, row.position), answering=False, failures=state.failures + 1)


def _commit(state: State) -> Step:
    postponed = tuple((row, error) for row, error in state.failed if _may_try_again(state.patience, row))
    set_aside = tuple((row, error) for row, error in state.failed if not _may_try_again(state.patience, row))
    return state._replace(at=Place.COMMITTING), CommitBatch(state.confirmed, postponed, set_aside)


def _may_try_again(patience: Patience, row: OutboxRow) -> bool:
    """Whether a row that has just failed waits for another try."""
    if patience.hold_subjects and row.key is not None:
        return True
    return row.attempts + 1 < patience.attempts_max

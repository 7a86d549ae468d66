"""The toy's database: what each command's transaction does to the three rows, in a few lines, written from design.md."""

from __future__ import annotations

from tests.support.toy_world import (
    CALLABLE,
    GONE,
    LIMITS,
    OUTSIDE,
    Intent,
    Outcome,
    Row,
    Rules,
    Worker,
    World,
    put,
    rolled_back,
)

from onceward import protocol as p


def transact(world: World, index: int, worker: Worker, rules: Rules) -> list[Outcome]:
    """What this worker's command does to the rows; nothing, while another's open transaction holds the inbox row."""
    match worker.command:
        case p.Take():
            return _take(world, index, rules)
        case p.Intend():
            return _intend(world, worker, rules)
        case p.Record(_, answer, refused):
            return _record(world, worker, answer, refused, rules)
        case p.Begin():
            return _begin(world, index, worker, rules)
        case p.Commit():
            return _commit(world, index, worker, rules)
        case p.Fail() | p.Park() | p.Yield():
            return _write_outcome(rolled_back(world, index), worker, rules)
    raise AssertionError(f"the toy cannot do {worker.command!r}")


def _in_database(before: World, after: World, event: p.Event) -> list[Outcome]:
    """One transaction: it did it; the database was lost before; or it did it, and the reply was lost."""
    lost: list[Outcome] = [("no database", before, p.DatabaseLost())]
    reply_lost: list[Outcome] = [("no reply", after, p.DatabaseLost())] if after != before else []
    return [("", after, event), *lost, *reply_lost]


def _take(world: World, index: int, rules: Rules) -> list[Outcome]:
    row, effectful = world.row, rules.shape == "effectful"
    if row is None:
        if world.age == OUTSIDE:
            return _in_database(world, world, p.OutsideWindow())
        if world.open:
            return _in_database(world, world, p.InFlight(1.0))
        return _taken(world, index, Row("pending" if effectful else "done"), p.Taken(1, True, 1))
    if row.state != "pending" or rules.zero_rows_skip:
        return _in_database(world, world, p.Duplicate())
    if not row.lapsed or world.open:
        return _in_database(world, world, p.InFlight(1.0))
    mine = row._replace(state="pending" if effectful else "done", token=row.token + 1, lapsed=False)
    return _taken(world, index, mine, p.Taken(mine.token, False, mine.token - mine.forgiven))


def _taken(world: World, index: int, row: Row, event: p.Taken) -> list[Outcome]:
    if row.state == "pending":
        return _in_database(world, world._replace(row=row), event)
    return [("", world._replace(open=(index, row)), event), ("no database", world, p.DatabaseLost())]


def _mine(world: World, worker: Worker, rules: Rules) -> bool:
    """The fence: state and token."""
    if world.row is None or rules.fence == "nothing":
        return world.row is not None
    return world.row.state == "pending" and (rules.fence == "state" or world.row.token == _token(worker, rules))


def _token(worker: Worker, rules: Rules) -> int:
    """A transactional worker that took over holds, once it is rolled back, only what was there before."""
    return worker.state.token - (rules.shape == "transactional")


def _audited(world: World, worker: Worker, rules: Rules) -> World:
    """Called where a worker changes the row as its holder."""
    trespassing = world.row is not None and world.row.token != _token(worker, rules)
    return world._replace(trespassed=True) if trespassing else world


def _intend(world: World, worker: Worker, rules: Rules) -> list[Outcome]:
    if world.open:
        return []
    intent = world.intent
    if not _mine(world, worker, rules) or (world.row is not None and world.row.lapsed):
        return _in_database(world, world, p.Lost())
    if intent is None:
        return _in_database(world, world._replace(intent=Intent()), p.Intended())
    if intent.state == "done":
        return _in_database(world, world, p.Recorded(intent.answer, intent.refused))
    callable_ = intent.state == "pending" and world.age == CALLABLE
    return _in_database(world, world, p.Intended() if callable_ else p.Expired())


def _record(world: World, worker: Worker, answer: str, refused: bool, rules: Rules) -> list[Outcome]:
    intent = world.intent
    assert intent is not None
    if rules.record_fenced and not _mine(world, worker, rules):
        return [("", world._replace(told=True), p.Recorded(answer, refused))]
    if intent.state != "done":
        after = world._replace(intent=Intent("done", answer, refused))
        told = after._replace(told=True)
        return [("", told, p.Recorded(answer, refused)), *_in_database(world, after, p.DatabaseLost())[1:]]
    if (intent.answer, intent.refused) == (answer, refused):
        return _in_database(world, world, p.Recorded(answer, refused))
    return _in_database(world, world, p.TwoAnswers(f"{intent.answer} and {answer}"))


def _begin(world: World, index: int, worker: Worker, rules: Rules) -> list[Outcome]:
    if world.open:
        return []
    if not _mine(world, worker, rules):
        return _in_database(world, world, p.Lost())
    assert world.row is not None
    opened = _audited(world, worker, rules)._replace(open=(index, world.row._replace(state="done", lapsed=False)))
    count = 0 if world.intent is None else 1
    begun = p.Begun(count, 0 if world.intent is None or world.intent.state == "done" else 1)
    return [("", opened, begun), ("no database", world, p.DatabaseLost())]


def _commit(world: World, index: int, worker: Worker, rules: Rules) -> list[Outcome]:
    assert world.open is not None
    assert world.open[0] == index
    row = world.open[1]
    back = rolled_back(world if not rules.ack_before_commit else put(world, worker.copy, GONE), index)
    done = back._replace(row=row, writes=world.writes + 1)
    return [
        ("", done, p.Committed()),
        ("no reply", done, p.Ambiguous()),
        ("no reply, nothing done", back, p.Ambiguous()),
        ("no database", back, p.DatabaseLost()),
        ("a swallowed database error", back, p.Aborted()),
        ("the handler committed", done, p.ForeignCommit()),
        ("the handler rolled back", back, p.ForeignCommit()),
    ]


# ---- fail, park, yield -----------------------------------------------------------------------------------------------


def _write_outcome(world: World, worker: Worker, rules: Rules) -> list[Outcome]:
    """One transaction, after whatever was open is rolled back."""
    match worker.command:
        case p.Park(reason, fence="beside"):
            return _in_database(world, world._replace(parked=reason), p.Parked())
        case p.Park(reason, fence="absent"):
            absent = world._replace(parked=reason) if world.row is None else world
            return _in_database(world, absent, p.Parked() if world.row is None else p.Lost())
    if world.open:
        return []
    match worker.command:
        case p.Park(reason, fence="holder or beside"):
            beside = _parked(world, worker, reason, rules) or world._replace(parked=reason)
            return _in_database(world, beside, p.Parked())
        case p.Park(reason, fence="foreign commit"):
            return _in_database(world, _park_foreign(world, worker, reason), p.Parked())
        case p.Park(reason):
            held = _parked(world, worker, reason, rules)
            return _in_database(world, held or world, p.Parked() if held else p.Lost())
        case p.Fail():
            return _fail(world, worker, rules)
    if _mine(world, worker, rules):
        return _in_database(world, _given_back(_audited(world, worker, rules)), p.Yielded())
    return _in_database(world, world, p.Lost())


def _fail(world: World, worker: Worker, rules: Rules) -> list[Outcome]:
    fresh = rules.shape == "transactional" and worker.state.fresh
    if world.row is not None if fresh else not _mine(world, worker, rules):
        return _in_database(world, world, p.Lost())
    after = world if fresh else _given_back(_audited(world, worker, rules))
    after = after._replace(attempts=world.attempts + 1)
    if rules.failed_row_stays:
        after = after._replace(row=Row("done"))
    if after.attempts < LIMITS.attempts_max:
        return _in_database(world, after, p.Counted(1.0))
    parked = _parked(after, worker, "attempts ran out", rules)
    return _in_database(world, parked or world, p.Parked() if parked else p.Lost())


def _parked(world: World, worker: Worker, reason: str, rules: Rules) -> World | None:
    """Parked under the fence of whoever holds the message; None: lost."""
    intent = world.intent
    if rules.shape == "transactional" and worker.state.fresh:
        return world._replace(row=Row("parked"), parked=reason) if world.row is None else None
    if not _mine(world, worker, rules):
        return None
    if reason == "unknown" and intent is not None and intent.state == "pending":
        world = world._replace(intent=intent._replace(state="unknown"))
    assert world.row is not None
    row = world.row._replace(state="parked", lapsed=False)
    return _audited(world, worker, rules)._replace(row=row, parked=reason)


def _park_foreign(world: World, worker: Worker, reason: str) -> World:
    """What the handler committed is parked from done; what it rolled back, from whatever it was before the take."""
    row, token = world.row, worker.state.token
    if row is None or row.token == token or (row.token == token - 1 and row.state == "pending"):
        row = (row or Row("parked"))._replace(state="parked", lapsed=False)
    return world._replace(row=row, parked=reason)


def _given_back(world: World) -> World:
    assert world.row is not None
    return world._replace(row=world.row._replace(lapsed=True, forgiven=world.row.forgiven + 1))

"""One double charge, step by step: which order to show, and what its moments mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from onceward_proof.prove.faults import is_kill
from onceward_proof.prove.moments import ACKED, FAULTS, Kind, Moment
from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import Schedule

# What a step means to the reader; the page's stylesheet knows each by this name.
Meaning = Literal["plain", "fault", "charge", "second", "again", "kept", "back"]
Ending = Literal["acked", "back", "killed", "loose"]

CLASSIC: Final = ("slow-charge", "kill-after-charge")  # the incidents that everybody has had, in this order
_RANKS: Final = {"hardened": 0, "naive": 1}  # whose double charge is shown before all others, and what is set beside it
LONG_SECONDS: Final = 1.0  # one message held for so long is worth a word
_MEANINGS: Final[dict[Kind, Meaning]] = {
    **dict.fromkeys(FAULTS, "fault"),
    **dict.fromkeys((Kind.REPLAYED, Kind.DUPLICATE, Kind.IN_FLIGHT, Kind.EXTENDED), "kept"),
    Kind.GIVEN_BACK: "back",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One moment of the order, `seconds` after its first, and what it means."""

    moment: Moment
    meaning: Meaning
    note: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """A worker had the message `message_type` in hand from `begin` to `end`."""

    worker: str
    message_type: str
    begin: float
    end: float
    ending: Ending


@dataclass(frozen=True, slots=True)
class Course:
    """What happened to the order in one variant."""

    variant: str
    steps: tuple[Step, ...]
    holds: tuple[Hold, ...]

    @property
    def charges(self) -> tuple[str, ...]:
        return tuple(step.moment.charge for step in self.steps if step.moment.charge)

    @property
    def deliveries(self) -> int:
        return sum(hold.message_type == "order.placed" for hold in self.holds)

    @property
    def outcome(self) -> str:
        """One sentence: how often it was charged, and how often it was delivered."""
        if not self.steps:
            return "Nothing was recorded of this order in this variant."
        charged = _times(len(self.charges), "Charged", "Never charged")
        delivered = _times(self.deliveries, "delivered to a consumer", "never delivered to a consumer")
        longest = max((h.end - h.begin for h in self.holds if h.message_type == "order.placed"), default=0.0)
        kept = f": its worker kept the message for {longest:.1f} s, and no other worker received it"
        return f"{charged}; {delivered}{kept if self.deliveries == 1 and longest >= LONG_SECONDS else ''}."


@dataclass(frozen=True, slots=True)
class Story:
    """The order that is shown: first in the variant that charged it twice, and beside it in another, if there is one."""

    order: str
    amount: int
    faults: tuple[str, ...]
    courses: tuple[Course, ...]

    @property
    def doubled(self) -> Course:
        return self.courses[0]


def _times(count: int, what: str, never: str) -> str:
    if not count:
        return never
    return f"{what} {({1: 'once', 2: 'twice'}).get(count, f'{count} times')}"


def choose_story(schedule: Schedule, results: Sequence[Result]) -> Story | None:
    """The double charge that is easiest to understand; None when none was seen.

    A double charge of `hardened` comes before all others: that is what its reader must look at.
    """
    ranked = sorted(results, key=lambda result: _RANKS.get(result.variant, len(_RANKS)))
    doubled = next((result for result in ranked if result.verdict.double_charged), None)
    if doubled is None:
        return None
    beside = next((other for other in ranked if other is not doubled), None)
    shown = [doubled] if beside is None else [doubled, beside]
    amounts = {order.id: order.amount for order in schedule.orders}
    faults = schedule.faults_by_order()
    stories = [
        Story(
            order=order,
            amount=amounts.get(order, 0),
            faults=faults.get(order, ()),
            courses=tuple(follow(result, order) for result in shown),
        )
        for order in doubled.verdict.double_charged
    ]
    seen = [story for story in stories if len(story.doubled.charges) > 1]
    clean = [story for story in seen if beside is None or story.order not in beside.verdict.harmed]
    return min(clean or seen, key=_rank, default=None)


def _rank(story: Story) -> tuple[int | float | str, ...]:
    """Smaller is easier to understand."""
    # One fault, and nothing that it does not explain; an incident that readers know; two charges; a refusal that shows.
    fault = story.faults[0] if story.faults else ""
    return (
        len(story.faults) != 1,
        sum(any(step.moment.fault not in {*story.faults, ""} for step in course.steps) for course in story.courses),
        any(hold.ending == "loose" for course in story.courses for hold in course.holds),
        CLASSIC.index(fault) if fault in CLASSIC else len(CLASSIC),
        len(story.doubled.charges),
        not any(step.meaning == "kept" for step in story.courses[-1].steps),
        sum(len(course.steps) for course in story.courses),
        story.order,
    )


def follow(result: Result, order: str) -> Course:
    """This order's moments, in order of time, each with its meaning."""
    moments = sorted(result.moments.get(order, ()), key=lambda moment: moment.seconds)
    zero = moments[0].seconds if moments else 0.0
    timed = [replace(moment, seconds=moment.seconds - zero) for moment in moments]
    booked_twice = order in result.verdict.doubled_writes
    return Course(result.variant, tuple(_steps(timed, booked_twice=booked_twice)), tuple(_holds(timed)))


def _steps(moments: Sequence[Moment], *, booked_twice: bool) -> Iterator[Step]:
    charges = bookings = 0
    for moment in moments:
        charges += moment.kind is Kind.CHARGED
        booked = moment.kind is Kind.FINISHED and moment.message_type == "order.paid"
        bookings += booked
        if moment.kind is Kind.CHARGED:
            note = "" if charges == 1 else f"charge number {charges} for one order"
            yield Step(moment, "charge" if charges == 1 else "second", note)
        elif booked and bookings > 1 and booked_twice:
            yield Step(moment, "again", "the money is booked once more")
        else:
            note = "the same idempotency key: no new charge" if moment.kind is Kind.REPLAYED else ""
            yield Step(moment, _MEANINGS.get(moment.kind, "plain"), note)


def _holds(moments: Sequence[Moment]) -> list[Hold]:
    """Who had which message in hand, from when to when; an end that nobody saw is loose."""
    begun: dict[tuple[str, str], float] = {}
    holds: list[Hold] = []

    def end(worker: str, message_type: str, seconds: float, ending: Ending) -> None:
        begin = begun.pop((worker, message_type), None)
        if begin is not None:
            holds.append(Hold(worker, message_type, begin, seconds, ending))

    for moment in moments:
        worker, message_type, seconds = moment.who, moment.message_type, moment.seconds
        if moment.kind is Kind.RECEIVED:
            # The same worker receives the message again: it never settled the first delivery.
            end(worker, message_type, seconds, "loose")
            begun[worker, message_type] = seconds
        elif moment.kind in ACKED:
            end(worker, message_type, seconds, "acked")
        elif moment.kind is Kind.GIVEN_BACK:
            end(worker, message_type, seconds, "back")
        elif is_kill(moment.fault):
            for _, held_type in [key for key in begun if key[0] == worker]:
                end(worker, held_type, seconds, "killed")
    for worker, message_type in list(begun):
        end(worker, message_type, moments[-1].seconds, "loose")
    return sorted(holds, key=lambda hold: hold.begin)

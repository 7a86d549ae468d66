"""One double charge, told step by step: which order to tell, and what each of its moments means.

The words of the moments are the controller's; what they mean here is read from them here alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from onceward_proof.control import Moment
from onceward_proof.run import Result
from onceward_proof.schedule import Schedule

Kind = Literal["plain", "fault", "charge", "second", "again", "kept", "back"]
Ending = Literal["acked", "back", "killed", "loose"]

CLASSIC: Final = ("slow-charge", "kill-after-charge")  # the incidents that everybody has had, in this order
LONG_SECONDS: Final = 1.0  # to hold one message so long is worth a word
CHARGE: Final = re.compile(r"^charges the card: (?P<id>\S+)$")
_KEPT: Final = re.compile(r"replays its saved answer|turned away|turns away|already done|lease|not called again")
_BACK: Final = re.compile(r"^gives (?P<type>\S+) back")
_RECEIVES: Final = re.compile(r"^receives (?P<type>\S+)(?P<again> again)?$")
_ACKS: Final = re.compile(r"acknowledges (?:the duplicate of |the duplicate )?(?P<type>\S+)$")
_BOOKED: Final = re.compile(r"^has committed the booking")
_STRUCK: Final = re.compile(r"^(?P<fault>[a-z-]+): (?P<story>.*) \((?P<victim>[^()]*)\)$")


@dataclass(frozen=True, slots=True)
class Step:
    """One moment of the order, `seconds` after its first. `charge` is the charge's id where one was made."""

    seconds: float
    who: str
    what: str
    kind: Kind
    note: str = ""
    charge: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """A worker had the message `message_type` in hand from `begin` to `end`."""

    worker: str
    message_type: str
    begin: float
    end: float
    ending: Ending


@dataclass(frozen=True, slots=True)
class Told:
    """What happened to the order in one variant."""

    variant: str
    steps: tuple[Step, ...]
    holds: tuple[Hold, ...]

    @property
    def charges(self) -> tuple[str, ...]:
        return tuple(step.charge for step in self.steps if step.charge)

    @property
    def deliveries(self) -> int:
        return sum(hold.message_type == "order.placed" for hold in self.holds)

    @property
    def loose_ends(self) -> int:
        return sum(hold.ending == "loose" for hold in self.holds)

    @property
    def outcome(self) -> str:
        """One sentence: how often it was charged, and how often it was delivered."""
        if not self.steps:
            return "Nothing was recorded of this order in this variant."
        charged = _times(len(self.charges), "Charged", "Never charged")
        delivered = _times(self.deliveries, "delivered to a consumer", "never delivered to a consumer")
        held = max((h.end - h.begin for h in self.holds if h.message_type == "order.placed"), default=0.0)
        kept = f": its worker kept the message for {held:.1f} s, nobody else was given it"
        return f"{charged}; {delivered}{kept if self.deliveries == 1 and held >= LONG_SECONDS else ''}."


@dataclass(frozen=True, slots=True)
class Story:
    """The order that is told: in the variant that charged it twice, and beside it in another, if there is one."""

    order: str
    amount: int
    faults: tuple[str, ...]
    doubled: Told
    beside: Told | None


def _times(count: int, what: str, never: str) -> str:
    if not count:
        return never
    return f"{what} {({1: 'once', 2: 'twice'}).get(count, f'{count} times')}"


# ---- choosing --------------------------------------------------------------------------------------------------------


def choose_story(schedule: Schedule, results: Sequence[Result]) -> Story | None:
    """The double charge that is easiest to understand; None when there is none whose charges were seen.

    A double charge of `hardened` comes before all others: that is what its reader must look at.
    """
    pair = _pair(results)
    if pair is None:
        return None
    doubled, beside = pair
    amounts = {order.id: order.amount for order in schedule.orders}
    faults = faults_by_order(schedule)
    stories = [
        Story(
            order=order,
            amount=amounts.get(order, 0),
            faults=faults.get(order, ()),
            doubled=tell(doubled, order),
            beside=tell(beside, order) if beside is not None else None,
        )
        for order in doubled.verdict.double_charged
    ]
    seen = [story for story in stories if len(story.doubled.charges) > 1]
    clean = [story for story in seen if beside is None or story.order not in harmed(beside)]
    return min(clean or seen, key=_rank, default=None)


def _pair(results: Sequence[Result]) -> tuple[Result, Result | None] | None:
    """The variant whose double charge is told, and the one to set beside it."""
    by_name = {result.variant: result for result in results}
    first = [by_name[name] for name in ("hardened", "naive") if name in by_name]
    for result in [*first, *results]:
        if result.verdict.double_charged:
            others = [each for each in [*first, *results] if each is not result]
            return result, others[0] if others else None
    return None


def _rank(story: Story) -> tuple[int | float | str, ...]:
    """Smaller is easier to understand: one fault, nothing unexplained, a classic, two charges, a visible refusal."""
    told = (story.doubled, *([story.beside] if story.beside else []))
    fault = story.faults[0] if story.faults else ""
    return (
        len(story.faults) != 1,
        sum(any(step.fault not in {*story.faults, ""} for step in each.steps) for each in told),
        sum(each.loose_ends for each in told) > 0,
        CLASSIC.index(fault) if fault in CLASSIC else len(CLASSIC),
        len(story.doubled.charges),
        not any(step.kind == "kept" for step in told[-1].steps),
        sum(len(each.steps) for each in told),
        story.order,
    )


def faults_by_order(schedule: Schedule) -> Mapping[str, tuple[str, ...]]:
    found: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
    for entry in schedule.aimed:
        found[entry.order] += (entry.fault,)
    return found


def harmed(result: Result) -> frozenset[str]:
    """Every order that this variant doubled, lost or booked wrongly."""
    verdict = result.verdict
    return frozenset({*verdict.double_charged, *verdict.lost, *verdict.doubled_writes, *verdict.wrong_charge})


# ---- telling ---------------------------------------------------------------------------------------------------------


def tell(result: Result, order: str) -> Told:
    """This order's moments, in order of time, each with its meaning."""
    moments = sorted(result.moments.get(order, ()), key=lambda moment: moment.seconds)
    zero = moments[0].seconds if moments else 0.0
    timed = [Moment(moment.seconds - zero, moment.who, moment.what) for moment in moments]
    booked_twice = order in result.verdict.doubled_writes
    return Told(result.variant, tuple(_steps(timed, booked_twice=booked_twice)), tuple(_holds(timed)))


def _steps(moments: Sequence[Moment], *, booked_twice: bool) -> Iterator[Step]:
    charges = bookings = 0
    for moment in moments:
        seconds, who, what = moment
        charge, struck = CHARGE.match(what), _STRUCK.match(what)
        bookings += bool(_BOOKED.match(what))
        if charge:
            charges += 1
            yield _charge(moment, charge["id"], charges)
        elif who == "fault":
            yield Step(seconds, who, what, "fault", fault=struck["fault"] if struck else "")
        elif _KEPT.search(what):
            note = "the same idempotency key: no new charge" if what.startswith("replays") else ""
            yield Step(seconds, who, what, "kept", note)
        elif _BACK.match(what):
            yield Step(seconds, who, what, "back")
        elif _BOOKED.match(what) and bookings > 1 and booked_twice:
            yield Step(seconds, who, what, "again", "the money is booked once more")
        else:
            yield Step(seconds, who, what, "plain")


def _charge(moment: Moment, charge: str, number: int) -> Step:
    kind: Kind = "charge" if number == 1 else "second"
    note = "" if number == 1 else f"charge number {number} for one order"
    return Step(moment.seconds, moment.who, "charges the card", kind, note, charge)


def _holds(moments: Sequence[Moment]) -> list[Hold]:
    """Who had which message in hand, from when to when; an end that nobody saw is loose."""
    held: dict[tuple[str, str], float] = {}
    found: list[Hold] = []

    def end(worker: str, message_type: str, seconds: float, ending: Ending) -> None:
        begin = held.pop((worker, message_type), None)
        if begin is not None:
            found.append(Hold(worker, message_type, begin, seconds, ending))

    for seconds, who, what in moments:
        if match := _RECEIVES.match(what):
            end(who, match["type"], seconds, "loose")
            held[who, match["type"]] = seconds
        elif match := _ACKS.search(what):
            end(who, match["type"], seconds, "acked")
        elif match := _BACK.match(what):
            end(who, match["type"], seconds, "back")
        elif (match := _STRUCK.match(what)) and who == "fault" and match["fault"].startswith("kill"):
            for worker, message_type in [key for key in held if key[0] == match["victim"]]:
                end(worker, message_type, seconds, "killed")
    for worker, message_type in list(held):
        end(worker, message_type, moments[-1].seconds, "loose")
    return sorted(found, key=lambda hold: hold.begin)

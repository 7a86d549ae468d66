"""The lanes of one order: who had its message when, and what the provider did."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from onceward_proof.prove.moments import PROVIDER
from onceward_proof.report.pages.picture import ticks
from onceward_proof.report.pages.story import Course, Step, Story

WIDTH: Final = 400.0
NAMES_WIDTH: Final = 66.0
LANE_HEIGHT: Final = 46.0
FIRST_LANE: Final = 34.0
SPANS_SHOWN: Final = 1.5  # the scale goes on behind the last moment, whose words stand there
SPANS_BEFORE: Final = 0.06
WAIT_SPANS_MIN: Final = 0.12  # a shorter wait has no room for its seconds


def lanes_of(story: Story) -> list[Lanes]:
    """Both variants on the same scale of time."""
    lanes = [Lanes(course) for course in story.courses if course.steps]
    span = max((each.end - each.begin for each in lanes), default=0.0) or 1.0
    for each in lanes:
        each.span = span
    return lanes


class Lanes:
    """One variant: a lane per worker in order of appearance, and the provider's below them.

    All lengths are SVG units. Only what concerns the charge is drawn; the rest of the order's way is in the list below
    the picture.
    """

    def __init__(self, course: Course) -> None:
        self.course = course
        self.span = 1.0
        self.holds = [hold for hold in course.holds if hold.message_type == "order.placed"]
        self.begin = min((hold.begin for hold in self.holds), default=course.steps[0].moment.seconds)
        self.end = max((hold.end for hold in self.holds), default=course.steps[-1].moment.seconds)
        names = [*dict.fromkeys(hold.worker for hold in self.holds), PROVIDER]
        self.lanes = {name: FIRST_LANE + LANE_HEIGHT * number for number, name in enumerate(names)}
        self.left, self.width = NAMES_WIDTH, WIDTH

    def x(self, seconds: float) -> float:
        scale = (WIDTH - NAMES_WIDTH) / (self.span * SPANS_SHOWN)
        return round(NAMES_WIDTH + scale * (seconds - self.begin + SPANS_BEFORE * self.span), 1)

    def seconds(self) -> list[float]:
        begin = self.begin - SPANS_BEFORE * self.span
        return ticks(begin, begin + self.span * SPANS_SHOWN, 5)

    def waits(self) -> Iterator[tuple[float, float, float]]:
        """Begin, end and lane of each time when the queue hides the message and no worker has it."""
        for hold, following in pairwise(self.holds):
            if following.begin - hold.end > self.span * WAIT_SPANS_MIN:
                yield hold.end, following.begin, self.lanes[hold.worker]

    def marks(self) -> Iterator[tuple[Step, float]]:
        """The steps, each with the lane of the worker that it concerns."""
        # The provider answers the worker that acted last.
        lane = min(self.lanes.values())
        for step in self.course.steps:
            if step.moment.who != PROVIDER:
                lane = self.lanes.get(step.moment.who, lane)
            yield step, lane

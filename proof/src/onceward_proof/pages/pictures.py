"""The pictures of the reports: bars, the lanes of one order, outcomes, lines over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from onceward_proof.pages.canvas import (
    BAD,
    GOOD,
    HELD,
    HOLD,
    INK,
    LINE,
    MUTED,
    NARROW_INCHES,
    PAPER,
    WARN,
    WIDE_INCHES,
    Picture,
    settings,
    to_svg,
)
from onceward_proof.pages.story import Hold, Step, Story, Told


@dataclass(frozen=True, slots=True)
class Harm:
    """One kind of harm, counted in each variant."""

    name: str
    counts: tuple[tuple[str, int], ...]  # variant, count


# ---- bars ------------------------------------------------------------------------------------------------------------


def draw_bars(harms: Sequence[Harm], title: str) -> Picture:
    """One bar per variant and kind of harm, all on one scale; nothing is a green nought."""
    with settings():
        wide, narrow = _bars(harms, columns=2), _bars(harms, columns=1)
        return Picture(to_svg(wide, "bars-wide", title), to_svg(narrow, "bars-narrow", title))


def _bars(harms: Sequence[Harm], columns: int) -> Figure:
    most = max((count for harm in harms for _, count in harm.counts), default=0) or 1
    rows = -(-len(harms) // columns)
    height = 0.36 + 0.24 * max((len(harm.counts) for harm in harms), default=1)
    figure = Figure(
        figsize=(WIDE_INCHES if columns > 1 else NARROW_INCHES, max(rows, 1) * height + 0.05), layout="constrained"
    )
    for index, harm in enumerate(harms):
        _bar_group(figure.add_subplot(rows, columns, index + 1), harm, most)
    return figure


def _bar_group(axes: Axes, harm: Harm, most: int) -> None:
    axes.set_title(harm.name, loc="left", fontsize=9.5, fontweight="bold", pad=3)
    for row, (_, count) in enumerate(harm.counts):
        axes.barh(row, count, height=0.62, color=BAD)
        colour = BAD if count else GOOD
        axes.text(count + most * 0.015, row, f"{count:,}", va="center", ha="left", color=colour, fontweight="bold")
    axes.set_yticks(range(len(harm.counts)), [variant for variant, _ in harm.counts])
    axes.set_ylim(len(harm.counts) - 0.5, -0.5)
    axes.set_xlim(0, most * 1.16)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


# ---- lanes -----------------------------------------------------------------------------------------------------------


def draw_lanes(story: Story, title: str) -> Picture:
    """Who had the message in hand when, and what the provider did, in both variants on the same scale of time."""
    told = [each for each in (story.doubled, story.beside) if each is not None and each.steps]
    with settings():
        wide, narrow = _lanes(told, beside=True), _lanes(told, beside=False)
        return Picture(to_svg(wide, "lanes-wide", title), to_svg(narrow, "lanes-narrow", title))


def _lanes(told: Sequence[Told], *, beside: bool) -> Figure:
    lanes = [_workers(each) for each in told]
    counts = [len(workers) + 1 for workers in lanes]
    if beside:
        counts = [max(counts, default=1)] * len(counts)
    span = max((_end(each) - _begin(each) for each in told), default=1.0) or 1.0
    heights = [0.75 + 0.52 * count for count in counts]
    if beside:
        figure = Figure(figsize=(WIDE_INCHES, max(heights, default=1.0)), layout="constrained")
        grid = figure.add_gridspec(1, max(len(told), 1))
    else:
        figure = Figure(figsize=(NARROW_INCHES, sum(heights) or 1.0), layout="constrained")
        grid = figure.add_gridspec(max(len(told), 1), 1, height_ratios=heights or [1.0])
    for index, (each, workers) in enumerate(zip(told, lanes, strict=True)):
        _lane_picture(figure.add_subplot(grid[index]), each, workers, span, counts[index])
    return figure


def _workers(told: Told) -> list[str]:
    return list(dict.fromkeys(hold.worker for hold in _shown(told)))


def _shown(told: Told) -> list[Hold]:
    """What concerns the charge; the rest of the way is in the list below the picture."""
    return [hold for hold in told.holds if hold.message_type == "order.placed"]


def _begin(told: Told) -> float:
    return min((hold.begin for hold in _shown(told)), default=told.steps[0].seconds)


def _end(told: Told) -> float:
    return max((hold.end for hold in _shown(told)), default=told.steps[-1].seconds)


def _lane_picture(axes: Axes, told: Told, workers: Sequence[str], span: float, count: int) -> None:
    """Lanes from the top: the workers in order of appearance, then the provider."""
    begin, provider = _begin(told), len(workers)
    charged = len(told.charges)
    saying = f"{told.variant}: {charged} charge{'' if charged == 1 else 's'}"
    axes.set_title(saying, loc="left", fontsize=10, fontweight="bold", color=GOOD if charged < 2 else BAD, pad=6)
    axes.set_xlim(begin - span * 0.06, begin + span * 1.44)
    axes.set_ylim(count - 0.5, -0.72)
    axes.set_yticks(range(provider + 1), [*workers, "provider"])
    axes.hlines(range(provider + 1), *axes.get_xlim(), color=LINE, linewidth=0.8, zorder=0)
    holds = _shown(told)
    for hold, following in zip(holds, [*holds[1:], None], strict=True):
        _draw_hold(axes, hold, workers.index(hold.worker), span)
        if following is not None and following.begin - hold.end > span * 0.12:
            _draw_wait(axes, hold.end, following.begin, workers.index(hold.worker))
    asker = 0
    for step in told.steps:
        asker = workers.index(step.who) if step.who in workers else asker
        _draw_step(axes, step, asker, provider, span)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:.0f} s"))
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


_ENDINGS: Final = {"acked": "acked", "back": "given back", "killed": "", "loose": ""}


def _draw_hold(axes: Axes, hold: Hold, row: int, span: float) -> None:
    width = max(hold.end - hold.begin, span * 0.012)
    open_end = hold.ending in {"killed", "loose"}
    axes.barh(
        row, width, left=hold.begin, height=0.3, color=HOLD, edgecolor=MUTED, linewidth=0.6,
        linestyle="--" if open_end else "-", zorder=1,
    )  # fmt: skip
    axes.text(hold.begin + width + span * 0.02, row, _ENDINGS[hold.ending], va="center", fontsize=8, color=MUTED, zorder=4)


def _draw_wait(axes: Axes, begin: float, end: float, row: int) -> None:
    """Nobody has the message: the queue hides it until its visibility timeout is over."""
    axes.hlines(row, begin, end, color=MUTED, linewidth=1.1, linestyle=":", zorder=1)
    axes.text((begin + end) / 2, row + 0.25, f"{end - begin:.1f} s", ha="center", fontsize=8, color=MUTED, zorder=4)


def _draw_step(axes: Axes, step: Step, asker: int, provider: int, span: float) -> None:
    x, right = step.seconds, step.seconds + span * 0.025
    if step.kind in {"charge", "second"}:
        colour, label = (INK, "charged") if step.kind == "charge" else (BAD, "charged again")
        axes.vlines(x, asker, provider, color=colour, linewidth=1.1, zorder=2)
        axes.plot([x], [provider], marker="o", markersize=8, color=colour, zorder=3)
        weight = "bold" if step.kind == "second" else "normal"
        axes.text(right, provider - 0.28, label, fontsize=8.5, color=colour, fontweight=weight, zorder=4)
    elif step.kind == "kept" and step.who == "provider":
        axes.vlines(x, asker, provider, color=GOOD, linewidth=1.1, linestyle=":", zorder=2)
        axes.plot([x], [provider], marker="D", markersize=6.5, markerfacecolor=PAPER, color=GOOD, zorder=3)
        axes.text(right, provider - 0.28, "saved answer", fontsize=8.5, color=GOOD, zorder=4)
    elif step.kind == "fault":
        axes.plot([x], [asker], marker="X", markersize=9, color=WARN, markeredgecolor=PAPER, markeredgewidth=0.8, zorder=5)
        axes.text(x, asker - 0.27, step.fault or "woken", fontsize=8.5, color=WARN, fontweight="bold", zorder=4)


# ---- outcomes --------------------------------------------------------------------------------------------------------

OUTCOMES: Final = (  # the worst first: an order has the worst that happened to it
    ("charged twice", BAD),
    ("lost", INK),
    ("booked twice", WARN),
    ("held", HELD),
    ("paid once", GOOD),
)


@dataclass(frozen=True, slots=True)
class Tiles:
    """One row of the outcome picture: per column, how many orders had each outcome (in the order of OUTCOMES)."""

    name: str
    cells: tuple[tuple[int, ...], ...]


def draw_outcomes(rows: Sequence[Tiles], columns: Sequence[str], title: str) -> Picture:
    """A bar per row and column, filled by what became of its orders: at a glance, which fault hurts whom, and how."""
    with settings():
        wide, narrow = _tiles(rows, columns, beside=True), _tiles(rows, columns, beside=False)
        return Picture(to_svg(wide, "outcomes-wide", title), to_svg(narrow, "outcomes-narrow", title))


def _tiles(rows: Sequence[Tiles], columns: Sequence[str], *, beside: bool) -> Figure:
    """`beside`: a row's name stands left of its bars; else above them."""
    step = 0.24 if beside else 0.36
    head = _head(columns, beside=beside)
    size = (WIDE_INCHES if beside else NARROW_INCHES, head + 0.3 + step * len(rows))
    figure = Figure(figsize=size)
    left = 2.1 / WIDE_INCHES if beside else 0.0
    axes = figure.add_axes((left, 0.3 / size[1], 1 - left, 1 - (head + 0.3) / size[1]))
    axes.set_xlim(0, max(len(columns), 1))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axis("off")
    for y, row in enumerate(rows):
        if beside:
            axes.text(-0.06, y, row.name, ha="right", va="center", fontsize=9)
        else:
            axes.text(0, y - 0.28, row.name, ha="left", va="center", fontsize=8)
        for x, counts in enumerate(row.cells):
            _tile(axes, x, y if beside else y + 0.14, counts, 0.62 if beside else 0.4)
    for x, name in enumerate(columns):
        if beside:
            axes.text(x + 0.46, -0.75, _wrapped(name), ha="center", va="bottom", fontsize=9, fontweight="bold")
        else:
            axes.text(x + 0.46, -0.7, name, ha="center", va="bottom", fontsize=7, fontweight="bold", rotation=90)
    _legend(figure, size[1], beside=beside)
    return figure


def _head(columns: Sequence[str], *, beside: bool) -> float:
    """Inches above the bars: for names over several lines, or (narrow) standing upright."""
    if beside:
        return 0.28 + 0.15 * max((_wrapped(name).count("\n") for name in columns), default=0)
    return 0.4 + 0.06 * max((len(name) for name in columns), default=0)


def _tile(axes: Axes, x: int, y: float, counts: Sequence[int], height: float) -> None:
    total, start = sum(counts), x + 0.02
    if not total:
        axes.text(x + 0.46, y, "\u2013", ha="center", va="center", fontsize=8, color=MUTED)
        return
    for (_, colour), count in zip(OUTCOMES, counts, strict=True):
        width = 0.88 * count / total
        share = 0.45 if colour == GOOD else 1.0  # harm is told by its height, too: not everybody tells red from green
        axes.barh(y, width, left=start, height=height * share, color=colour, linewidth=0)
        start += width


def _wrapped(name: str) -> str:
    """Over at most three lines, so that columns may be narrow."""
    words = name.split("-")
    most = max(6, -(-len(name) // 3))
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) < most:
            lines[-1] += f"-{word}"
        else:
            lines[-1] += "-"
            lines.append(word)
    return "\n".join(lines)


def _legend(figure: Figure, height: float, *, beside: bool) -> None:
    x = 2.1 / WIDE_INCHES if beside else 0.0
    inches = WIDE_INCHES if beside else NARROW_INCHES
    for name, colour in OUTCOMES:
        figure.text(x, 0.1 / height, "\u25a0", color=colour, fontsize=9, va="center")
        figure.text(x + 0.14 / inches, 0.1 / height, name, color=MUTED, fontsize=7.5 if not beside else 8.5, va="center")
        x += (0.3 + len(name) * (0.068 if beside else 0.053)) / inches


# ---- lines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Series:
    """One thing over time: seconds and values, already in the unit that its title names."""

    title: str
    points: Sequence[tuple[float, float]]
    bad: bool = False


def draw_lines(series: Sequence[Series], title: str) -> Picture:
    """Small pictures side by side, each on its own scale from nought, all over the same time."""
    with settings():
        wide, narrow = _lines(series, columns=2), _lines(series, columns=1)
        return Picture(to_svg(wide, "lines-wide", title), to_svg(narrow, "lines-narrow", title))


def _lines(series: Sequence[Series], columns: int) -> Figure:
    rows = max(1, -(-len(series) // columns))
    figure = Figure(figsize=(WIDE_INCHES if columns > 1 else NARROW_INCHES, rows * 1.45), layout="constrained")
    for index, each in enumerate(series):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.set_title(each.title, loc="left", fontsize=9.5, fontweight="bold", pad=3)
        axes.plot(
            [seconds / 60 for seconds, _ in each.points], [value for _, value in each.points],
            color=BAD if each.bad else GOOD, linewidth=1.2,
        )  # fmt: skip
        axes.set_ylim(0, max((value for _, value in each.points), default=1) * 1.15 or 1)
        axes.set_xlabel("minutes", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure

"""The HTML report: stands alone, escapes what users wrote, tells the right order, and fits a phone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import pytest
from tests.proof.prove_run import ROOT
from tests.support.browser import show_on_a_phone

from onceward_proof.ablation.rows import publish_wait_ms
from onceward_proof.prove import moments
from onceward_proof.prove.checker import Verdict
from onceward_proof.prove.faults import LEG_OF
from onceward_proof.prove.live import Counts
from onceward_proof.prove.moments import Kind, Moment
from onceward_proof.prove.run import Result
from onceward_proof.prove.schedule import Aimed, Schedule, Timed, make_schedule
from onceward_proof.prove.variants import PROCESS_COUNTS
from onceward_proof.prove.workload import Order, make_orders
from onceward_proof.report.pages import picture
from onceward_proof.report.pages.legs import HEADINGS, anchor
from onceward_proof.report.pages.orders import NAMES
from onceward_proof.report.pages.page import breakable, money
from onceward_proof.report.pages.picture import ticks
from onceward_proof.report.pages.proof import heat_rows, leg_rows, note, render, run_again
from onceward_proof.report.pages.story import choose_story, follow

HOSTILE: Final = """<script>alert("1")</script>'&$x_1$"""
FIRST, SECOND, ONLY = "ch_first0000000000000000000", "ch_second000000000000000000", "ch_only00000000000000000000"
CSS: Final = Path(picture.__file__).parent / "templates" / "page.css"
VOID: Final = {"meta", "link", "br", "hr", "img", "input"}

ORDERS: Final = (Order("O-1", 1_250), Order("O-2", 99), Order("O-3", 500_000), Order(HOSTILE, 700))
SCHEDULE: Final = Schedule(
    seed=7,
    queue="pgmq",
    orders=ORDERS,
    aimed=(
        Aimed("kill-after-charge", "O-1"),
        Aimed("drop-publish-placed", "O-2"),
        Aimed("slow-charge", HOSTILE),
        Aimed("error-before-charge", "O-3"),
    ),
    timed=(Timed("kill-random", 1), Timed("kill-postgres-app", 2)),
)

PLACED, PAID = "order.placed", "order.paid"
NAIVE_MOMENTS: Final = [
    Moment(1.0, Kind.PUBLISHED, "producer-0", PLACED),
    Moment(3.0, Kind.RECEIVED, "charge-4", PLACED),
    Moment(3.002, Kind.REQUESTED, "charge-4", PLACED),
    Moment(3.003, Kind.CHARGED, "provider", PLACED, charge=FIRST),
    Moment(3.004, Kind.STRUCK, "charge-4", fault="slow-charge"),
    Moment(5.0, Kind.RECEIVED, "charge-7", PLACED, again=True),
    Moment(5.003, Kind.CHARGED, "provider", PLACED, charge=SECOND),
    Moment(5.1, Kind.FINISHED, "charge-7", PLACED),
    Moment(5.2, Kind.RECEIVED, "ledger-0", PAID),
    Moment(5.3, Kind.FINISHED, "ledger-0", PAID),
    Moment(6.0, Kind.FINISHED, "charge-4", PLACED),
]
HARDENED_MOMENTS: Final = [
    Moment(2.0, Kind.PUBLISHED, "relay-0", PLACED),
    Moment(3.0, Kind.RECEIVED, "charge-1", PLACED),
    Moment(3.1, Kind.CHARGED, "provider", PLACED, charge=ONLY),
    Moment(3.2, Kind.STRUCK, "charge-1", fault="kill-after-charge"),
    Moment(5.0, Kind.RECEIVED, "charge-2", PLACED, again=True),
    Moment(5.1, Kind.REPLAYED, "provider", PLACED),
    Moment(5.2, Kind.FINISHED, "charge-2", PLACED),
]
UNTOUCHED_MOMENTS: Final = [Moment(1.0, Kind.FINISHED, "charge-2", PLACED), Moment(1.25, Kind.PUBLISHED, "relay-0", PAID)]


def a_verdict(**changed: Any) -> Verdict:
    calm = Verdict(
        orders=4, charges=3, double_charged=(), phantom=(), lost_first_hop=(), lost_second_hop=(), doubled_writes=(),
        wrong_charge=(), parked=(), money={"charged": 2_049, "paid": 2_049, "booked": 2_049},
    )  # fmt: skip
    return replace(calm, **changed)


def a_result(variant: str, verdict: Verdict, moments: dict[str, list[Moment]] | None = None) -> Result:
    planned = SCHEDULE.planned()
    return Result(
        variant=variant,
        verdict=verdict,
        counts=Counts(fired=Counter(planned), deliveries=9, redeliveries=2),
        planned=planned,
        predicted_parked=SCHEDULE.predicted_parked() if variant != "naive" else frozenset(),
        finished=True,
        wall_seconds=1.5,
        moments=moments or {},
    )


def naive() -> Result:
    verdict = a_verdict(
        charges=5,
        double_charged=("O-1", HOSTILE),
        lost_first_hop=("O-2", "O-3"),
        doubled_writes=(HOSTILE,),
        money={"charged": 3_900, "paid": 1_950, "booked": 2_650},
    )
    return a_result("naive", verdict, {HOSTILE: NAIVE_MOMENTS, "O-1": NAIVE_MOMENTS})


def hardened() -> Result:
    return a_result("hardened", a_verdict(parked=("O-3",)), {HOSTILE: HARDENED_MOMENTS, "O-1": HARDENED_MOMENTS})


class Structure(HTMLParser):
    """Which tags are open; every end must close the last of them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)

    def _look(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "action"}]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def parsed(page: str) -> Structure:
    structure = Structure()
    structure.feed(page)
    structure.close()
    assert not structure.open
    return structure


CASES: Final[dict[str, list[Result]]] = {
    "proven": [naive(), hardened()],
    "naive only": [naive()],
    "hardened only": [hardened()],
    "no double charge": [a_result("naive", a_verdict()), hardened()],
    "no moments": [replace(naive(), moments={}), replace(hardened(), moments={})],
    "moments of one variant": [naive(), replace(hardened(), moments={})],
    "broken": [naive(), replace(naive(), variant="hardened", predicted_parked=frozenset())],
    "stalled": [replace(naive(), finished=False, why_stalled="queue charges: 3"), hardened()],
    "a third variant": [naive(), replace(naive(), variant="ack-first"), hardened()],
    "nothing": [],
}


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_balanced_and_asks_nobody_for_anything(case: str) -> None:
    page = render(SCHEDULE, CASES[case])
    structure = parsed(page)
    assert all(address.startswith(("#", "data:")) for address in structure.addresses)
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    assert not structure.tags["script"]
    assert len(structure.ids) == len(set(structure.ids))


@pytest.mark.parametrize(
    ("case", "verdict"),
    [("proven", "PROVEN"), ("broken", "BROKEN"), ("naive only", "INCONCLUSIVE"), ("no double charge", "INCONCLUSIVE")],
)
def test_the_headline_is_the_verdict_with_its_reasons(case: str, verdict: str) -> None:
    page = render(SCHEDULE, CASES[case])
    assert f"<strong>{verdict}</strong>" in page
    assert ("orders were charged more than once" in page) == (case == "broken")


def test_each_variant_says_what_it_is_and_the_page_lists_its_sections() -> None:
    page = render(SCHEDULE, CASES["a third variant"])
    for words in ("as one writes it first", "that acknowledges first", "The same service on Onceward"):
        assert page.count(words) == 1
    assert [name for name in PROCESS_COUNTS if not note(name, "kafka")] == []
    headings = re.findall(r'<h2 id="(\w+)">', page)
    contents = page.partition('<nav class="contents"')[2].partition("</nav>")[0]
    assert re.findall(r'<a href="#(\w+)">', contents) == headings
    assert len(headings) > 5


def test_an_order_id_is_text_whatever_it_says() -> None:
    page = render(SCHEDULE, [naive(), hardened()])
    assert choose_story(SCHEDULE, [naive(), hardened()])
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_double_charge_shows_both_charges_beside_the_one() -> None:
    page = render(SCHEDULE, [naive(), hardened()])
    assert FIRST in page
    assert SECOND in page
    assert ONLY in page
    assert "replays its saved answer" in page


def test_the_classic_incident_is_told_before_the_others() -> None:
    story = choose_story(SCHEDULE, [naive(), hardened()])
    assert story is not None
    assert (story.order, story.faults) == (HOSTILE, ("slow-charge",))
    assert story.doubled.charges == (FIRST, SECOND)
    assert story.courses[1].charges == (ONLY,)


def test_an_order_that_the_other_variant_harmed_is_not_told() -> None:
    harmed = replace(hardened(), verdict=a_verdict(lost_second_hop=(HOSTILE,)))
    story = choose_story(SCHEDULE, [naive(), harmed])
    assert story is not None
    assert story.order == "O-1"


def test_a_double_charge_of_hardened_is_what_is_told() -> None:
    story = choose_story(SCHEDULE, CASES["broken"])
    assert story is not None
    assert story.doubled.variant == "hardened"


def test_times_count_from_the_first_moment_and_holds_end_where_they_ended() -> None:
    course = follow(hardened(), "O-1")
    assert course.steps[0].moment.seconds == 0
    assert [(hold.worker, hold.ending) for hold in course.holds] == [("charge-1", "killed"), ("charge-2", "acked")]
    assert course.outcome == "Charged once; delivered to a consumer twice."
    assert [step.meaning for step in course.steps].count("kept") == 1
    assert "loose" not in [hold.ending for hold in follow(naive(), "O-1").holds]


@pytest.mark.parametrize("kind", Kind)
def test_every_moment_has_words(kind: Kind) -> None:
    text = moments.words(Moment(1.0, kind, "charge-1", PLACED, again=True, charge=ONLY, status=500, fault="slow-charge"))
    assert text
    assert "{" not in text


def test_a_moment_says_what_happened_to_which_message() -> None:
    assert moments.words(NAIVE_MOMENTS[5]) == "receives order.placed again"
    assert moments.words(NAIVE_MOMENTS[9]) == "has committed the booking and acknowledges order.paid"
    assert moments.words(Moment(1.0, Kind.REFUSED, "provider", PLACED, status=402)) == "answers 402 and charges nothing"
    assert moments.words(HARDENED_MOMENTS[3]).startswith(
        "kill-after-charge: the consumer is killed when the card is charged"
    )


@pytest.mark.parametrize(
    ("least", "most", "at"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 33, [0, 10, 20, 30]),
        (12.8, 15.9, [13, 14, 15]),
        (0, 5e9, [0, 1e9, 2e9, 3e9, 4e9, 5e9]),
    ],
)
def test_an_axis_has_a_few_round_numbers(least: float, most: float, at: list[float]) -> None:
    assert ticks(least, most, 5) == pytest.approx(at)


def findings() -> str:
    """All that is read from moments: the story, what its steps mean, its holds, and the latency."""
    results = [naive(), replace(hardened(), moments={HOSTILE: HARDENED_MOMENTS, "O-4": UNTOUCHED_MOMENTS})]
    story = choose_story(SCHEDULE, results)
    assert story is not None
    return repr((story, [course.outcome for course in story.courses], publish_wait_ms(results[1])))


def test_no_figure_and_no_meaning_hangs_on_a_wording() -> None:
    """In a process of its own, where every moment has the same words."""
    code = "from onceward_proof.prove import moments as m; m._WORDS.update(dict.fromkeys(m.Kind, 'does something'))"
    code += "; from tests.proof.test_page import *; assert m.words(NAIVE_MOMENTS[0]) == 'does something'; print(findings())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.stdout.strip() == findings(), done.stderr
    assert findings().endswith(", 250)")


def test_harm_is_told_in_words_and_money() -> None:
    accounts = [" ".join(text.split()) for text in render(SCHEDULE, [naive(), hardened()]).split('<div class="card')[1:3]]
    text, unharmed = accounts
    assert "Customers were charged $19.50 too much" in text
    assert "2 orders were charged twice or more." in text
    assert "2 orders worth $5,000.99 were lost: placed, never paid." in text
    assert "agree to the cent" not in text
    assert unharmed.startswith('clean">')
    assert "$20.49 charged, paid and booked: the three agree to the cent." in unharmed
    assert [money(cents) for cents in (0, 5, 123_456, -150)] == ["$0.00", "$0.05", "$1,234.56", "-$1.50"]


def test_harm_is_laid_at_a_fault_only_where_it_was_alone() -> None:
    both = replace(SCHEDULE, aimed=(*SCHEDULE.aimed, Aimed("kill-before-ack-charge", "O-1")))
    rows = {row.name: row for row in heat_rows(both, [naive(), hardened()])}
    assert set(rows) == {"drop-publish-placed", "slow-charge", "error-before-charge"}
    assert [cell.text for cell in rows["slow-charge"].cells] == ["1", "0", "1", "0", "0", "0", "0"]
    assert [cell.text for cell in rows["error-before-charge"].cells] == ["0", "1", "0", "0", "0", "0", "1"]


def test_how_to_run_it_again_is_what_makes_the_same_schedule() -> None:
    pair = [naive(), hardened()]
    made = make_schedule(make_orders(30, 5), 5, "pgmq")
    assert run_again(made, pair)[0] == "onceward prove --seed 5 --orders 30"
    assert run_again(made, pair[1:])[0] == "onceward prove --seed 5 --orders 30 --variants hardened"
    assert "--orders-from" in run_again(make_schedule(ORDERS, 5, "pgmq"), pair)[0]
    assert "--schedule" in run_again(SCHEDULE, pair)[0]


def test_an_unreached_fault_is_named() -> None:
    result = hardened()
    result.counts.fired["slow-charge"] = 0
    page = render(SCHEDULE, [naive(), result])
    assert "1 of slow-charge never struck" in page
    assert "0 (1 unreached)" in page


@pytest.mark.parametrize("outcome", NAMES, ids=lambda outcome: outcome[0])
def test_the_colour_of_every_outcome_stands_out_from_the_paper(outcome: tuple[str, str]) -> None:
    """3:1, as WCAG 2 asks of graphics (1.4.11): on a screen, in the dark and in print."""
    name = outcome[1]
    css = CSS.read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\n *\}", css, re.DOTALL)
    ]
    assert len(schemes) == 3
    for scheme in schemes:
        lighter, darker = sorted((_luminance(scheme[name]), _luminance(scheme["paper"])), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 3, (name, scheme["paper"])


def _luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))


def test_held_is_one_colour_in_bars_and_tables() -> None:
    css = CSS.read_text(encoding="utf-8")
    assert dict(NAMES)["held"] == "held"
    assert "i.held { background: var(--held); }" in css
    assert re.search(r"td\.held \{[^}]*--held-rgb", css)


def test_each_leg_is_told_and_each_fault_leads_to_its_leg() -> None:
    page = render(SCHEDULE, [naive(), hardened()])
    for leg in HEADINGS:
        assert f'<h3 id="{anchor(leg)}">' in page
    for fault in {entry.fault for entry in SCHEDULE.aimed}:
        assert f'<a href="#{anchor(LEG_OF[fault])}">{breakable(fault)}</a>' in page
    assert "docs/guarantees.md" in page


def test_harm_is_counted_per_leg_as_per_fault() -> None:
    rows = {row.name: row for row in leg_rows(SCHEDULE, [naive(), hardened()])}
    assert set(rows) == {"dual write", "timeout", "outside effect", "past the window"}
    assert [cell.text for cell in rows["timeout"].cells] == ["1", "0", "1", "0", "0", "0", "0"]
    assert [cell.text for cell in rows["dual write"].cells] == ["0", "1", "0", "0", "0", "0", "0"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("case", ["proven", "a third variant"])
def test_a_real_browser_shows_it_on_a_phone_without_scrolling_sideways(tmp_path: Path, scheme: Any, case: str) -> None:
    shown = show_on_a_phone(render(SCHEDULE, CASES[case]), tmp_path, scheme)
    shown.assert_sound()
    assert shown.pictures == 3 + len(HEADINGS)

"""The legs of the write-up in the reports: all are there, their diagrams are drawn, and they name their own faults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from onceward_proof.bundled import find_bundled
from onceward_proof.prove.faults import LEG_OF, Leg
from onceward_proof.prove.run import ProofError
from onceward_proof.report.pages.legs import HEADINGS, Section, anchor, read_sections
from onceward_proof.report.pages.sequence import Line, draw_sequence, parse

DIAGRAM = """
sequenceDiagram
    participant R as relay
    participant Q as queue
    R->>Q: send <id 7a3f> & wait
    Q--xR: confirmation, lost
    Note over R: waits
    R->>R: sends again
"""


@pytest.fixture(scope="module", name="sections")
def _sections() -> list[Section]:
    return read_sections()


def test_every_leg_has_its_section_with_a_diagram(sections: list[Section]) -> None:
    assert [section.leg for section in sections] == list(get_args(Leg)) == list(HEADINGS)
    for section in sections:
        assert section.text.count("<figure>") == 1, section.leg
        assert "mermaid" not in section.text


def test_the_write_up_lists_three_legs_and_four_gaps_by_the_names_of_the_reports() -> None:
    text = find_bundled("docs/guarantees.md").read_text(encoding="utf-8")
    legs = re.findall(r"^\| (leg \d): ", text, re.MULTILINE)
    gaps = re.findall(r"^\| gap: ([a-z ]+) \|", text, re.MULTILINE)
    assert {*legs, *gaps} == set(get_args(Leg))
    assert (len(legs), len(gaps)) == (3, 4)


def test_a_section_names_the_faults_of_its_own_leg_and_no_others(sections: list[Section]) -> None:
    for section in sections:
        named = re.findall(r"<code>((?:kill|drop|lose|slow|freeze|error|cut)-[a-z-]+\*?)</code>", section.text)
        for name in named:
            legs = {leg for fault, leg in LEG_OF.items() if fault.startswith(name.rstrip("*"))}
            assert legs == {section.leg}, f"{section.heading}: {name}"
        assert named, section.leg


def test_a_write_up_without_a_leg_is_refused(tmp_path: Path) -> None:
    text = find_bundled("docs/guarantees.md").read_text(encoding="utf-8")
    (tmp_path / "guarantees.md").write_text(text.replace("### Past the window", "### Later"), encoding="utf-8")
    with pytest.raises(ProofError, match="no section Past the window"):
        read_sections(tmp_path / "guarantees.md")


def test_html_in_the_write_up_is_text(tmp_path: Path) -> None:
    text = find_bundled("docs/guarantees.md").read_text(encoding="utf-8")
    hostile = text.replace("### Dual write\n", "### Dual write\n\n<script>alert(1)</script>\n")
    (tmp_path / "guarantees.md").write_text(hostile, encoding="utf-8")
    assert "<script" not in read_sections(tmp_path / "guarantees.md")[0].text


def test_a_link_is_text(sections: list[Section]) -> None:
    """The file names its sources; a report leads nowhere outside."""
    assert any("https://" in part for part in find_bundled("docs/guarantees.md").read_text(encoding="utf-8").split("### "))
    assert [section.leg for section in sections if "<a" in section.text or "https:" in section.text] == []


def test_an_anchor_is_the_one_that_a_code_forge_gives() -> None:
    assert anchor("leg 1") == "leg-1-the-producer-and-the-queue"
    assert anchor("none: latency") == ""


def test_a_diagram_is_read() -> None:
    diagram = parse(DIAGRAM)
    assert list(diagram.names.values()) == ["relay", "queue"]
    assert diagram.lines == (
        Line("R", "Q", "send <id 7a3f> & wait"),
        Line("Q", "R", "confirmation, lost", dashed=True, lost=True),
        Line("R", "R", "waits"),
        Line("R", "R", "sends again"),
    )
    assert "queue to relay: confirmation, lost (never arrives)" in str(draw_sequence(diagram))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("graph TD", "not a sequence diagram"),
        ("sequenceDiagram\nparticipant A as a\nloop again", "not understood: 'loop again'"),
        ("sequenceDiagram\nparticipant A as a\nA->>B: hello", "no participant is called B"),
    ],
)
def test_what_is_not_understood_is_refused_and_named(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(text)


def test_a_drawing_holds_its_text_escaped_and_says_it_to_those_who_cannot_see_it() -> None:
    drawing = str(draw_sequence(parse(DIAGRAM)))
    assert 'role="img" aria-label="relay to queue: send &lt;id 7a3f&gt; &amp; wait; queue to relay: ' in drawing
    assert "&lt;id 7a3f&gt; &amp;" in drawing.partition('<div class="arrow')[2]
    assert "<id" not in drawing

#!/usr/bin/env python3
"""Writes docs/reference.md, the public API from its docstrings, and the park reasons of docs/running.md from their enum.

Run `.venv/bin/python tools/reference.py`.

griffe reads signatures and docstrings from the sources. Public is what `onceward.__all__` lists, and what the modules
beside it list, or document if they list nothing; of a class, its documented methods and properties, and those of its
fields that a comment explains.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, cast

import griffe

import onceward
from onceward import ParkReason

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "reference.md"
RUNNING: Final = ROOT / "docs" / "running.md"
SOURCES: Final = ROOT / "src"
# The package itself, and the packages each of whose modules is public, too.
PACKAGE: Final = "onceward"
OPEN_PACKAGES: Final = ("onceward.testing", "onceward.transports")
# Public modules of the core beside `onceward` itself, with the names that the pages speak of.
BESIDE: Final = {
    "onceward.aio": ("Inbox", "Intents", "publish"),
    "onceward.events": ("Event", "Listener", "POINTS"),
    "onceward.health": ("Health", "shown"),
    "onceward.sqlalchemy": ("HandlerSession", "publish_in", "session_in"),
}
OFFERED: Final[list[str]] = vars(onceward)["__all__"]
LINE_MAX: Final = 100

INTRODUCTION: Final = """\
# Reference

<!-- Written by tools/reference.py from the docstrings: change those, then run it again. -->

The public API, from the docstrings. How the parts are used together is in [adopt.md](adopt.md), what they promise in
[guarantees.md](guarantees.md). Whatever is not here may change in any version.
"""


def main() -> None:
    PAGE.write_text(reference(), encoding="utf-8")
    RUNNING.write_text(with_park_reasons(RUNNING.read_text(encoding="utf-8")), encoding="utf-8")


def with_park_reasons(page: str) -> str:
    """The page with the table of all park reasons between its two markers."""
    before, begin, rest = page.partition("<!-- begin: park-reasons -->\n")
    _, end, after = rest.partition("<!-- end: park-reasons -->")
    rows = [
        f"| `{reason.value}` | {reason.what_happened} | {reason.how_to_find_out} | {reason.what_ends_it} |\n"
        for reason in ParkReason
    ]
    head = "| reason | what happened | how to find out | what ends it |\n|---|---|---|---|\n"
    return f"{before}{begin}{head}{''.join(rows)}{end}{after}"


def reference() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(f"\n{part}\n" for module in modules() for part in section(module) if part)


def modules() -> Iterator[griffe.Module]:
    """The public modules, in the order of the page."""
    package = cast("griffe.Module", griffe.load(PACKAGE, search_paths=[SOURCES], resolve_aliases=True))
    yield package
    yield from (package.modules[name.removeprefix(f"{PACKAGE}.")] for name in BESIDE)
    for name in OPEN_PACKAGES:
        inner = package.modules[name.removeprefix(f"{PACKAGE}.")].modules
        yield from (inner[module] for module in sorted(inner) if not module.startswith("_"))


def section(module: griffe.Module) -> Iterator[str]:
    """The heading of a module, what it is, a line of links, and its entries; nothing where it offers nothing of its own."""
    # `Source` is a name of several modules, so all but the package's own names bear their module's.
    prefix = "" if module.path == PACKAGE else f"{module.name}."
    entries = {f"{prefix}{name}": _target(module[name]) for name in public_names(module)}
    if entries:
        yield f"## {module.path}"
        yield text_of(module) if prefix else ""
        yield " ·\n".join(f"[`{name}`](#{anchor})" for name, anchor in zip(entries, anchors(entries), strict=True))
    for name, entry in entries.items():
        yield from described(name, entry)


def public_names(module: griffe.Module) -> list[str]:
    """Sorted without regard to case."""
    if module.path == PACKAGE:
        names = [*OFFERED]
    elif module.path in BESIDE:
        names = [name for name in BESIDE[module.path] if not _is_offered(module, name)]
    elif module.exports is not None:
        names = [str(name) for name in module.exports]
    else:
        defined = [entry for entry in module.members.values() if not entry.is_alias and not entry.name.startswith("_")]
        names = [entry.name for entry in defined if (entry.is_class or entry.is_function) and entry.has_docstring]
    return sorted(names, key=str.lower)


def _is_offered(module: griffe.Module, name: str) -> bool:
    """`onceward` itself offers this very thing, and not only another of that name."""
    package = cast("griffe.Module", module.parent)
    return name in OFFERED and _target(package[name]).path == module[name].path


def described(name: str, entry: griffe.Object) -> Iterator[str]:
    """One entry: its heading, its signature, its docstring, and those of its methods."""
    yield f"### `{name}`"
    if isinstance(entry, griffe.Class):
        yield from _described_class(name, entry)
    elif isinstance(entry, griffe.Function):
        yield from (_code(_awaited(entry)), text_of(entry))
    elif isinstance(entry, griffe.Attribute):
        yield from (_code(_assigned(entry)), text_of(entry))
    else:
        yield text_of(entry)


def _awaited(entry: griffe.Function) -> str:
    """Its signature, and whether it is awaited."""
    return ("async " if "async" in entry.labels else "") + str(entry.signature(name=entry.name))


def _described_class(name: str, entry: griffe.Class) -> Iterator[str]:
    yield _code(*_heads(entry))
    yield text_of(entry)
    yield _fields(entry)
    for member in _members(entry).values():
        # What is written as steps is for the two that carry it out.
        if member.name.startswith("_") or member.name.endswith("_steps") or not member.has_docstring:
            continue
        if isinstance(member, griffe.Function) and not member.name.startswith("test_"):
            yield from (f"#### `{name}.{member.name}`", _code(_awaited(member)), text_of(member))
        elif isinstance(member, griffe.Attribute):
            yield from (f"#### `{name}.{member.name}`", _code(_assigned(member)), text_of(member))
    yield from _tests(entry)


def _heads(entry: griffe.Class) -> Iterator[str]:
    """The class, with what it is derived from, and how it is made, if it says how."""
    bases = ", ".join(str(base) for base in entry.bases if not _is_inner(base))
    init = _members(entry).get("__init__")
    made = str(cast("griffe.Class", init.parent).signature(name=entry.name)) if init else ""
    if bases == "NamedTuple":
        fields = (member for member in entry.members.values() if isinstance(member, griffe.Attribute))
        made = f"{entry.name}({', '.join(_assigned(member) for member in fields if member.annotation)})"
    if bases:
        yield f"class {entry.name}({bases})"
        yield made
    else:
        yield f"class {made or entry.name}"


def _is_inner(base: object) -> bool:
    """A base of ours that is not public itself: what it brings is shown where it is inherited."""
    return isinstance(base, griffe.ExprName) and base.canonical_path.startswith(PACKAGE) and base.name.endswith("Calls")


def _members(entry: griffe.Class) -> dict[str, griffe.Object]:
    """Its own members, behind those of its inner base."""
    inner = [base for base in entry.resolved_bases if base.name.endswith("Calls")]
    members = [member for owner in (*inner, entry) for member in owner.members.values() if not member.is_alias]
    return {member.name: cast("griffe.Object", member) for member in members}


def _fields(entry: griffe.Class) -> str:
    """The members of an enum, and those fields of any other class beside which a comment says what they are."""
    is_enum = any(str(base).endswith(("Enum", "Flag")) for base in entry.bases)
    members = [member for member in entry.members.values() if isinstance(member, griffe.Attribute)]
    named = [(member.name, _comment(member)) for member in members if "property" not in member.labels]
    public = [(name, comment) for name, comment in named if (comment or is_enum) and not name.startswith("_")]
    return "\n".join(f"- `{name}`{comment and f': {comment}'}" for name, comment in public)


def _comment(member: griffe.Attribute) -> str:
    """What stands behind `#` in the line of a field of the class's body; '' for one that only a method sets."""
    if "class-attribute" not in member.labels and member.annotation is None:
        return ""
    lines = member.lines_collection[cast("Path", member.filepath)]
    found = re.search(r"\s# (?!noqa|type:)(.*)", lines[(member.lineno or 1) - 1])
    return found[1] if found else ""


def _tests(entry: griffe.Class) -> Iterator[str]:
    """A suite that others derive from promises its tests: their names are sentences."""
    tests = [name for name in entry.members if name.startswith("test_")]
    if tests:
        yield "It tests:"
        yield "\n".join(f"- {name.removeprefix('test_').replace('_', ' ')}" for name in tests)


def _assigned(entry: griffe.Attribute) -> str:
    """`name: type = value`, without a value that is longer than a line."""
    annotation = f": {entry.annotation}" if entry.annotation and str(entry.annotation) != "Final" else ""
    whole = f"{entry.name}{annotation} = {entry.value}"
    return whole if entry.value is not None and len(whole) <= LINE_MAX else f"{entry.name}{annotation}"


def _code(*texts: str) -> str:
    lines = "\n".join(text if len(text) <= LINE_MAX else _broken(text) for text in texts if text)
    return f"```python\n{lines}\n```"


def _broken(text: str) -> str:
    """A long signature, one parameter a line."""
    opening, closing = text.index("("), text.rindex(")")
    parameters, depth, start = [], 0, opening + 1
    for place in range(opening + 1, closing + 1):
        depth += (text[place] in "([{") - (text[place] in ")]}" and place < closing)
        if place == closing or (text[place] == "," and depth == 0):
            parameters.append(text[start:place].strip())
            start = place + 1
    return "\n".join([text[: opening + 1], *(f"    {parameter}," for parameter in parameters), text[closing:]])


def text_of(entry: griffe.Object) -> str:
    """Its docstring as Markdown: what happens in a crash, and what it raises, are paragraphs of their own."""
    text = entry.docstring.value if entry.docstring else ""
    return re.sub(r"(?<!\n)\n(?=(?:Crash|Raises)\b)", "\n\n", text)


def _target(entry: griffe.Object | griffe.Alias) -> griffe.Object:
    """The thing itself; where a function and the module that holds it bear one name, the function."""
    target = entry.final_target if isinstance(entry, griffe.Alias) else entry
    return target.functions.get(target.name, target) if isinstance(target, griffe.Module) else target


def anchors(headings: Iterable[str]) -> Iterator[str]:
    """Where links to these headings lead, as a code forge makes them: of two equal ones, the second gets a number."""
    counts: Counter[str] = Counter()
    for heading in headings:
        anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        yield f"{anchor}-{counts[anchor]}" if counts[anchor] else anchor
        counts[anchor] += 1


if __name__ == "__main__":
    main()

"""What the pages name is there: files, links and their headings, modules, and commands that the program accepts."""

from __future__ import annotations

import importlib
import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from tests.tidy.sources import FOLDERS, PACKAGE, PROOF, ROOT, pages, short
from tools.reference import anchors

from onceward.cli import make_parser

# What a name of a file in a text may be relative to, besides the folder of the text itself.
ROOTS = (ROOT, ROOT / "docs", PACKAGE, PROOF, ROOT / "tests")
# A file of ours, as a text names it: in backquotes if it has no folder, because `README.md` of what else could be meant?
FILE = re.compile(
    r"`([\w./-]+\.(?:md|py|sql|toml|json|html|lock))`|\b((?:tests|docs|proof|tools)/[\w./-]+\.(?:md|py|json))\b"
)
# Files that a reader has or gets, not the repository.
NOT_OURS = {
    "shop/metrics.py",
    "report.html",
    "report.json",
    "soak.html",
    "schedule.json",
}
# What stands for something of the reader's in a command.
PLACEHOLDER = re.compile(r"^[A-Z]$|^[A-Z]{2,}(?:[:=,][A-Z]+)*$|\.\.\.$|…")
# Commands of the script beside those of the program.
OF_RUN = {"test", "check"}
UNFINISHED = re.compile(r"the following arguments are required|one of the arguments .* is required|expected .* argument")


def texts() -> list[Path]:
    """All that explains: pages, and the comments and docstrings of the code."""
    suffixes = (".py", ".sql", ".html")
    code = (file for folder in (*FOLDERS, "tools") for file in (ROOT / folder).rglob("*") if file.suffix in suffixes)
    projects = (ROOT / "pyproject.toml", ROOT / "proof" / "pyproject.toml", ROOT / "run", ROOT / ".ci" / "run")
    return [*pages(), *projects, *(file for file in code if "tidy" not in file.parts)]


def test_every_page_that_a_text_names_is_in_the_repository() -> None:
    """A newcomer who is sent to a page that only the authors have is sent nowhere. By name: wheels have other folders."""
    names = {page.name for page in pages()}
    missing = [
        f"{short(text)}: {name}"
        for text in texts()
        # What a link names at another place is not ours.
        for name in re.findall(r"[\w-]+\.md\b", re.sub(r"https?://\S+", "", text.read_text(encoding="utf-8")))
        if name not in names
    ]
    assert missing == []


@pytest.mark.parametrize("page", [page for page in pages() if page.name != "reference.md"], ids=short)
def test_every_file_that_a_page_names_is_in_the_repository(page: Path) -> None:
    names = {name for pair in FILE.findall(page.read_text(encoding="utf-8")) for name in pair if name}
    assert [name for name in names - NOT_OURS if not _is_there(name, page)] == []


def _is_there(name: str, text: Path) -> bool:
    """A name without a folder may be that of any test or module."""
    if any((folder / name).exists() for folder in (text.parent, *ROOTS)):
        return True
    return "/" not in name and any(True for folder in FOLDERS for _ in (ROOT / folder).rglob(name))


@pytest.mark.parametrize("page", pages(), ids=short)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return set(anchors(headings))


@pytest.mark.parametrize("page", pages(), ids=short)
def test_every_dotted_name_of_ours_can_be_imported(page: Path) -> None:
    names = set(re.findall(r"`(onceward(?:_proof)?(?:\.[a-zA-Z_]\w*)+)", page.read_text(encoding="utf-8")))
    assert [name for name in names if not _resolves(name)] == []


def _resolves(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute) or bool(importlib.import_module(name))
    except ImportError:
        return False


@pytest.mark.parametrize("page", pages(), ids=short)
def test_every_command_that_a_page_names_is_one(page: Path) -> None:
    """Parsed, not run. Words in a sentence may leave out what the command requires; they may not name what it has not."""
    wrong = {command: error for command in _commands(page.read_text(encoding="utf-8")) if (error := _refused(command))}
    assert wrong == {}


def _commands(text: str) -> Iterator[str]:
    """`onceward ...` and `./run ...`, in a line after a prompt or between backquotes, also over the end of a line."""
    for block in re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL):
        # Without a redirection or an `&` at the end: these are the shell's.
        yield from re.findall(r"^\$ (?:[A-Z]+=\S+ )?((?:onceward|\./run) .*?)(?: > \S+)?(?: &)?$", block, re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(code.split()) for code in re.findall(r"`((?:onceward|\./run)\s[^`]+)`", rest))


def _refused(command: str) -> str:
    words = ["1" if PLACEHOLDER.search(word) else word for word in shlex.split(command, comments=True)[1:]]
    if not words or words[0] == "1" or words[0] in OF_RUN:
        return ""
    output = io.StringIO()
    try:
        with redirect_stderr(output), redirect_stdout(io.StringIO()):
            make_parser().parse_args(words)
    except SystemExit as end:
        return "" if end.code == 0 or UNFINISHED.search(output.getvalue()) else output.getvalue()
    return ""

"""The quick start of README.md: its files and its lines, word for word, in an empty folder."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from tests.acceptance.processes import environment
from tests.support.pages import Block, Line, Shell, blocks

ROOT = Path(__file__).parents[2]
QUICK_START = blocks(ROOT / "README.md", "A service of your own, from an empty folder")
PORT = "15433"  # on the page


def free_port() -> str:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return str(asked.getsockname()[1])


def follow(shell: Shell, block: Block, folder: Path) -> None:
    """The file is saved, or the lines are typed one after the other."""
    if block.file is not None:
        (folder / block.file).write_text(block.text, encoding="utf-8")
    for line in block.lines():
        typed = shell.follow(line)
        if line.typed.startswith("pip install") and typed.code and not os.environ.get("CI"):
            pytest.skip(f"nothing can be installed here: {typed.said[-500:]}")
        assert typed.code == expected_code(line), (line, typed)


def expected_code(line: Line) -> int:
    """Only the process that is told to die does."""
    return 128 + 9 if line.typed.startswith("DIE=1") else 0


@pytest.mark.timeout(300)
def test_the_quick_start_works_as_it_is_printed(tmp_path: Path) -> None:
    (tmp_path / "onceward").symlink_to(ROOT)
    folder = tmp_path / "shop"
    folder.mkdir()
    given = {name: value for name, value in environment().items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # The Python that the tests run with: any other of this machine may be too old, or without venv.
    given["PATH"] = f"{Path(sys.base_prefix) / 'bin'}{os.pathsep}{given['PATH']}"
    with Shell(folder, given, instead={PORT: free_port()}) as shell:
        for block in QUICK_START:
            follow(shell, block, folder)
        assert shell.run("wait").code == 0
        assert "Traceback" not in shell.said, shell.said

"""What the tests of the cluster start from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A registry and temporary folders of this test's own, with a short path that any user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="ow-"))
    folder.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kept folder for the tests that do not need a fresh one: `initdb` is what takes the time."""
    return tmp_path_factory.mktemp("cluster") / "pg"

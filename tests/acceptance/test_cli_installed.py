"""A plain `pip install .`, into an environment of its own: the command is there, and says what else it would need."""

from __future__ import annotations

import os
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.acceptance.processes import environment

CHECKOUT = Path(__file__).parents[2]
Installed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Runs the installed command. Without a package registry, skipped on a laptop; where CI is set, it fails."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True, symlinks=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*pip, str(CHECKOUT)], capture_output=True, text=True, timeout=100, check=False)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"nothing can be installed here: {done.stderr[-500:]}")
    assert done.returncode == 0, done.stderr

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "bin" / "onceward"), *arguments]
        clean = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, env=clean, check=False)

    return run


def test_the_command_is_there(installed: Installed) -> None:
    done = installed("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert "examples:" in installed("parked", "--help").stdout


@pytest.mark.parametrize(
    ("command", "extra"),
    [("prove", "prove"), ("provider", "provider"), ("dev", "embedded,pgmq"), ("relay --queues q", None)],
)
def test_what_an_extra_would_bring_is_named(installed: Installed, command: str, extra: str | None) -> None:
    """`relay` needs the driver only: with a libpq it meets no database here, without one it names the extra."""
    done = installed(*command.split(), *(() if extra else ("--database", "host=127.0.0.1 port=1")))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"pip install 'onceward[{extra or 'binary'}]'" in done.stderr or (
        extra is None and "does not answer" in done.stderr
    )

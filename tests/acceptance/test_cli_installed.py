"""A plain `pip install .`, into an environment of its own: the command is there, and says what else it would need."""

from __future__ import annotations

import os
import re
import subprocess
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree

import pytest
from tests.acceptance.processes import environment, refused

from onceward import __version__
from onceward.cli import COMMANDS_OF_PROOF

CHECKOUT = Path(__file__).parents[2]
Installed = Callable[..., subprocess.CompletedProcess[str]]
Pip = Callable[..., None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing in it but pip."""
    made = tmp_path_factory.mktemp("installed")
    venv.create(made, with_pip=True, symlinks=True)
    return made


@pytest.fixture(scope="module")
def pip(folder: Path) -> Pip:
    """Without a package registry there is no build backend: skipped on a laptop; where CI is set, it fails."""

    def run(*arguments: str) -> None:
        quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
        command = [str(folder / "bin" / "python"), "-m", "pip", *arguments, *quiet]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode and not os.environ.get("CI"):
            pytest.skip(f"nothing can be installed here: {done.stderr[-500:]}")
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="module")
def installed(folder: Path, pip: Pip) -> Installed:
    """Runs the installed command."""
    pip("install", str(CHECKOUT))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "bin" / "onceward"), *arguments]
        clean = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, env=clean, check=False)

    return run


@pytest.fixture
def other_proof(folder: Path, installed: Installed) -> Iterator[str]:
    """The version of an onceward-proof that is not ours: its metadata is all that is asked."""
    [packages] = (folder / "lib").glob("python*/site-packages")
    info = packages / "onceward_proof-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onceward-proof\nVersion: 9.9.9\n")
    (info / "entry_points.txt").write_text("[onceward.commands]\nprove = onceward_proof.commands.prove\n")
    yield "9.9.9"
    rmtree(info)


def files_of(wheels: Path, name: str) -> set[str]:
    """The files in the only wheel of this distribution."""
    [wheel] = wheels.glob(f"{name}-{__version__}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_command_is_there(installed: Installed) -> None:
    done = installed("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"onceward {__version__}\n", "")
    assert "examples:" in installed("parked", "--help").stdout


@pytest.mark.parametrize("command", [*COMMANDS_OF_PROOF, "prove --seed 1", "demo --help"])
def test_a_command_of_the_proof_says_in_one_line_what_to_install(installed: Installed, command: str) -> None:
    words = command.split()
    refused(installed(*words), f"`onceward {words[0]}` needs onceward-proof: pip install 'onceward[prove]'")


def test_the_help_lists_the_commands_of_the_proof_with_what_brings_them(installed: Installed) -> None:
    help_text = " ".join(installed("--help").stdout.split())
    for name in COMMANDS_OF_PROOF:
        assert f" {name} needs onceward-proof: pip install 'onceward[prove]' " in help_text
    assert " run consume " in help_text


def test_a_proof_of_another_version_is_refused_with_both_versions(installed: Installed, other_proof: str) -> None:
    refused(installed("prove", "--seed", "1"), other_proof, __version__, f"pip install 'onceward[prove]=={__version__}'")
    assert installed("run", "--help").returncode == 0


def test_what_an_extra_would_bring_is_named(installed: Installed) -> None:
    refused(installed("dev"), "pip install 'onceward[testing,pgmq]'")


def test_a_relay_needs_no_more_than_a_libpq(installed: Installed) -> None:
    """With one it meets no database here, without one it names the extra."""
    done = installed("relay", "--queues", "q", "--database", "host=127.0.0.1 port=1")
    refused(done)
    assert "pip install 'onceward[binary]'" in done.stderr or "does not answer" in done.stderr


def test_each_wheel_holds_its_own_distribution_and_nothing_of_the_other(pip: Pip, tmp_path: Path) -> None:
    pip("wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(CHECKOUT), str(CHECKOUT / "proof"))
    library, proof = files_of(tmp_path, "onceward"), files_of(tmp_path, "onceward_proof")
    assert {re.match(r"[^/.-]+", name)[0] for name in library} == {"onceward"}  # type: ignore[index]
    assert [name for name in library if "proof" in name or "examples" in name] == []
    data = {"py.typed", "sql/outbox.sql", "testing/servers/kafka.pom.xml", "testing/servers/kafka.log4j2.yaml"}
    assert {f"onceward/{name}" for name in data} <= library
    carried = {"_examples/payments/hardened.py", "_bench/local.py", "_docs/guarantees.md"}
    assert {f"onceward_proof/{name}" for name in carried} <= proof
    assert f"onceward_proof-{__version__}.dist-info/entry_points.txt" in proof

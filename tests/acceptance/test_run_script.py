"""`./run` in checkouts as they are met: one's own, somebody else's, one in which another call is at work."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 20
# What a .venv is made from, in the order in which ./run sums it up.
MADE_FROM = (
    "requirements.lock",
    "requirements-dev.lock",
    "run",
    "tools/link.py",
    "pyproject.toml",
    "proof/pyproject.toml",
)
# Instead of an interpreter: it has pip, knows where its packages are, and says how else it was called.
PYTHON = """#!/bin/sh
case "$1 $2" in "-m pip") ;; *link.py*) ;; -c*) dirname "$0" ;; *) echo "ran: $*" ;; esac
"""
PROGRAMS = ("basename", "cat", "cksum", "dirname", "id", "mkdir", "rm", "sh", "sleep")


@pytest.fixture
def checkout(temp: Path) -> Path:
    """A checkout without a .venv, in a folder that every user can enter."""
    folder = temp / "check out"
    folder.mkdir(mode=0o755)
    for name in MADE_FROM:
        (folder / name).parent.mkdir(mode=0o755, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def foreign(checkout: Path) -> Iterator[Path]:
    """The checkout, once it can no longer be written to by whoever calls `call`."""
    yield checkout
    checkout.chmod(0o755)


def stranger() -> dict[str, Any]:
    """Root may write anywhere: in its place, `nobody` calls."""
    return {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}


def call(checkout: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [str(checkout / "run"), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS_MAX, cwd="/", **more)


@contextmanager
def calling(checkout: Path, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A call that is still at it; it is gone afterwards."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [str(checkout / "run"), "--version"], stdout=pipe, stderr=pipe, text=True, cwd="/", **more
    ) as call:
        try:
            yield call
        finally:
            call.kill()


def make_venv(checkout: Path) -> None:
    """A .venv whose stamp fits, as an earlier call has left it."""
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(PYTHON)
    (programs / "python").chmod(0o755)
    pinned = b"".join((checkout / name).read_bytes() for name in MADE_FROM)
    checksum = subprocess.run(["cksum"], input=pinned, capture_output=True, check=True).stdout.decode().strip()
    (checkout / ".venv" / "stamp").write_text(f"{checksum} run\n")


def hold(checkout: Path, pid: int | None) -> Path:
    lock = checkout / ".venv.lock"
    lock.mkdir()
    if pid is not None:
        (lock / "pid").write_text(f"{pid}\n")
    return lock


def test_a_checkout_that_cannot_be_written_to_is_refused_at_once(foreign: Path) -> None:
    foreign.chmod(0o555)
    ended = call(foreign, **stranger())
    assert ended.returncode == 2
    assert f"{foreign} cannot be written to" in ended.stderr
    assert "Copy it" in ended.stderr


def test_a_venv_that_cannot_be_written_to_is_refused_at_once(foreign: Path) -> None:
    make_venv(foreign)
    (foreign / ".venv" / "stamp").write_text("of older locks\n")
    (foreign / ".venv").chmod(0o555)
    foreign.chmod(0o777)
    ended = call(foreign, **stranger())
    (foreign / ".venv").chmod(0o755)
    assert (ended.returncode, "cannot be written to" in ended.stderr) == (2, True)


def test_a_checkout_of_somebody_else_just_runs_where_its_venv_fits(foreign: Path) -> None:
    make_venv(foreign)
    foreign.chmod(0o555)
    ended = call(foreign, **stranger())
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ran: -m onceward --version\n", "")


def test_a_second_call_says_once_whom_it_waits_for(checkout: Path) -> None:
    lock = hold(checkout, os.getpid())
    with calling(checkout) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(f"run: process {os.getpid()} is making .venv: waiting for it")
        make_venv(checkout)
        shutil.rmtree(lock)
        out, warned = process.communicate(timeout=SECONDS_MAX)
    assert (process.returncode, out, warned) == (0, "ran: -m onceward --version\n", "")
    assert not lock.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to hold a lock that another user meets")
def test_a_lock_held_by_another_user_is_not_taken_for_a_dead_ones(checkout: Path) -> None:
    """Its holder cannot be signalled by us: that does not mean that it has ended."""
    hold(checkout, os.getpid())
    checkout.chmod(0o777)
    with calling(checkout, **stranger()) as process:
        assert process.stderr is not None
        assert "waiting for it" in process.stderr.readline()
    assert (checkout / ".venv.lock" / "pid").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_a_lock_whose_holder_was_killed_is_taken_over(checkout: Path, signed: bool) -> None:
    """Unsigned: killed between the making of the lock and its signature."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    lock = hold(checkout, ended.pid if signed else None)
    make_venv(checkout)
    (checkout / ".venv" / "stamp").unlink()
    done = call(checkout, env={"PATH": str(programs(checkout))})
    assert (done.returncode, done.stdout) == (0, "ran: -m onceward --version\n"), done.stderr
    assert (lock.exists(), (checkout / ".venv" / "stamp").exists()) == (False, True)


def programs(checkout: Path) -> Path:
    """All that a call may find on its PATH: no network is behind this Python."""
    folder = checkout / "programs"
    folder.mkdir()
    for name in PROGRAMS:
        (folder / name).symlink_to(str(shutil.which(name)))
    shutil.copy(checkout / ".venv" / "bin" / "python", folder / "python3")
    return folder


def test_where_no_lock_can_be_made_it_does_not_wait_for_ever(checkout: Path) -> None:
    """A name that is taken by a link to nowhere: mkdir fails, and there is no lock that would ever be given back."""
    (checkout / ".venv.lock").symlink_to("nowhere")
    ended = call(checkout)
    assert (ended.returncode, ".venv.lock" in ended.stderr) == (2, True)
    assert not (checkout / ".venv").exists()

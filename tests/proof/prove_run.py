"""Runs `onceward prove` as a user would: a process of its own, its exit code, its JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from onceward_proof.prove.schedule import Schedule, schedule_text

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("--threads", "8", "--prefetch", "8")  # what `run` takes by default
SECONDS_MAX = 240
# A whole test's limit comes after that of its run: the run's own says more.
TEST_SECONDS_MAX = SECONDS_MAX + 60
KEY_PER_CALL = ("perform.py", "effect.call, effect, self._keys[0])", 'effect.call, effect, __import__("uuid").uuid4().hex)')


@dataclass(frozen=True)
class Proof:
    """What one run ended with."""

    code: int
    out: str
    document: dict[str, Any]

    def variant(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(variant for variant in self.document["variants"] if variant["name"] == name)
        return found


def write_schedule(schedule: Schedule, path: Path) -> None:
    path.write_text(schedule_text(schedule), encoding="utf-8")


def start(*arguments: str, source: Path = ROOT) -> subprocess.Popen[str]:
    path = os.pathsep.join(str(source / folder) for folder in ("src", "proof/src"))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-m", "onceward", "prove", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], report: Path) -> Proof:
    out, _ = process.communicate(timeout=SECONDS_MAX)
    document = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    return Proof(process.returncode, out, document)


def prove(report: Path, *arguments: str, source: Path = ROOT) -> Proof:
    return finish(start(*arguments, "--json", str(report), source=source), report)


def sabotaged(folder: Path, file: str, was: str, becomes: str, package: str = "src/onceward") -> Path:
    """A scratch copy of the source in which one piece is taken out; the piece must have been there."""
    for name in ("src", "examples", "proof"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / package / file
    text = path.read_text(encoding="utf-8")
    assert was in text, f"{file} has changed: the sabotage finds nothing to take out"
    path.write_text(text.replace(was, becomes), encoding="utf-8")
    return folder


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started, as they are now."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[str]:
    """Those that still run; psutil knows a process by its pid and start time, so a reused pid does not count."""
    return [str(p) for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

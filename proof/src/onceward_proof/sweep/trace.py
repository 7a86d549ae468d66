"""Kills a process at its n-th system call: strace is attached to the one thread whose calls are counted.

strace counts `when=` for each thread by itself, and for each kind of call by itself. So a process is not swept with `-f`
(a thread with fewer calls would be missed behind one with more), and not over a set of calls (`when=20` of a set is the
20th of one kind): kind by kind, on one thread, every call is met. That thread says when it is ready; what it imported and
connected before is not counted.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from onceward.errors import OncewardError, UsageError
from onceward.events import Event
from onceward_proof.nursery import die_with_parent

# What sends, stores or makes durable; and what receives: there, the server has acted, and the client does not know it.
CALLS: Final = (
    "write", "writev", "pwrite64", "sendto", "sendmsg", "sendmmsg", "fsync", "fdatasync", "recvfrom", "recvmsg",
)  # fmt: skip
NAME_BYTES: Final = 64
PR_SET_PTRACER: Final = 0x59616D61
PR_SET_PTRACER_ANY: Final = ctypes.c_ulong(-1)
HOW_TO_GET: Final = "strace is not installed: apt-get install strace (or dnf, apk); it is Linux's own"
HOW_TO_ALLOW: Final = (
    "strace may not trace here ({why}): it needs ptrace. In a container: --cap-add=SYS_PTRACE; else as root, or with "
    "sysctl kernel.yama.ptrace_scope at most 1"
)


class NoTrace(UsageError):
    """Nothing can be traced here; the text says what is missing and how to get it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How one traced run ended: killed at its last call, after the last `step` that it had reached; or by itself."""

    killed: bool
    calls: tuple[str, ...]  # each that it made, in order; the last was not carried out if it was killed there
    step: str


class Gate:
    """In the child: the thread that calls `open` waits here until it is traced. Its steps cost no system call."""

    def __init__(self, ready: int, go: int, steps: mmap.mmap) -> None:
        self._ready = ready
        self._go = go
        self._steps = steps
        self._opened = False

    def open(self) -> None:
        if not self._opened:
            self._opened = True
            os.write(self._ready, f"{threading.get_native_id()}\n".encode())
            os.read(self._go, 1)

    def listen(self, event: Event) -> None:
        self._steps[:NAME_BYTES] = event.point.encode().ljust(NAME_BYTES)


def check_strace() -> str:
    """The path of a strace that may trace. Raises `NoTrace`."""
    path = shutil.which("strace")
    if path is None:
        raise NoTrace(HOW_TO_GET)
    tried = subprocess.run([path, "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        raise NoTrace(HOW_TO_ALLOW.format(why=" ".join(tried.stderr.split())[:200]))
    return path


def killed_at(strace: str, call: str, n: int, work: Callable[[Gate], None], log: Path) -> Ended:
    """Run `work` in a child; it is killed before its n-th `call` is made, if it makes that many. `n` 0: it is watched."""
    steps = mmap.mmap(-1, NAME_BYTES)
    ready, ready_end = os.pipe()
    go_end, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        os.close(go)
        _allow_tracer()
        child(lambda: work(Gate(ready_end, go_end, steps)), log)
    os.close(ready_end)
    os.close(go_end)
    try:
        return _trace(strace, _injection(call, n), pid, ready, go, log, steps)
    finally:
        os.close(ready)
        os.close(go)
        steps.close()


def _injection(call: str, n: int) -> list[str]:
    return ["-e", f"inject={call}:signal=KILL:when={n}"] if n else []


def _trace(strace: str, injection: list[str], pid: int, ready: int, go: int, log: Path, steps: mmap.mmap) -> Ended:
    thread = os.read(ready, 32).strip().decode()
    if not thread:
        os.waitpid(pid, 0)
        raise OncewardError(f"the traced process ended before it was ready:\n{_tail(log)}")
    out = log.with_suffix(".strace")
    command = [strace, "-p", thread, "-o", str(out), "-s", "0", "-e", f"trace={','.join(CALLS)}", *injection]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        said = tracer.stderr.readline() if tracer.stderr else ""
        if "attached" not in said:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise NoTrace(HOW_TO_ALLOW.format(why=said.strip()))
        os.write(go, b"+")
        status = os.waitpid(pid, 0)[1]
    return _ended(status, out, log, steps[:NAME_BYTES].decode().strip("\0 "))


def _ended(status: int, out: Path, log: Path, step: str) -> Ended:
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise OncewardError(f"the traced process failed ({code}):\n{_tail(log)}")
    names = re.findall(r"^(\w+)\(", out.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return Ended(code != 0, tuple(names), step)


def run_child(work: Callable[[], None], log: Path) -> None:
    """Run `work` to its end in a child of its own. Raises `OncewardError`, with its log's end, when it fails."""
    pid = os.fork()
    if pid == 0:
        child(work, log)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OncewardError(f"a process of the proof failed ({code}):\n{_tail(log)}")


def child(work: Callable[[], None], log: Path) -> NoReturn:
    """Be a child that does `work` and nothing else; what it prints is in the log."""
    code = 1
    try:
        die_with_parent()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - told in the log, and by the exit code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _allow_tracer() -> None:
    """Where only descendants may be traced (yama), this process may be: its tracer is its sibling."""
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:] if log.exists() else ""

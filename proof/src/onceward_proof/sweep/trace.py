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
import socket
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from onceward.errors import OncewardError, UsageError
from onceward.events import Event
from onceward_proof.workers.fork import end_of, fork

# What sends, stores or makes durable; and what receives: there, the server has acted, and the client does not know it.
CALLS: Final = (
    "write", "writev", "pwrite64", "sendto", "sendmsg", "sendmmsg", "fsync", "fdatasync", "recvfrom", "recvmsg",
)  # fmt: skip
CALLS_IN_WORDS: Final = "writes, sends, receives or syncs"
# Where a thread waits for an answer. An answer that is sent in two parts is received in one call or in two, as it happens,
# and then the n-th call of one run is another than that of the next. With this pause both parts are there.
WAITS: Final = ("poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait")
PAUSE_MICROSECONDS: Final = 2_000
NAME_BYTES: Final = 64
BEFORE_THE_FIRST: Final = "receiving"  # the step of a kill before the first named point
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
class TracedRun:
    """How one traced run ended: killed at its last call, after the last `step` that it had reached; or by itself."""

    killed: bool
    calls: tuple[str, ...]  # each that it made, in order; the last was not carried out if it was killed there
    step: str


class Gate:
    """In the child: the thread that calls `open` waits here until it is traced.

    Its steps cost no system call.
    """

    def __init__(self, line: int, steps: mmap.mmap) -> None:
        self._line = line
        self._steps = steps
        self._opened = False

    def open(self) -> None:
        if not self._opened:
            self._opened = True
            os.write(self._line, str(threading.get_native_id()).encode())
            # Not recv: the thread waits here when it is attached to, and a recv would be counted.
            os.read(self._line, 1)

    def listen(self, event: Event) -> None:
        self._steps[:NAME_BYTES] = event.point.encode().ljust(NAME_BYTES)


def check_strace() -> str:
    """The path of a strace that may trace. Raises `NoTrace`."""
    path = shutil.which("strace")
    if path is None:
        raise NoTrace(HOW_TO_GET)
    trial = subprocess.run([path, "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        raise NoTrace(HOW_TO_ALLOW.format(why=" ".join(trial.stderr.split())[:200]))
    return path


def killed_at(strace: str, call: str, n: int, work: Callable[[Gate], None], log: Path) -> TracedRun:
    """Run `work` in a child; it is killed before its n-th `call` is made, if it makes that many. `n` 0: it is watched."""
    injection = ["-e", f"inject={call}:signal=KILL:when={n}"] if n else []
    ours, theirs = socket.socketpair()

    def work_traced() -> None:
        ours.close()
        _allow_tracer()
        work(Gate(theirs.fileno(), steps))

    with mmap.mmap(-1, NAME_BYTES) as steps, ours:
        pid = fork(work_traced, log)
        theirs.close()
        return _trace(strace, injection, pid, ours, log, steps)


def _trace(strace: str, injection: list[str], pid: int, line: socket.socket, log: Path, steps: mmap.mmap) -> TracedRun:
    thread = line.recv(32).decode()
    # Nothing is read: the child has closed its end without a word, so it has ended.
    if not thread:
        os.waitpid(pid, 0)
        raise OncewardError(f"the traced process ended before it was ready:\n{end_of(log)}")
    out = log.with_suffix(".strace")
    # strace pauses only at calls that it traces.
    pause = f"inject={','.join(WAITS)}:delay_exit={PAUSE_MICROSECONDS}"
    traced = f"trace={','.join((*CALLS, *WAITS))}"
    command = [strace, "-p", thread, "-o", str(out), "-s", "0", "-e", traced, "-e", pause, *injection]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        first_line = tracer.stderr.readline() if tracer.stderr else ""
        if "attached" not in first_line:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise NoTrace(HOW_TO_ALLOW.format(why=first_line.strip()))
        # Only now does the thread go on: no call of it is missed.
        line.send(b"+")
        status = os.waitpid(pid, 0)[1]
    return _traced_run(status, out, log, steps[:NAME_BYTES].decode().strip("\0 ") or BEFORE_THE_FIRST)


def _traced_run(status: int, out: Path, log: Path, step: str) -> TracedRun:
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise OncewardError(f"the traced process failed ({code}):\n{end_of(log)}")
    names = re.findall(r"^(\w+)\(", out.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return TracedRun(code != 0, tuple(name for name in names if name in CALLS), step)


def run_child(work: Callable[[], None], log: Path) -> None:
    """Run `work` to its end in a child of its own.

    Raises `OncewardError`, with its log's end, when it fails.
    """
    code = os.waitstatus_to_exitcode(os.waitpid(fork(work, log), 0)[1])
    if code:
        raise OncewardError(f"a process of the proof failed ({code}):\n{end_of(log)}")


def _allow_tracer() -> None:
    """Where only descendants may be traced (yama), this process may be: its tracer is its sibling."""
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)

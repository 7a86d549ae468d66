"""A child that does one piece of work, and is gone when its parent is."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def fork(work: Callable[[], None], log: Path | None = None) -> int:
    """A child does `work` and nothing else; its pid.

    What it prints is in `log`, its exit code is 0 or 1.

    The caller holds no thread and no connection that a child must not share: then the fork is a clean one.
    """
    # What is buffered here would be printed by the child, too.
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group, but is the controller's to handle
        if log is not None:
            _print_to(log)
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - the process ends, as it does in production; why is in the log
        with suppress(OSError):
            traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        # Not sys.exit: what the parent has registered for its own exit is not the child's to do.
        os._exit(code)


def end_of(log: Path) -> str:
    """The last of what a child has printed."""
    return log.read_text(encoding="utf-8", errors="replace")[-2000:] if log.exists() else ""


def die_with_parent() -> None:
    """On Linux: SIGKILL when the parent ends.

    Elsewhere the line to the controller ends, and the worker with it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _print_to(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)

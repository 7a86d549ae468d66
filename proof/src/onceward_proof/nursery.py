"""The warm parent: imports everything once, holds no thread and no connection, and forks a worker in milliseconds.

Run as a process of its own: `python -m onceward_proof.nursery FD`, where FD is its line to the controller. When that line
ends (the controller was killed), every child is killed at once.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import sys
from typing import Any

from onceward_proof.roles import Setting, child, prepare

PR_SET_PDEATHSIG = 1


class Nursery:
    """Forks on request, reaps, and tells."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._lines = b""
        self._children: set[int] = set()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's to handle
        signal.set_wakeup_fd(self._wake_write)
        self._setting: Setting | None = None
        self._prepared: Any = None

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._line, selectors.EVENT_READ, "line")
        selector.register(self._wake_read, selectors.EVENT_READ, "child")
        try:
            while True:
                for key, _ in selector.select():
                    if key.data == "child":
                        os.read(self._wake_read, 4096)
                        self._reap()
                    elif not self._read():
                        return
        finally:
            for pid in self._children:
                os.kill(pid, signal.SIGKILL)

    def _read(self) -> bool:
        data = self._line.recv(65536)
        if not data:
            return False
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))
        return True

    def _obey(self, order: dict[str, Any]) -> None:
        if "setting" in order:
            self._setting = Setting(**order["setting"])
            self._prepared = prepare(self._setting)
            gc.collect()
            gc.freeze()  # what is there now is shared with the children: the collector must not touch, and copy, it
            self._tell({"ready": self._setting.variant})
        else:
            self._fork(order["fork"], order["slot"])

    def _fork(self, role: str, slot: int) -> None:
        if self._setting is None:
            raise SystemExit("fork before setting")
        armed, orders = self._prepared
        pid = os.fork()
        if pid == 0:
            self._become_child()
            child(self._setting, armed, orders, role, slot)
        self._children.add(pid)
        self._tell({"forked": pid, "role": role, "slot": slot})

    def _become_child(self) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._line.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        die_with_parent()

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._children.discard(pid)
            self._tell({"exited": pid, "status": status})

    def _tell(self, what: dict[str, Any]) -> None:
        self._line.sendall(json.dumps(what).encode() + b"\n")


def die_with_parent() -> None:
    """On Linux: SIGKILL when the nursery ends. Elsewhere the line to the controller ends, and the worker with it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    line = socket.socket(fileno=int(sys.argv[1]))
    Nursery(line).run()


if __name__ == "__main__":
    main()

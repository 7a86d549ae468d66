"""The supervisor: a warm process that imports everything once, and forks a worker in milliseconds.

It holds no thread and no connection: a fork of it is a clean one.

Run as a process of its own: `python -m onceward_proof.workers.supervisor FD SETTING`, where FD is its line to the
controller and SETTING is JSON. When that line ends (the controller was killed), every worker is killed at once.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from onceward_proof.ablation.layer_removal import remove_layer
from onceward_proof.brokers.find import find_broker
from onceward_proof.prove.schedule import read_schedule
from onceward_proof.prove.variants import module_of
from onceward_proof.workers.fork import fork
from onceward_proof.workers.line import Line, waits_for
from onceward_proof.workers.reports import Note, Report
from onceward_proof.workers.roles import work_of
from onceward_proof.workers.setting import Role, Setting
from onceward_proof.workers.worker import Worker, warm_up


class Supervisor:
    """Forks on request, reaps, and reports both."""

    def __init__(self, line: socket.socket, setting: Setting) -> None:
        self._line = line
        self._setting = setting
        self._workers: set[int] = set()
        warm_up(setting.provider_url, setting.database)
        find_broker(setting.queue).warm_up(setting)
        if module := module_of(setting.variant, setting.queue):
            import_module(module)
        self._waits = waits_for(setting.schedule)
        self._orders = _orders(setting.schedule)
        gc.collect()
        gc.freeze()  # what is there now is shared with the workers: the collector must not touch, and copy, it

    def run(self) -> None:
        """Until the line ends. A worker's end interrupts the waiting: it is reported at once."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's to handle
        signal.signal(signal.SIGCHLD, lambda *_: self._reap())
        self._report(Report(Note.READY))
        try:
            for line in self._line.makefile("rb"):
                self._fork(*json.loads(line))
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for pid in self._workers:
                os.kill(pid, signal.SIGKILL)

    def _fork(self, role: Role, slot: int) -> None:
        # A worker that ends at once must not be reported before its fork is.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = fork(lambda: self._work(role, slot))
        self._workers.add(pid)
        self._report(Report(Note.FORKED, pid=pid, role=role, slot=slot))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def _work(self, role: Role, slot: int) -> None:
        """In the worker.

        What it raises ends it, as in production, and the controller starts another.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        os.close(self._line.detach())  # its reader is still in use, in the frame that forked: it must not be closed twice
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self._setting.control_socket)
        line = Line(connection, self._waits)
        line.report(Report(Note.HELLO, role=role, slot=slot, pid=os.getpid()))
        worker = Worker(self._setting, line, f"{role}-{slot}-{os.getpid()}", self._orders, f"{role}-{slot}")
        # Only now, in this one process: a layer that is removed does not come back.
        for layer in self._setting.without:
            remove_layer(layer, worker.sink)
        work_of(self._setting.variant, role)(worker)

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._workers.discard(pid)
            ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            self._report(Report(Note.EXITED, pid=pid, signal=ended_by))

    def _report(self, report: Report) -> None:
        self._line.sendall(report.encode())


def _orders(schedule_file: str) -> list[dict[str, Any]]:
    orders = read_schedule(Path(schedule_file)).orders if schedule_file else ()
    return [{"id": order.id, "amount": order.amount} for order in orders]


def main() -> None:
    line = socket.socket(fileno=int(sys.argv[1]))
    Supervisor(line, Setting(**json.loads(sys.argv[2]))).run()


if __name__ == "__main__":
    main()

"""`onceward prove --every-syscall`: one delivery and one relay pass, killed at the 1st, 2nd, ... n-th system call.

Random kills test the instants that they happen to hit. Here every instant is hit at which the thread that does the work had
acted on the outside, or was about to: before each call that writes, sends, receives or syncs. The server's state changes at
no other. Of the other threads (heartbeat, nudge) nothing is counted: they decide nothing.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

import psycopg
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onceward_proof.prove.options import ProveOptions
from onceward_proof.prove.run import ProofError
from onceward_proof.report.lines import count_of, print_beside, print_verdict
from onceward_proof.report.terminal import write_files
from onceward_proof.sweep.ambiguous import AmbiguousCommit, ambiguous_commits
from onceward_proof.sweep.payments_at_rest import Payments, deliver_one, start_payments
from onceward_proof.sweep.trace import CALLS_IN_WORDS, Gate, TracedRun, check_strace, killed_at, run_child
from onceward_proof.workers.setting import Role

CALLS_MAX: Final = 2000
TRIES_MAX: Final = 20  # at one call: a run may make one or two fewer than another
Subject = Literal["consumer", "ledger", "relay"]
Verdict = Literal["held", "broken", "incomplete"]
# The word that everybody reads, the exit code and the JSON come from one verdict.
EXIT_CODES: Final[dict[Verdict, int]] = {"held": 0, "broken": 1, "incomplete": 3}
COLOURS: Final[dict[Verdict, str]] = {"held": "green", "broken": "red", "incomplete": "yellow"}
ROLES: Final[dict[Subject, Role]] = {"consumer": "charge", "ledger": "ledger", "relay": "relay"}
SUBJECTS: Final[dict[Subject, str]] = {
    "consumer": "one delivery of the charge consumer: receive, claim, intent, charge, record, finish, ack",
    "ledger": "one delivery of the ledger consumer: receive, take with the booking, commit, ack",
    "relay": "one pass of the relay: connect, take, publish, delete, commit, look again",
}


@dataclass(slots=True)
class SubjectSweep:
    """One subject killed at each of its calls.

    `doubled`, `lost`: the orders, as the checker found them at the end.
    """

    subject: Subject
    calls: int = 0  # how many a run makes at most
    unreached: int = 0  # of them, those that no run came to any more
    kills: dict[str, TracedRun] = field(default_factory=dict)  # order -> how it was killed
    orders: list[str] = field(default_factory=list)
    doubled: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    sent_again: int = 0  # published twice under one id: a duplicate that the inbox turns away

    @property
    def ok(self) -> bool:
        return not self.doubled and not self.lost

    def to_json(self) -> dict[str, Any]:
        steps = Counter(run.step for run in self.kills.values())
        return {
            "calls": self.calls, "unreached": self.unreached, "kills": len(self.kills),
            "doubled": len(self.doubled), "lost": len(self.lost),
            "sent_again": self.sent_again, "by_call": dict(Counter(run.calls[-1] for run in self.kills.values())),
            "after_step": dict(steps),
        }  # fmt: skip


@dataclass(slots=True)
class Sweep:
    """What the whole command came to."""

    swept: list[SubjectSweep]
    ambiguous: list[AmbiguousCommit]

    @property
    def verdict(self) -> Verdict:
        """Harm is a fact, however much was tried; that nothing came to harm says something only of the calls reached."""
        if not all(each.ok for each in self.swept) or not all(commit.ok for commit in self.ambiguous):
            return "broken"
        return "incomplete" if self.unreached else "held"

    @property
    def ok(self) -> bool:
        return self.verdict == "held"

    @property
    def unreached(self) -> int:
        return sum(each.unreached for each in self.swept)

    def to_json(self) -> dict[str, Any]:
        shapes: dict[str, dict[str, Any]] = {}
        for commit in self.ambiguous:
            shapes.setdefault(commit.shape, {})[commit.cut] = commit.to_json()
        return {
            "syscalls": {each.subject: each.to_json() for each in self.swept},
            "ambiguous": shapes,
            "unreached": self.unreached,
            "verdict": self.verdict,
            "ok": self.ok,
        }


def prove_syscalls(options: ProveOptions) -> int:
    """Run it; returns 0 held, 1 doubled or lost, 3 incomplete: not every call was reached. Raises `NoTrace`."""
    console = Console()
    for name in ("onceward", "psycopg.pool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    strace = check_strace()
    console.print(f"killed before each call that {CALLS_IN_WORDS}, of the one thread that does the work:", highlight=False)
    with start_payments() as payments:
        sweeper = _Sweeper(payments, strace)
        swept: list[SubjectSweep] = []
        for subject, story in SUBJECTS.items():
            console.print(f"{subject}: {story}", highlight=False)
            swept.append(sweeper.sweep(subject))
        sweeper.judge(swept)
        sweep = Sweep(swept, ambiguous_commits(payments))
    print_sweep(console, sweep)
    write_files(options, console, sweep.to_json())
    return EXIT_CODES[sweep.verdict]


class _Sweeper:
    """Kills, recovers, looks; one order for each kill.

    Each sweep leaves the events that the next one needs.
    """

    def __init__(self, payments: Payments, strace: str) -> None:
        self._payments = payments
        self._strace = strace
        self._two_ids: set[str] = set()

    def sweep(self, subject: Subject) -> SubjectSweep:
        swept = SubjectSweep(subject)
        if subject == "relay":
            self._recover("relay")
            self._recover("ledger")
        made = Counter(self._kill(swept, "", 0).calls)
        for call in sorted(made):
            swept.calls += self._sweep_kind(swept, call, made[call])
        return swept

    def _sweep_kind(self, swept: SubjectSweep, call: str, calls_max: int) -> int:
        """The 1st, 2nd, ... n-th call of this kind, until a run ends by itself, and none has made that many: how many."""
        # Kind by kind: strace counts each kind of call by itself.
        for n in range(1, CALLS_MAX):
            for _ in range(TRIES_MAX):
                run = self._kill(swept, call, n)
                calls_max = max(calls_max, run.calls.count(call))
                if run.killed or n > calls_max:
                    break
            if run.killed:
                swept.kills[swept.orders[-1]] = run
            elif n > calls_max:
                return calls_max
            else:
                swept.unreached += 1
        raise ProofError(f"{swept.subject} has not ended by itself after {CALLS_MAX} calls of {call}")

    def _kill(self, swept: SubjectSweep, call: str, n: int) -> TracedRun:
        """One order; the subject is killed at its `n`-th `call`, and a fresh one brings it to its end."""
        subject = swept.subject
        order = self._prepare(subject, f"{subject}-{len(swept.orders) + 1:04d}")
        swept.orders.append(order)
        work = self._relay if subject == "relay" else partial(self._consume, ROLES[subject])
        run = killed_at(self._strace, call, n, work, self._payments.folder / f"{subject}.log")
        self._recover(ROLES[subject])
        if subject == "relay":
            ids = self._payments.ids("charges").get(order, [])
            swept.sent_again += len(ids) > 1
            self._two_ids |= {order} if len(set(ids)) != 1 else set()
        return run

    def _prepare(self, subject: Subject, order: str) -> str:
        """The subject has one thing to do; whose it is.

        The ledger books what the charge consumer was killed at.
        """
        if subject == "ledger":
            return self._payments.send_one("order.paid")
        self._payments.place(order)
        if subject == "consumer":
            self._payments.send_one("order.placed")
        return order

    def _consume(self, role: Role, gate: Gate) -> None:
        """One delivery on this thread, from a consumer that is open: heartbeat and nudge, on theirs, decide nothing."""
        source = self._payments.source(role)
        with self._payments.consumer(role).open(self._payments.database, source=source, listeners=[gate.listen]) as opened:
            gate.open()
            deliver_one(opened, source)

    def _relay(self, gate: Gate) -> None:
        """A whole pass on the lane's own thread, which opens the gate when it first asks for a connection."""

        def connect() -> psycopg.Connection:
            if threading.current_thread() is not threading.main_thread():
                gate.open()
            return psycopg.connect(self._payments.database, autocommit=True)

        self._payments.send_all(connect, gate.listen)

    def _recover(self, role: Role) -> None:
        log = self._payments.folder / f"recover-{role}.log"
        work = self._payments.send_all if role == "relay" else lambda: self._payments.consume(role)
        self._payments.until_empty(role, lambda: run_child(work, log))

    def judge(self, swept: list[SubjectSweep]) -> None:
        """Everything is brought to its end.

        Then the checker counts, and each harm goes to the sweep of its order.
        """
        recoveries: tuple[Role, ...] = ("relay", "charge", "relay", "ledger")
        for role in recoveries:
            self._recover(role)
        verdict = self._payments.judge()
        doubled = {*verdict.double_charged, *verdict.doubled_writes, *self._two_ids}
        lost = {*verdict.lost, *verdict.wrong_charge, *verdict.parked}
        for each in swept:
            # The ledger books what the charge consumer was killed at: harm of the first hop is not its doing.
            is_ledger = each.subject == "ledger"
            each.doubled = tuple(sorted((set(verdict.doubled_writes) if is_ledger else doubled) & set(each.orders)))
            each.lost = tuple(sorted((set(verdict.lost_second_hop) if is_ledger else lost) & set(each.orders)))
        if not verdict.clean and not doubled and not lost:
            raise ProofError(f"the checker is not content, and names no order: {verdict}")


def print_sweep(console: Console, sweep: Sweep) -> None:
    """Two tables, and the verdict with each harm below it."""
    table = Table(title=f"One thread, killed at each call that {CALLS_IN_WORDS}", title_justify="left")
    for name in ("", "calls", "SIGKILLs", "unreached", "doubled", "lost", "sent twice under one id"):
        table.add_column(name, justify="left" if not name else "right")
    for each in sweep.swept:
        harm = [Text(str(len(names)), style="bold red" if names else "bold green") for names in (each.doubled, each.lost)]
        unreached = Text(str(each.unreached), style="yellow" if each.unreached else "")
        table.add_row(each.subject, str(each.calls), str(len(each.kills)), unreached, *harm, str(each.sent_again))
    console.print(table)
    cuts = Table(title="The connection cut at COMMIT", title_justify="left")
    for name in ("", "the server", "settled", "redelivery", "doubled", "lost"):
        cuts.add_column(name, no_wrap=True)
    for commit in sweep.ambiguous:
        server = "committed" if commit.committed else "never got it"
        counts = (str(commit.doubled), str(commit.lost))
        cuts.add_row(commit.shape, server, commit.settlement, commit.redelivery, *counts)
    console.print(cuts)
    by_kind = Counter(run.calls[-1] for each in sweep.swept for run in each.kills.values())
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(by_kind.items()))
    commits = count_of(len(sweep.ambiguous), "ambiguous commit")
    summary = f"{count_of(by_kind.total(), 'kill')}, each at a call of its own ({kinds}); {commits}."
    if sweep.verdict == "incomplete":
        summary += f" {count_of(sweep.unreached, 'call')} could not be reached again: run it again."
    print_verdict(console, sweep.verdict.upper(), COLOURS[sweep.verdict], summary)
    for each in sweep.swept:
        for harm_name, names in (("doubled", each.doubled), ("lost", each.lost)):
            for order in names[:10]:
                print_beside(console, "  - ", f"{each.subject}: {harm_name}: {order} ({_where(each, order)})")


def _where(swept: SubjectSweep, order: str) -> str:
    run = swept.kills.get(order)
    if run is None:
        return "not killed"
    return f"killed at call {len(run.calls)}, {run.calls[-1]}, after {run.step}"

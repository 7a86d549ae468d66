"""The stage: one Postgres with a database for each side, one payment provider, and the workers of the scene."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, LiteralString, NoReturn

import psycopg

from onceward.message import Message
from onceward.schema import migrate
from onceward.testing.postgres import Cluster
from onceward.transports import pgmq
from onceward_proof.alongside import service_folder
from onceward_proof.demos.actor import Actor
from onceward_proof.demos.narrator import Narrator
from onceward_proof.demos.parts import PARTS
from onceward_proof.demos.player import Player, Setting, make_card
from onceward_proof.nursery import die_with_parent
from onceward_proof.provider import ProviderProcess
from payments import hardened, naive

QUEUES: Final = ("charges", "bookings", "unasked")
ORDER: Final = {"id": "O-123", "amount": 5000}
Order = dict[str, Any]
Evidence = dict[str, Any]


class Side:
    """One of the two ways: a database of its own, an account of its own at the provider."""

    def __init__(self, stage: Stage, name: str, dsn: str) -> None:
        self.name = name
        self.dsn = dsn
        self.account = f"sk_test_{name}"
        self._stage = stage

    # ---- the producer ------------------------------------------------------------------------------------------------

    def place(self, order: Order = ORDER, queue: str = "charges") -> None:
        """The order is in the database, and its event in the queue: each side by its own means."""
        if self.name == "naive":
            with psycopg.connect(self.dsn, autocommit=True) as conn, closing(pgmq.Sink(queue, self.dsn)) as sink:
                naive.place(conn, sink, order)
            return
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            hardened.place(conn, order)
        self.cast("hardened-relay", "relay", queue=queue, more={"until_empty": True}).finish()

    def store(self, order: Order) -> None:
        """The order and its account are in the database; nothing is sent."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute("INSERT INTO orders (id, amount) VALUES (%(id)s, %(amount)s)", order)
            conn.execute("INSERT INTO accounts (order_id) VALUES (%(id)s)", order)

    def send(self, messages: Sequence[Message], queue: str) -> None:
        with closing(pgmq.Sink(queue, self.dsn)) as sink:
            for error in sink.publish(messages):
                if error is not None:
                    raise error

    # ---- the workers -------------------------------------------------------------------------------------------------

    def cast(self, part: str, name: str, *gates: str, **setting: Any) -> Actor:
        """A worker process plays this part, and waits for its director at these gates."""
        chosen = Setting(
            dsn=self.dsn, provider_url=self._stage.provider.url, account=self.account, gates=frozenset(gates), **setting
        )
        return self._stage.cast(PARTS[part], name, chosen)

    # ---- the evidence ------------------------------------------------------------------------------------------------

    def charges(self) -> list[str]:
        """The ids of the charges in the provider's own ledger, oldest first."""
        return [charge["id"] for charge in self._ledger()]

    def charged(self) -> int:
        """The money that the provider took, in the smallest unit."""
        return sum(charge["amount"] for charge in self._ledger())

    def charges_per_order(self) -> dict[str, int]:
        orders = [charge["transfer_group"] for charge in self._ledger()]
        return {order: orders.count(order) for order in dict.fromkeys(orders)}

    def _ledger(self) -> list[dict[str, Any]]:
        return [charge for charge in self._stage.provider.admin("ledger") if charge["account"] == self.account]

    def look(self, statement: LiteralString) -> Any:
        """The first column of the first row; None where there is none."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            row = conn.execute(statement).fetchone()
        return None if row is None else row[0]

    def paid(self) -> int:
        return int(self.look("SELECT count(*) FROM orders WHERE status = 'paid'"))

    def queued(self, queue: str = "charges") -> int:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            row = conn.execute("SELECT queue_length FROM pgmq.metrics(%s)", (queue,)).fetchone()
        return int(row[0]) if row else 0

    def received_at(self, visibility_seconds: int) -> float:
        """When (monotonic) the one message of the charges was received: the queue knows until when it is hidden."""
        hidden_seconds = float(self.look("SELECT extract(epoch FROM vt - clock_timestamp()) FROM pgmq.q_charges"))
        return time.monotonic() + hidden_seconds - visibility_seconds

    def outbox(self) -> int:
        return int(self.look("SELECT count(*) FROM onceward.outbox"))


@dataclass(slots=True)
class Stage:
    """What a demonstration has: two sides, a narrator, and the claims that it must keep."""

    narrator: Narrator
    folder: Path
    provider: ProviderProcess
    claims: list[tuple[str, bool]] = field(default_factory=list)
    evidence: dict[str, Evidence] = field(default_factory=lambda: {"naive": {}, "hardened": {}})
    sides: dict[str, Side] = field(default_factory=dict)
    _actors: list[Actor] = field(default_factory=list)

    @property
    def naive(self) -> Side:
        return self.sides["naive"]

    @property
    def hardened(self) -> Side:
        return self.sides["hardened"]

    @property
    def log(self) -> Path:
        """What the workers wrote to standard error."""
        return self.folder / "workers.log"

    def claim(self, what: str, held: bool) -> None:
        """One claim of the demonstration; all must hold."""
        self.claims.append((what, held))

    def cast(self, part: Any, name: str, setting: Setting) -> Actor:
        """Fork a worker. This process holds no thread and no open connection: the fork is a clean one."""
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _play(part, setting, theirs, self.log)
        theirs.close()
        actor = Actor(name, pid, ours)
        self._actors.append(actor)
        return actor

    def exeunt(self) -> None:
        """Everyone off the stage, by SIGKILL."""
        for actor in self._actors:
            actor.close()
        self._actors.clear()


@contextmanager
def open_stage(narrator: Narrator) -> Iterator[Stage]:
    """A stage, and nothing of it left afterwards."""
    logging.getLogger("onceward").setLevel(logging.CRITICAL)
    logging.getLogger("payments").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster.start(name="demo"))
        folder = cluster.folder / "demo"
        folder.mkdir()
        provider = stack.enter_context(ProviderProcess.start(folder / "ledger.sqlite", log=folder / "provider.log"))
        stack.callback(cluster.kill)  # nothing of it is kept: there is nothing to stop gracefully for
        stack.callback(provider.kill)
        stage = Stage(narrator, folder, provider)
        stack.callback(stage.exeunt)
        _prepare(cluster, stage)
        _warm_up(provider)
        yield stage


def _prepare(cluster: Cluster, stage: Stage) -> None:
    """Two databases, alike."""
    dsn = cluster.create_database("naive")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute((service_folder() / "payments" / "schema.sql").read_bytes())
        migrate(conn)
        pgmq.install(conn)
        for queue in QUEUES:
            pgmq.create_queue(conn, queue)
    stage.sides["naive"] = Side(stage, "naive", dsn)
    stage.sides["hardened"] = Side(stage, "hardened", cluster.create_database("hardened", template="naive"))


def _warm_up(provider: ProviderProcess) -> None:
    """The SDK imports half of itself at its first call: here, and not in each worker."""
    make_card(provider.url, "sk_test_nobody").find({"transfer_group": "warm-up"}, "")


def _play(part: Any, setting: Setting, line: socket.socket, log: Path) -> NoReturn:
    """In the child: play the part until it ends or is killed; an exception is told, as a log would."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the director's to handle
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        player = Player(setting, line)
        try:
            part(player)
            player.cue("ended")
            code = 0
        except Exception as error:
            player.cue("raised", error=type(error).__name__)
            raise
    except BaseException:  # noqa: BLE001 - in the log; the process ends
        with suppress(OSError):
            traceback.print_exc()
    finally:
        os._exit(code)


def wait_until(moment: float) -> None:
    """Until this instant of the monotonic clock."""
    time.sleep(max(0.0, moment - time.monotonic()))

"""The provider's process: what outlives a kill, and how it starts and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import stripe
from tests.proof.provider_client import Account, Background, until, until_held

from onceward_proof.provider.server import ProviderProcess

DAY = 86_400


@pytest.fixture
def own_account(tmp_path: Path) -> Iterator[Account]:
    with ProviderProcess(tmp_path / "ledger.sqlite") as process:
        account = Account(process)
        yield account
        account.close()


# Crashes


def test_an_answer_outlives_a_kill(own_account: Account) -> None:
    first = own_account.charge("k")
    own_account.provider.kill()
    own_account.provider.restart()
    second = own_account.charge("k")
    assert second == first
    assert second.last_response is not None
    assert second.last_response.headers["Idempotent-Replayed"] == "true"
    assert len(own_account.ledger()) == 1


def test_a_charge_whose_answer_was_lost_in_a_kill_is_replayed(own_account: Account) -> None:
    own_account.fault("hold")
    first = Background(lambda: own_account.charge("k"))
    until_held(own_account.provider, 1)
    (charge,) = own_account.ledger()
    own_account.provider.restart()
    first.join()
    assert isinstance(first.error, stripe.APIConnectionError)
    assert own_account.charge("k").id == charge["id"]
    assert len(own_account.ledger()) == 1


def test_a_key_in_flight_at_a_kill_starts_afresh(own_account: Account) -> None:
    own_account.fault("slow", seconds=60)
    first = Background(lambda: own_account.charge("k"))
    until_held(own_account.provider, 1)
    own_account.provider.restart()
    first.join()
    assert isinstance(first.error, stripe.APIConnectionError)
    assert own_account.ledger() == []
    assert own_account.charge("k").paid


def test_the_clock_outlives_a_kill(own_account: Account) -> None:
    own_account.charge("k")
    own_account.provider.admin("clock", {"advance_seconds": DAY})
    own_account.provider.restart()
    assert own_account.provider.admin("clock")["offset_seconds"] == pytest.approx(DAY)
    own_account.charge("k")
    assert len(own_account.ledger()) == 2


# The process


def test_sigterm_ends_it_although_an_answer_is_held(own_account: Account) -> None:
    own_account.fault("hold")
    held = Background(lambda: own_account.charge("k"))
    until_held(own_account.provider, 1)
    own_account.provider.stop()
    held.join()
    assert isinstance(held.error, stripe.APIConnectionError)


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from onceward_proof.provider.server import ProviderProcess;"
        "p = ProviderProcess(Path(sys.argv[1])); print(p.pid, p.url, flush=True); os.kill(os.getpid(), 9)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "l.sqlite"], stdout=subprocess.PIPE, check=False, text=True
    )
    assert parent.returncode == -signal.SIGKILL
    pid = int(parent.stdout.split()[0])
    until(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    """Tell whether the process still runs; an orphan that init has not reaped yet does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_port_in_use_is_said_plainly(own_account: Account, tmp_path: Path) -> None:
    port = own_account.provider.url.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "onceward", "provider", "--port", port, "--database", str(tmp_path / "l.sqlite")]
    second = subprocess.run(command, capture_output=True, check=False, text=True)
    assert second.returncode == 2
    assert second.stderr == f"provider: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_by_hand_it_says_how_to_use_it_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onceward", "provider", "--database", str(tmp_path / "l.sqlite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        assert "SDK" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert "stripe.StripeClient" in process.stdout.read()
    assert process.returncode == 0

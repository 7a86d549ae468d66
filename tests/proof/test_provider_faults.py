"""Each fault does what its name says, no more; and a hook of one's own decides at both sides of a request."""

from __future__ import annotations

import asyncio
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stripe
from tests.proof.provider_client import Account, Background, until, until_held

from onceward_proof.provider.call import Call
from onceward_proof.provider.hook import GO, Hooks, Kind, Verdict
from onceward_proof.provider.server import ProviderProcess


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    with ProviderProcess(tmp_path_factory.mktemp("provider") / "ledger.sqlite") as process:
        yield process


@pytest.fixture
def account(provider: ProviderProcess) -> Iterator[Account]:
    provider.admin("faults", method="DELETE")
    account = Account(provider)
    yield account
    account.close()


def refused(account: Account, status: int) -> None:
    with pytest.raises(stripe.APIError) as caught:
        account.charge("k")
    assert caught.value.http_status == status


def leave_early(account: Account) -> None:
    hasty = Account(account.provider, account.name, timeout_seconds=0.2)
    with pytest.raises(stripe.APIConnectionError, match="timed out"):
        hasty.charge("k")
    hasty.close()


# Faults on demand


def test_slow_waits_before_the_effect(account: Account) -> None:
    account.fault("slow", seconds=60)
    slow = Background(lambda: account.charge("k"))
    until_held(account.provider, 1)
    assert account.ledger() == []
    assert account.provider.admin("release", {}) == {"released": 1}
    assert slow.join().paid


def test_slow_ends_by_itself(account: Account) -> None:
    account.fault("slow", seconds=0.05)
    assert account.charge("k").paid


def test_a_client_that_leaves_a_slow_request_does_not_stop_it(account: Account, provider: ProviderProcess) -> None:
    account.fault("slow", seconds=60)
    leave_early(account)
    assert account.ledger() == []
    provider.admin("release", {})
    until(lambda: len(account.ledger()) == 1)


def test_a_slow_response_comes_after_the_effect(account: Account) -> None:
    account.fault("slow_response", seconds=60)
    slow = Background(lambda: account.charge("k"))
    until_held(account.provider, 1)
    assert len(account.ledger()) == 1
    assert account.charge("k").id == account.ledger()[0]["id"]  # stored, and so replayed already
    account.provider.admin("release", {})
    assert slow.join().id == account.ledger()[0]["id"]


def test_error_before_has_no_effect_and_is_stored(account: Account) -> None:
    account.fault("error_before")
    refused(account, 500)
    refused(account, 500)
    assert account.ledger() == []
    assert account.fired() == [1]


def test_error_after_has_its_effect_and_is_stored(account: Account) -> None:
    account.fault("error_after")
    refused(account, 500)
    refused(account, 500)
    assert len(account.ledger()) == 1


@pytest.mark.parametrize("status", [500, 503])
def test_an_unsaved_error_has_no_effect_and_is_not_stored(account: Account, status: int) -> None:
    account.fault("unsaved_error", status=status)
    refused(account, status)
    assert account.ledger() == []
    assert account.charge("k").paid


def test_cut_after_charges_without_a_byte_of_an_answer(account: Account) -> None:
    account.fault("cut_after")
    with pytest.raises(stripe.APIConnectionError) as caught:
        account.charge("k")
    assert "closed connection without response" in str(caught.value)
    (charge,) = account.ledger()
    again = account.charge("k")
    assert again.id == charge["id"]
    assert again.last_response is not None
    assert again.last_response.headers["Idempotent-Replayed"] == "true"


def test_drop_request_does_nothing(account: Account) -> None:
    account.fault("drop_request")
    with pytest.raises(stripe.APIConnectionError):
        account.charge("k")
    assert account.ledger() == []
    assert account.charge("k").paid


def test_hold_sends_the_answer_once_released(account: Account) -> None:
    account.fault("hold")
    held = Background(lambda: account.charge("k"))
    until_held(account.provider, 1)
    assert account.provider.admin("open") == {"open_requests": 1, "held": 1}
    assert len(account.ledger()) == 1
    assert account.provider.admin("release", {"transfer_group": "another"}) == {"released": 0}
    assert account.provider.admin("release", {"transfer_group": "O-1"}) == {"released": 1}
    assert held.join().id == account.ledger()[0]["id"]
    assert account.provider.admin("open") == {"open_requests": 0, "held": 0}


def test_hold_ends_when_the_client_leaves(account: Account, provider: ProviderProcess) -> None:
    account.fault("hold")
    leave_early(account)
    until(lambda: bool(provider.admin("open")["open_requests"] == 0))
    assert len(account.ledger()) == 1


def test_a_fault_strikes_what_it_matches_as_often_as_it_says(account: Account) -> None:
    account.fault("rate_limit", times=2, match={"transfer_group": "O-2", "path": "/v1/charges"})
    account.charge(group="O-1")
    for _ in range(2):
        with pytest.raises(stripe.RateLimitError):
            account.charge(group="O-2")
    account.charge(group="O-2")
    assert account.fired() == [2]


def test_a_fault_strikes_a_look_up_too(account: Account) -> None:
    account.fault("unsaved_error", match={"method": "GET"})
    account.charge()
    with pytest.raises(stripe.APIError):
        account.client.v1.charges.list({"transfer_group": "O-1"})


@pytest.mark.parametrize(
    "wrong", [{"fault": "sloth"}, {}, {"fault": "slow", "match": {"colour": "red"}}, {"fault": "slow", "second": 1}]
)
def test_a_fault_that_cannot_be_is_refused(account: Account, wrong: dict[str, Any]) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        account.provider.admin("faults", wrong)
    caught.value.close()
    assert caught.value.code == 400
    assert account.provider.admin("faults") == []


def test_two_faults_at_one_request_do_not_hang_together(account: Account) -> None:
    account.fault("drop_request")
    account.fault("cut_after")
    for _ in range(2):
        with pytest.raises(stripe.APIConnectionError):
            account.charge("k")
    assert account.fired() == [1, 1]
    assert len(account.ledger()) == 1


def test_many_threads_with_one_key_charge_once(account: Account) -> None:
    account.fault("slow_response", times=None, seconds=0.01)
    gate = threading.Barrier(8)

    def charge() -> Any:
        gate.wait()
        return account.charge("k")

    calls = [Background(charge) for _ in range(8)]
    ids = {call.join().id for call in calls if call.join()}
    assert len(ids) == len(account.ledger()) == 1


# A hook of one's own


class Script:
    """Says what each transfer group is to meet, and writes down what it was asked."""

    def __init__(self, record: str) -> None:
        self._record = Path(record)

    async def request(self, call: Call) -> Verdict:
        """Drop what is called "drop"."""
        self._write("request", call)
        return Verdict(Kind.DROP_REQUEST) if call.transfer_group == "drop" else GO

    async def response(self, call: Call) -> Verdict:
        """Cut what is called "cut", hide the answer of "hide"."""
        self._write("response", call)
        kinds = {"cut": Kind.CUT_AFTER, "hide": Kind.UNSAVED_ERROR}
        return Verdict(kinds.get(str(call.transfer_group), Kind.GO), status=503)

    def _write(self, side: str, call: Call) -> None:
        charged = "charged" if call.charge else "-"
        words = [side, call.transfer_group, call.worker, call.idempotency_key, call.status, charged]
        with self._record.open("a") as file:
            print(*words, "replayed" if call.replayed else "first", file=file)


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[tuple[Account, Path]]:
    record = tmp_path / "record"
    hook = f"{__name__}:Script"
    with ProviderProcess(tmp_path / "ledger.sqlite", hook=hook, hook_argument=str(record)) as process:
        account = Account(process)
        yield account, record
        account.close()


def test_a_hook_is_asked_at_both_sides(scripted: tuple[Account, Path]) -> None:
    account, record = scripted
    account.charge("k", worker="w1")
    account.charge("k", worker="w2")
    assert record.read_text().splitlines() == [
        "request O-1 w1 k None - first",
        "response O-1 w1 k 200 charged first",
        "request O-1 w2 k None - replayed",
        "response O-1 w2 k 200 - replayed",
    ]


def test_a_hook_drops_a_request(scripted: tuple[Account, Path]) -> None:
    account, record = scripted
    with pytest.raises(stripe.APIConnectionError):
        account.charge("k", group="drop")
    assert account.ledger() == []
    assert len(record.read_text().splitlines()) == 1


def test_a_hook_cuts_an_answer(scripted: tuple[Account, Path]) -> None:
    account, _ = scripted
    with pytest.raises(stripe.APIConnectionError):
        account.charge("k", group="cut")
    assert len(account.ledger()) == 1


def test_a_hook_hides_an_answer_that_stays_stored(scripted: tuple[Account, Path]) -> None:
    account, _ = scripted
    with pytest.raises(stripe.APIError) as caught:
        account.charge("k", group="hide")
    assert caught.value.http_status == 503
    (charge,) = account.ledger()
    assert account.client.v1.charges.retrieve(charge["id"]).paid


def test_a_hook_decides_before_the_faults_on_demand(scripted: tuple[Account, Path]) -> None:
    account, _ = scripted
    account.fault("rate_limit")
    with pytest.raises(stripe.APIConnectionError):
        account.charge("k", group="drop")


class TooLate(Script):
    """Asks at the response for what can only be had at the request."""

    async def response(self, _call: Call) -> Verdict:
        """Ask for a 500 that would have to be stored already."""
        return Verdict(Kind.ERROR_BEFORE)


def test_a_verdict_that_comes_too_late_is_a_mistake(tmp_path: Path) -> None:
    call = Call("POST", "/v1/charges", "sk_test_x", None, None, {})
    with pytest.raises(ValueError, match="only be asked for at the request"):
        asyncio.run(Hooks(TooLate(str(tmp_path / "record"))).response(call))

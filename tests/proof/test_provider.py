"""The provider obeys Stripe's documented rules, one test a rule, driven by the official SDK."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import stripe
from tests.proof.provider_client import Account, Background, until, until_held

from onceward_proof.provider.server import ProviderProcess

DAY = 86_400


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    with ProviderProcess(tmp_path_factory.mktemp("provider") / "ledger.sqlite") as process:
        yield process


@pytest.fixture
def own_provider(tmp_path: Path) -> Iterator[ProviderProcess]:
    with ProviderProcess(tmp_path / "ledger.sqlite") as process:
        yield process


@pytest.fixture
def account(provider: ProviderProcess) -> Iterator[Account]:
    account = Account(provider)
    yield account
    account.close()


@pytest.fixture
def own_account(own_provider: ProviderProcess) -> Iterator[Account]:
    account = Account(own_provider)
    yield account
    account.close()


def headers_of(answer: Any) -> Any:
    return answer.last_response.headers


def error_of(caught: pytest.ExceptionInfo[stripe.StripeError]) -> dict[str, Any]:
    error: dict[str, Any] = caught.value.json_body["error"]  # type: ignore[index]
    return error


def raw(account: Account, method: str, path: str, form: dict[str, str], **headers: str) -> tuple[int, Any]:
    """Send a request that the SDK would not: it always adds a key of its own."""
    connection = http.client.HTTPConnection(account.provider.url.removeprefix("http://"), timeout=10)
    headers = {"Authorization": f"Bearer {account.name}", **headers}
    connection.request(method, path, urlencode(form), headers)
    answer = connection.getresponse()
    body = json.load(answer)
    connection.close()
    return answer.status, body


# Objects


def test_a_charge_has_stripes_shape(account: Account) -> None:
    charge = account.charge(metadata={"order": "7"}, description="an order")
    assert charge.id.startswith("ch_")
    assert charge.object == "charge"
    assert (charge.amount, charge.currency, charge.status, charge.paid) == (500, "usd", "succeeded", True)
    assert (charge.to_dict()["metadata"], charge.description) == ({"order": "7"}, "an order")
    assert headers_of(charge)["request-id"].startswith("req_")


def test_a_charge_is_found_by_its_id(account: Account) -> None:
    charge = account.charge()
    assert account.client.v1.charges.retrieve(charge.id) == charge


def test_charges_are_listed_newest_first_by_transfer_group(account: Account) -> None:
    first, second = account.charge(group="A"), account.charge(group="A")
    account.charge(group="B")
    found = account.client.v1.charges.list({"transfer_group": "A"})
    assert [charge.id for charge in found.data] == [second.id, first.id]
    assert not found.has_more


def test_a_list_is_walked_page_by_page(account: Account) -> None:
    ids = [account.charge().id for _ in range(5)]
    page = account.client.v1.charges.list({"limit": 2})
    assert page.has_more
    assert [charge.id for charge in page.auto_paging_iter()] == ids[::-1]


def test_a_list_is_bounded_by_time(own_account: Account) -> None:
    early = own_account.charge()
    own_account.provider.admin("clock", {"advance_seconds": 3600})
    late = own_account.charge()
    listed = own_account.client.v1.charges.list
    assert [charge.id for charge in listed({"created": {"gte": early.created + 60}}).data] == [late.id]
    assert [charge.id for charge in listed({"created": {"lte": early.created}}).data] == [early.id]


def test_accounts_do_not_see_each_other(account: Account, provider: ProviderProcess) -> None:
    other = Account(provider)
    charge = other.charge()
    other.close()
    assert account.client.v1.charges.list().data == []
    with pytest.raises(stripe.InvalidRequestError) as caught:
        account.client.v1.charges.retrieve(charge.id)
    assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")


def test_an_unknown_path_is_404(account: Account) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        account.client.v1.customers.create({"name": "x"})
    assert caught.value.http_status == 404
    assert "Unrecognized request URL" in str(caught.value)
    assert raw(account, "GET", "/v1/nothing", {})[0] == 404


# The idempotency layer


def test_the_same_key_replays_status_and_body(account: Account) -> None:
    first, second = account.charge("k"), account.charge("k")
    assert second == first
    assert "Idempotent-Replayed" not in headers_of(first)
    assert headers_of(second)["Idempotent-Replayed"] == "true"
    assert headers_of(second)["original-request"] == headers_of(first)["request-id"]
    assert len(account.ledger()) == 1


def test_the_order_of_parameters_does_not_count(account: Account) -> None:
    form = {"amount": "500", "currency": "usd", "source": "tok_visa"}
    backwards = dict(reversed(form.items()))
    key = {"Idempotency-Key": "k"}
    assert raw(account, "POST", "/v1/charges", form, **key) == raw(account, "POST", "/v1/charges", backwards, **key)


def test_a_stored_500_is_replayed(account: Account) -> None:
    account.fault("error_before")
    for replayed in (None, "true"):
        with pytest.raises(stripe.APIError) as caught:
            account.charge("k")
        assert caught.value.http_status == 500
        headers: Any = caught.value.headers
        assert headers.get("Idempotent-Replayed") == replayed
    assert account.ledger() == []


def test_a_declined_card_is_replayed(account: Account) -> None:
    ids = set()
    for _ in range(2):
        with pytest.raises(stripe.CardError) as caught:
            account.charge("k", source="tok_chargeDeclined")
        assert (caught.value.http_status, caught.value.code) == (402, "card_declined")
        ids.add(error_of(caught)["charge"])
    assert len(ids) == 1
    assert account.ledger() == []  # a failed charge is listed, but moved no money
    assert [charge.status for charge in account.client.v1.charges.list().data] == ["failed"]


def test_other_parameters_under_the_same_key_are_refused(account: Account) -> None:
    account.charge("k")
    with pytest.raises(stripe.IdempotencyError) as caught:
        account.charge("k", amount=501)
    assert caught.value.http_status == 400
    assert error_of(caught)["type"] == "idempotency_error"
    assert len(account.ledger()) == 1


def test_a_key_in_flight_is_409_and_free_afterwards(own_account: Account) -> None:
    own_account.fault("slow", seconds=60)
    first = Background(lambda: own_account.charge("k"))
    until_held(own_account.provider, 1)
    with pytest.raises(stripe.APIError) as caught:
        own_account.charge("k")
    assert caught.value.http_status == 409
    assert error_of(caught)["code"] == "idempotency_key_in_use"
    assert error_of(caught)["type"] == "invalid_request_error"
    own_account.provider.admin("release", {})
    assert own_account.charge("k" + "2").id != first.join().id
    assert own_account.charge("k") == first.result
    assert len(own_account.ledger()) == 2


def test_a_validation_failure_is_not_stored(account: Account) -> None:
    for wrong in ({"amount": 0}, {"amount": "x"}, {"currency": ""}, {"colour": "red"}, {"source": "visa"}):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            account.charge("k", **wrong)
        assert (caught.value.http_status, caught.value.param) == (400, next(iter(wrong)))
    assert account.charge("k").paid


def test_a_401_is_not_stored(account: Account) -> None:
    stranger = Account(account.provider, "rk_live_1")
    with pytest.raises(stripe.AuthenticationError) as caught:
        stranger.charge("k")
    stranger.close()
    assert caught.value.http_status == 401
    assert account.charge("k").paid


def test_a_429_is_not_stored(account: Account) -> None:
    account.fault("rate_limit")
    with pytest.raises(stripe.RateLimitError):
        account.charge("k")
    assert account.charge("k").paid
    assert len(account.ledger()) == 1


def test_keys_belong_to_the_account(account: Account, provider: ProviderProcess) -> None:
    other = Account(provider)
    assert other.charge("k", amount=900).id != account.charge("k").id
    other.close()


def test_a_key_has_at_most_255_characters(account: Account) -> None:
    assert account.charge("k" * 255).paid
    with pytest.raises(stripe.InvalidRequestError) as caught:
        account.charge("k" * 256)
    assert caught.value.http_status == 400
    assert len(account.ledger()) == 1


def test_a_key_is_pruned_once_it_is_24_hours_old_and_then_charges_again(own_account: Account) -> None:
    first = own_account.charge("k")
    own_account.provider.admin("clock", {"advance_seconds": DAY - 60})
    assert own_account.charge("k") == first
    own_account.provider.admin("clock", {"advance_seconds": 60})
    second = own_account.charge("k")
    assert second.id != first.id
    assert second.created >= first.created + DAY
    assert own_account.charge("k") == second
    assert [charge["idempotency_key"] for charge in own_account.ledger()] == ["k", "k"]


def test_the_window_can_be_fractions_of_a_second(own_account: Account) -> None:
    first = own_account.charge("k")
    own_account.provider.admin("config", {"window_seconds": 0.05})
    until(lambda: own_account.charge("k").id != first.id)
    assert own_account.provider.admin("config") == {"window_seconds": 0.05}


def test_the_clock_can_be_set(own_account: Account) -> None:
    own_account.provider.admin("clock", {"set": 2_000_000_000})
    assert own_account.charge().created in range(2_000_000_000, 2_000_000_030)


def test_without_a_key_every_request_charges(account: Account) -> None:
    form = {"amount": "500", "currency": "usd", "source": "tok_visa"}
    statuses = [raw(account, "POST", "/v1/charges", form)[0] for _ in range(2)]
    assert statuses == [200, 200]
    assert [charge["idempotency_key"] for charge in account.ledger()] == [None, None]


def test_the_sdk_makes_a_key_for_each_call(account: Account) -> None:
    account.charge()
    account.charge()
    assert len({charge["idempotency_key"] for charge in account.ledger()} - {None}) == 2


def test_a_get_ignores_its_key(account: Account) -> None:
    charge = account.charge("k")
    found = [raw(account, "GET", f"/v1/charges/{charge.id}", {}, **{"Idempotency-Key": "k"})[0] for _ in range(2)]
    assert found == [200, 200]
    assert account.charge("k") == charge


def test_the_worker_is_evidence_and_not_compared(account: Account) -> None:
    first, second = account.charge("k", worker="w1"), account.charge("k", worker="w2")
    assert second == first
    (charge,) = account.ledger()
    assert (charge["worker"], charge["idempotency_key"], charge["transfer_group"]) == ("w1", "k", "O-1")
    assert charge["created_real"] > 0

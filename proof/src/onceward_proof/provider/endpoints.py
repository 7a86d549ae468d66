"""Charges: what is checked before one begins, and what it does once it has begun.

The idempotency layer (app.py) needs the two apart: what `check` refuses is stored under no key, what `execute` answers
is stored, success or failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from onceward_proof.provider import answers
from onceward_proof.provider.answers import Answer, JsonObject, invalid
from onceward_proof.provider.call import Call
from onceward_proof.provider.ledger import Ledger

Parameters = Mapping[str, str]

AMOUNT_MAX: Final = 99_999_999  # eight digits, as Stripe has it
LIMIT_MAX: Final = 100
DECLINED_SOURCES: Final = frozenset({"tok_chargeDeclined", "tok_visa_chargeDeclined"})
CHARGES: Final = "/v1/charges"
REQUIRED: Final = ("amount", "currency", "source")
KNOWN: Final = frozenset({*REQUIRED, "description", "transfer_group", "capture", "customer", "receipt_email"})


def check(parameters: Parameters) -> None:
    """Want a positive amount, a currency and a source, and nothing unknown. Raises `Invalid`."""
    for name in parameters:
        if name not in KNOWN and not name.startswith("metadata["):
            raise _unknown(name)
    for name in REQUIRED:
        if not parameters.get(name):
            raise invalid(f"Missing required param: {name}.", "parameter_missing", name)
    _check_amount(_integer(parameters, "amount"))
    if len(parameters["currency"]) != 3:
        raise invalid(f"Invalid currency: {parameters['currency']}.", None, "currency")
    if not parameters["source"].startswith(("tok_", "card_", "src_")):
        raise invalid(f"No such token: '{parameters['source']}'", "resource_missing", "source")


def execute(ledger: Ledger, call: Call) -> Answer:
    """Add the charge, inside the caller's transaction; a declined one is added too, as failed: it moved no money."""
    declined = call.parameters["source"] in DECLINED_SOURCES
    charge = ledger.add(_charge(call.parameters, declined=declined), call)
    return answers.declined(charge=charge["id"]) if declined else answers.ok(charge, charge["id"])


def read(ledger: Ledger, call: Call) -> Answer | None:
    """Answer a GET, of one object or of the list of charges; None for a path that is not served."""
    if call.path == CHARGES:
        return _list(ledger, call.account, call.parameters)
    collection, _, id_ = call.path.rpartition("/")
    if collection != CHARGES:
        return None
    charge = ledger.charge(call.account, id_)
    return answers.missing(id_) if charge is None else answers.ok(charge)


def _list(ledger: Ledger, account: str, parameters: Parameters) -> Answer:
    limit = _integer(parameters, "limit") if "limit" in parameters else 10
    if not 1 <= limit <= LIMIT_MAX:
        raise invalid("This value must be between 1 and 100.", "parameter_invalid_integer", "limit")
    found = ledger.newest(account, limit + 1, _filters(ledger, account, parameters))
    return answers.ok({"object": "list", "url": CHARGES, "has_more": len(found) > limit, "data": found[:limit]})


def _filters(ledger: Ledger, account: str, parameters: Parameters) -> dict[str, Any]:
    """Turn the query into the ledger's filters.

    Stripe's `created` is whole seconds, the ledger's is not.
    """
    bounds = {"created[gte]": ("since", 0), "created[gt]": ("since", 1), "created[lt]": ("until", 0)}
    bounds |= {"created[lte]": ("until", 1)}
    filters: dict[str, Any] = {}
    for name, value in parameters.items():
        if name in bounds:
            filter_, more = bounds[name]
            filters[filter_] = _integer(parameters, name) + more
        elif name == "transfer_group":
            filters[name] = value
        elif name == "starting_after":
            filters["after"] = _existing(ledger, account, value)
        elif name != "limit":
            raise _unknown(name)
    return filters


def _existing(ledger: Ledger, account: str, id_: str) -> str:
    if ledger.charge(account, id_) is None:
        raise invalid(f"No such charge: '{id_}'", "resource_missing", "starting_after")
    return id_


def _check_amount(amount: int) -> None:
    if amount < 1:
        raise invalid("This value must be greater than or equal to 1.", "parameter_invalid_integer", "amount")
    if amount > AMOUNT_MAX:
        raise invalid("Amount must be no more than $999,999.99", "amount_too_large", "amount")


def _integer(parameters: Parameters, name: str) -> int:
    text = parameters[name]
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 18):
        raise invalid(f"Invalid integer: {text}", "parameter_invalid_integer", name)
    return int(text)


def _unknown(name: str) -> answers.Invalid:
    return invalid(f"Received unknown parameter: {name}", "parameter_unknown", name)


def _metadata(parameters: Parameters) -> dict[str, str]:
    return {name[9:-1]: value for name, value in parameters.items() if name.startswith("metadata[")}


def _charge(parameters: Parameters, *, declined: bool) -> JsonObject:
    amount = int(parameters["amount"])
    failure = ("card_declined", "Your card was declined.") if declined else (None, None)
    return {
        "amount": amount,
        "amount_captured": 0 if declined else amount,
        "amount_refunded": 0,
        "captured": not declined,
        "currency": parameters["currency"].lower(),
        "description": parameters.get("description"),
        "failure_code": failure[0],
        "failure_message": failure[1],
        "metadata": _metadata(parameters),
        "paid": not declined,
        "payment_intent": None,
        "refunded": False,
        "status": "failed" if declined else "succeeded",
        "transfer_group": parameters.get("transfer_group"),
    }

"""Charges, payment intents and refunds: what each checks before it begins, and what it does once it has begun.

The idempotency layer (app.py) needs the two apart: what `check` refuses is stored under no key, what `execute` answers
is stored, success or failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from onceward_proof.provider import answers
from onceward_proof.provider.answers import Answer, JsonObject, invalid
from onceward_proof.provider.ledger import Ledger, Origin

Parameters = Mapping[str, str]

AMOUNT_MAX: Final = 99_999_999  # eight digits, as Stripe has it
LIMIT_MAX: Final = 100
DECLINED_SOURCES: Final = frozenset({"tok_chargeDeclined", "tok_visa_chargeDeclined"})
DECLINED_METHODS: Final = frozenset({"pm_card_chargeDeclined", "pm_card_visa_chargeDeclined"})


class Endpoint(Protocol):
    """One POST endpoint."""

    def check(self, parameters: Parameters) -> None:
        """Raise `Invalid` if the parameters are wrong in themselves."""

    def execute(self, ledger: Ledger, parameters: Parameters, origin: Origin) -> Answer:
        """Take effect and answer, inside the caller's transaction."""


@dataclass(frozen=True, slots=True)
class CreateCharge:
    """POST /v1/charges: charge a source, now."""

    required = ("amount", "currency", "source")
    known = frozenset({*required, "description", "transfer_group", "capture", "customer", "receipt_email"})

    def check(self, parameters: Parameters) -> None:
        """Want a positive amount, a currency and a source, and nothing unknown."""
        _check(parameters, self.required, self.known)
        if not parameters["source"].startswith(("tok_", "card_", "src_")):
            raise invalid(f"No such token: '{parameters['source']}'", "resource_missing", "source")

    def execute(self, ledger: Ledger, parameters: Parameters, origin: Origin) -> Answer:
        """Add the charge; a declined one is added too, as failed: it moved no money."""
        declined = parameters["source"] in DECLINED_SOURCES
        charge = ledger.add("charge", "ch", _charge(parameters, declined=declined), origin)
        return answers.declined(charge=charge["id"]) if declined else answers.ok(charge, charge["id"])


@dataclass(frozen=True, slots=True)
class CreatePaymentIntent:
    """POST /v1/payment_intents: with `confirm=true` it makes a charge, without it none."""

    required = ("amount", "currency")
    sent = ("off_session", "return_url", "customer", "receipt_email")
    methods = (
        "payment_method_types[0]",
        "automatic_payment_methods[enabled]",
        "automatic_payment_methods[allow_redirects]",
    )
    known = frozenset({*required, *methods, *sent, "payment_method", "confirm", "transfer_group", "description"})

    def check(self, parameters: Parameters) -> None:
        """Want a positive amount and a currency; to confirm, a payment method as well."""
        _check(parameters, self.required, self.known)
        if parameters.get("confirm") == "true" and not parameters.get("payment_method", "").startswith("pm_"):
            raise invalid("You cannot confirm this PaymentIntent without a payment method.", None, "payment_method")

    def execute(self, ledger: Ledger, parameters: Parameters, origin: Origin) -> Answer:
        """Add the intent, confirm it if asked to, and answer with what became of it."""
        intent = ledger.add("payment_intent", "pi", _intent(parameters), origin)
        if parameters.get("confirm") != "true":
            return answers.ok(intent)
        return _confirmed(ledger, intent, parameters, origin)


@dataclass(frozen=True, slots=True)
class CreateRefund:
    """POST /v1/refunds: give back a charge, or a part of it."""

    required = ("charge",)
    known = frozenset({*required, "amount", "reason"})

    def check(self, parameters: Parameters) -> None:
        """Want the id of a charge; the amount is optional."""
        _check(parameters, self.required, self.known)

    def execute(self, ledger: Ledger, parameters: Parameters, origin: Origin) -> Answer:
        """Add the refund and lessen what is left of its charge."""
        charge = ledger.get(origin.account, "charge", parameters["charge"])
        if charge is None:
            return answers.missing("charge", parameters["charge"], "charge")
        left = charge["amount"] - charge["amount_refunded"] if charge["paid"] else 0
        amount = int(parameters.get("amount", left))
        if left == 0:
            words = f"Charge {charge['id']} has already been refunded."
            return answers.error(400, "invalid_request_error", words, code="charge_already_refunded")
        if amount > left:
            words = f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})"
            return answers.error(400, "invalid_request_error", words, param="amount")
        return answers.ok(_refund(ledger, charge, amount, parameters, origin))


POSTS: Final[Mapping[str, Endpoint]] = {
    "/v1/charges": CreateCharge(),
    "/v1/payment_intents": CreatePaymentIntent(),
    "/v1/refunds": CreateRefund(),
}
KINDS: Final = {"charges": "charge", "payment_intents": "payment_intent", "refunds": "refund"}


def read(ledger: Ledger, account: str, path: str, parameters: Parameters) -> Answer | None:
    """Answer a GET, of one object or of the list of charges; None for a path that is not served."""
    _, _, noun, *rest = f"{path}//".split("/")[:4]
    kind = KINDS.get(noun)
    if not path.startswith("/v1/") or kind is None or path.count("/") > 3:
        return None
    if path.count("/") == 3:
        document = ledger.get(account, kind, rest[0])
        return answers.missing(kind, rest[0]) if document is None else answers.ok(document)
    return _list(ledger, account, path, parameters) if kind == "charge" else None


def _list(ledger: Ledger, account: str, path: str, parameters: Parameters) -> Answer:
    limit = _integer(parameters, "limit") if "limit" in parameters else 10
    if not 1 <= limit <= LIMIT_MAX:
        raise invalid("This value must be between 1 and 100.", "parameter_invalid_integer", "limit")
    found = ledger.newest(account, "charge", limit + 1, _filters(ledger, account, parameters))
    shape = {"object": "list", "url": path, "has_more": len(found) > limit, "data": found[:limit]}
    return answers.ok(shape)


def _filters(ledger: Ledger, account: str, parameters: Parameters) -> dict[str, Any]:
    """Turn the query into the ledger's filters; Stripe's `created` is whole seconds, the ledger's is not."""
    bounds = {"created[gte]": ("since", 0), "created[gt]": ("since", 1), "created[lt]": ("until", 0)}
    bounds |= {"created[lte]": ("until", 1)}
    filters: dict[str, Any] = {}
    for name, value in parameters.items():
        if name in bounds:
            filter_, more = bounds[name]
            filters[filter_] = _integer(parameters, name) + more
        elif name in {"transfer_group", "payment_intent"}:
            filters[name] = value
        elif name == "starting_after":
            filters["after"] = _existing(ledger, account, value)
        elif name != "limit":
            raise _unknown(name)
    return filters


def _existing(ledger: Ledger, account: str, id_: str) -> str:
    if ledger.get(account, "charge", id_) is None:
        raise invalid(f"No such charge: '{id_}'", "resource_missing", "starting_after")
    return id_


def _check(parameters: Parameters, required: tuple[str, ...], known: frozenset[str]) -> None:
    for name in parameters:
        if name not in known and not name.startswith("metadata["):
            raise _unknown(name)
    for name in required:
        if not parameters.get(name):
            raise invalid(f"Missing required param: {name}.", "parameter_missing", name)
    if "amount" in parameters:
        _check_amount(_integer(parameters, "amount"))
    if len(parameters.get("currency", "usd")) != 3:
        raise invalid(f"Invalid currency: {parameters['currency']}.", None, "currency")


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


def _intent(parameters: Parameters) -> JsonObject:
    given = bool(parameters.get("payment_method"))
    return {
        "amount": int(parameters["amount"]),
        "amount_received": 0,
        "currency": parameters["currency"].lower(),
        "description": parameters.get("description"),
        "latest_charge": None,
        "metadata": _metadata(parameters),
        "payment_method": parameters.get("payment_method"),
        "status": "requires_confirmation" if given else "requires_payment_method",
        "transfer_group": parameters.get("transfer_group"),
    }


def _confirmed(ledger: Ledger, intent: JsonObject, parameters: Parameters, origin: Origin) -> Answer:
    declined = parameters["payment_method"] in DECLINED_METHODS
    body = _charge(parameters, declined=declined) | {"payment_intent": intent["id"]}
    charge = ledger.add("charge", "ch", body, origin)
    intent["latest_charge"] = charge["id"]
    intent["amount_received"] = 0 if declined else intent["amount"]
    intent["status"] = "requires_payment_method" if declined else "succeeded"
    ledger.change(intent)
    if declined:
        return answers.declined(charge=charge["id"], payment_intent=intent)
    return answers.ok(intent, charge["id"])


def _refund(ledger: Ledger, charge: JsonObject, amount: int, parameters: Parameters, origin: Origin) -> JsonObject:
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    ledger.change(charge)
    body = {"amount": amount, "charge": charge["id"], "currency": charge["currency"], "status": "succeeded"}
    more = {"metadata": _metadata(parameters), "reason": parameters.get("reason")}
    return ledger.add("refund", "re", body | more, origin)

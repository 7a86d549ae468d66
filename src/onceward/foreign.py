"""Messages of producers that are not ours: where their id, their type and the rest stand. No I/O.

    Consumer("payments", untimed_ids=True, foreign=Foreign(id=event_id, type=Header("X-Event-Type")))

The queue's own id of a delivery cannot be had here, on purpose: it changes when the producer sends again, or when somebody
redrives a dead letter, so by such an id no duplicate is recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from traceback import format_exception_only
from typing import Any, Final, Literal

from onceward.callables import check_plain
from onceward.errors import UsageError
from onceward.message import MalformedMessage, Message
from onceward.transport import Delivery

_HINT: Final = "if its producer is not yours, Consumer(..., foreign=Foreign(id=..., type=...)) says where they stand"

Reader = Callable[[Mapping[str, str], bytes], str | None]
_Attribute = Literal["id", "type", "subject", "time"]
_REQUIRED: Final[tuple[_Attribute, ...]] = ("id", "type")
_OPTIONAL: Final[tuple[_Attribute, ...]] = ("subject", "time")


@dataclass(frozen=True, slots=True)
class Header:
    """The value of the header of this name, in capitals or not: brokers and HTTP bridges change the case of names.

    Two headers whose names differ in nothing else must have the same value, or the message is parked.

    Raises `UsageError` for what is not a name.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UsageError(f"Header takes the name of a header, like Header('X-Event-Id'), not {self.name!r}")

    def __call__(self, headers: Mapping[str, str], _body: bytes) -> str | None:
        wanted = self.name.casefold()
        values = {value for name, value in headers.items() if name.casefold() == wanted}
        if len(values) > 1:
            raise MalformedMessage(f"header {self.name!r} is there {len(values)} times, with different values")
        return values.pop() if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """Where the id, the type, the subject and the time of a message stand that comes without an envelope.

    Each is a `Header("its name")`, or a function of `(headers, body)` that returns a text, or None where there is none.
    `type` may also be a constant text, for a queue of one kind of message.
    `id` is what the producer made once, and repeats in every resend: an event id, a payment id. Unless it is a UUIDv7, the
    consumer needs `untimed_ids=True`.
    `subject` is what the message is about. `time` is when it happened, as RFC 3339 text; without it, when it arrived.

    A message without an id or a type is parked as malformed, and so is one for which a function raises: such a function
    must depend on nothing but its arguments.

    Raises `UsageError` for what cannot work: a constant id would make every message after the first a conflict.
    """

    id: Header | Reader
    type: Header | Reader | str
    subject: Header | Reader | None = None
    time: Header | Reader | None = None

    def __post_init__(self) -> None:
        if self.type == "":
            raise UsageError("type must not be empty: it chooses the handler")
        for name in _REQUIRED + _OPTIONAL:
            _check(name, getattr(self, name))

    def message(self, delivery: Delivery) -> Message:
        """The message of a delivery without an envelope. Raises `MalformedMessage` with what is missing."""
        envelope = {"source": delivery.source} | {name: self._required(name, delivery) for name in _REQUIRED}
        for name in _OPTIONAL:
            if value := _read(name, getattr(self, name), delivery):
                envelope[name] = value
        return Message.from_wire(envelope, delivery.body)

    def _required(self, name: _Attribute, delivery: Delivery) -> str:
        reader = getattr(self, name)
        value = _read(name, reader, delivery)
        if value:
            return value
        if not isinstance(reader, Header):
            why = "the function for it found none"
        else:
            why = f"there is no header {reader.name!r}" if value is None else f"header {reader.name!r} is empty"
        raise MalformedMessage(f"a foreign message without {name}: {why}")


def read_message(delivery: Delivery, foreign: Foreign | None) -> Message:
    """The message that arrived: its envelope's or, where it has none, the one that `foreign` makes of it.

    What says which version of CloudEvents it follows has an envelope. Where no stranger's messages are expected, so has
    what has an id and a type in its headers. Where they are, those may be anybody's, and others for each send. An envelope
    that is incomplete is not mended here: the id that it lost may be known to the inbox already.

    Raises `MalformedMessage` with the reason.
    """
    headers = delivery.headers
    if "specversion" in headers or (foreign is None and all(headers.get(name) for name in _REQUIRED)):
        return Message.from_wire(headers, delivery.body)
    if foreign is not None:
        return foreign.message(delivery)
    missing = " and ".join(name for name in _REQUIRED if not headers.get(name))
    raise MalformedMessage(f"envelope without {missing}; {_HINT}")


def _check(name: _Attribute, reader: Any) -> None:
    constant = name == "type"
    if isinstance(reader, Header) or (name in _OPTIONAL and reader is None) or (constant and isinstance(reader, str)):
        return
    if isinstance(reader, str):
        raise UsageError(
            f"{name}={reader!r} would be the {name} of every message: write Header({reader!r}) for the value of that "
            "header, or a function of headers and body"
        )
    if not callable(reader):
        possible = "a Header, a function of headers and body" + (", or a text" if constant else "")
        raise UsageError(f"{name} of a foreign message is one of {possible}, not {reader!r}")
    check_plain(reader, f"what reads the {name} of a foreign message", 2)


def _read(name: _Attribute, reader: Header | Reader | str | None, delivery: Delivery) -> str | None:
    """What this reader finds; None where there is nothing."""
    if reader is None or isinstance(reader, str):
        return reader
    try:
        value: object = reader(delivery.headers, delivery.body)
    except MalformedMessage:
        raise
    except Exception as error:
        # The message is parked with it. Not str(error), which may raise as well, and would stop the consumer.
        said = "".join(format_exception_only(error)).strip()
        raise MalformedMessage(f"a foreign message: the function for its {name} raised {said}") from error
    if value is None or isinstance(value, str):
        return value
    raise MalformedMessage(f"a foreign message: the function for its {name} returned {type(value).__name__}, not a text")

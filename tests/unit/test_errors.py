"""The tree in the docstring of `onceward.errors` is the tree; and what is raised survives a pickle and a copy."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from onceward import errors
from onceward.message import MalformedMessage
from onceward.perform import NoHandler


def _drawn() -> dict[str, str | None]:
    """Class -> its parent, as the docstring draws it: each level is four characters further in."""
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ((?:[│ ]   )*(?:[├└]── )?)([A-Z]\w+)", line)
        if match:
            depth = len(match[1]) // 4
            path = [*path[:depth], match[2]]
            drawn[match[2]] = path[-2] if depth else None
    return drawn


def _real() -> dict[str, str | None]:
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and value.__module__ == errors.__name__]
    classes.append(MalformedMessage)
    names = {known.__name__ for known in classes}
    parents = {known.__name__: known.__bases__[0].__name__ for known in classes}
    return {name: parent if parent in names else None for name, parent in parents.items()}


def test_the_tree_is_drawn_as_it_is() -> None:
    assert _drawn() == _real()
    assert len(_drawn()) >= 11


def test_a_malformed_message_is_a_value_error_and_stands_outside_the_tree() -> None:
    assert issubclass(MalformedMessage, ValueError)
    assert not issubclass(MalformedMessage, errors.OncewardError)


def test_signals_are_not_errors() -> None:
    assert not issubclass(errors.Signal, errors.OncewardError)
    assert errors.Defer(3.0).delay_seconds == 3.0
    assert errors.Reject("bad").reason == "bad"


def test_a_refusal_carries_its_answer() -> None:
    assert errors.EffectRefused({"code": "card_declined"}).answer == {"code": "card_declined"}


RAISED = [
    errors.Defer(2.5),
    errors.Defer(delay_seconds=3),
    errors.Reject("no such account"),
    errors.Reject(reason="no such account"),
    errors.EffectRefused({"code": "card_declined"}),
    errors.EffectRefused(None),
    errors.EffectRefused(("a", "b")),
    NoHandler("no handler for 'order.lost'"),
    MalformedMessage("envelope without id"),
]
TAKE_A_TEXT = [
    errors.OncewardError, errors.UsageError, errors.NotInTransaction, errors.SchemaMismatch, errors.TransportError,
    errors.ConflictError, errors.UnknownOutcome, errors.LeaseLost, errors.Signal,
]  # fmt: skip
RAISED += [kind("what happened") for kind in TAKE_A_TEXT]


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_what_is_raised_survives_a_pickle_and_a_copy_with_the_same_text(error: BaseException) -> None:
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301 - our own
        assert (type(same), str(same), vars(same)) == (type(error), str(error), vars(error))


def test_everything_that_is_raised_was_tried() -> None:
    assert {type(error).__name__ for error in RAISED} - {"NoHandler"} == {*_real()}


def test_the_texts_say_what_happened() -> None:
    assert str(errors.Defer(2.5)) == "deferred for 2.5 s"
    assert str(errors.EffectRefused({"code": "x"})) == "the provider refused: {'code': 'x'}"
    assert str(errors.Reject("no such account")) == "no such account"

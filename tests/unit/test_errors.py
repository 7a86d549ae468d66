"""The tree in the docstring of `onceward.errors` is the tree."""

from __future__ import annotations

import inspect
import re

from onceward import errors


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
    names = {known.__name__ for known in classes}
    parents = {known.__name__: known.__bases__[0].__name__ for known in classes}
    return {name: parent if parent in names else None for name, parent in parents.items()}


def test_the_tree_is_drawn_as_it_is() -> None:
    assert _drawn() == _real()
    assert len(_drawn()) >= 11


def test_signals_are_not_errors() -> None:
    assert not issubclass(errors.Signal, errors.OncewardError)
    assert errors.Defer(3.0).delay_seconds == 3.0
    assert errors.Reject("bad").reason == "bad"


def test_a_refusal_carries_its_answer() -> None:
    assert errors.EffectRefused({"code": "card_declined"}).answer == {"code": "card_declined"}

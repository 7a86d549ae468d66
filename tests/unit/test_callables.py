"""What would do nothing when it is called is refused where it is registered, or where it is called."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from onceward import STRIPE_V1, Consumer, UsageError
from onceward.callables import check_done, check_plain
from onceward.perform import check_effect


def plain(_one: object, _two: object) -> None:
    """As a handler should be."""


async def asynchronous(_one: object, _two: object) -> None:
    """It would give a coroutine that nobody awaits."""


def generator(_one: object, _two: object) -> Iterator[None]:
    yield None


async def asynchronous_generator(_one: object, _two: object) -> AsyncIterator[None]:
    yield None


class Asynchronous:
    """An object whose call is asynchronous."""

    async def __call__(self, _one: object, _two: object) -> None:
        """Nobody awaits it."""


class Plain:
    """An object that can be called, and a method."""

    def __call__(self, _one: object, _two: object) -> None:
        """As a handler should be."""

    def method(self, _one: object, _two: object) -> None:
        """As a handler should be."""


UNDONE = {
    "async def": asynchronous,
    "generator": generator,
    "async generator": asynchronous_generator,
    "object": Asynchronous(),
    "partial": functools.partial(asynchronous),
}
DONE: dict[str, Any] = {
    "function": plain,
    "object": Plain(),
    "method": Plain().method,
    "partial": functools.partial(plain),
    "any number": lambda *_: None,
    "without a signature": max,
}


def register(shape: str, call: Any) -> object:
    consumer = Consumer("payments")
    door = consumer.transactional if shape == "transactional" else consumer.effectful
    return door("order.placed")(call)


DOORS: dict[str, Callable[[Any], object]] = {
    "transactional": functools.partial(register, "transactional"),
    "effectful": functools.partial(register, "effectful"),
    "call": lambda call: check_effect("charge", call, STRIPE_V1, None),
    "look-up": lambda call: check_effect("charge", plain, STRIPE_V1, call),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
@pytest.mark.parametrize("call", UNDONE.values(), ids=UNDONE.keys())
def test_what_would_do_nothing_is_refused_at_every_door(call: Any, door: Callable[[Any], object]) -> None:
    with pytest.raises(UsageError, match="calling it would do nothing"):
        door(call)


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
@pytest.mark.parametrize("call", DONE.values(), ids=DONE.keys())
def test_what_does_its_work_is_taken_at_every_door(call: Any, door: Callable[[Any], object]) -> None:
    door(call)


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
@pytest.mark.parametrize(
    "call", [lambda: None, lambda _one: None, lambda _one, _two, _three: None, 5], ids=["none", "one", "three", "a number"]
)
def test_a_wrong_number_of_parameters_is_refused_where_it_is_written(call: Any, door: Callable[[Any], object]) -> None:
    with pytest.raises(UsageError, match=r"must (take 2 arguments|be a function)"):
        door(call)


def test_what_a_plain_function_only_passes_on_is_refused_when_it_comes_out() -> None:
    """And it is closed, so that no warning about it comes from somewhere else, later."""
    for undone in (asynchronous(1, 2), generator(1, 2), asynchronous_generator(1, 2)):
        with pytest.raises(UsageError, match="its work was not done"):
            check_done(undone, "the handler")


@pytest.mark.parametrize("result", [None, 1, "text", [1], {"id": 1}])
def test_any_other_result_is_let_pass(result: object) -> None:
    check_done(result, "the handler")


def test_a_generator_that_runs_already_is_refused_too() -> None:
    def running() -> Iterator[None]:
        with pytest.raises(UsageError, match="its work was not done"):
            check_done(itself[0], "the handler")
        yield None

    itself: list[Any] = []
    itself.append(running())
    next(itself[0])


@pytest.mark.parametrize("provider", [None, "stripe", STRIPE_V1.name])
def test_an_effect_needs_a_provider_profile(provider: Any) -> None:
    with pytest.raises(UsageError, match="provider must be a ProviderProfile"):
        check_effect("charge", plain, provider, None)


@pytest.mark.parametrize("name", ["", None, 7])
def test_an_effect_needs_a_name(name: Any) -> None:
    with pytest.raises(UsageError, match="needs a name"):
        check_effect(name, plain, STRIPE_V1, None)


def test_a_callable_without_a_signature_is_let_pass() -> None:
    check_plain(dict.fromkeys, "it", 2)

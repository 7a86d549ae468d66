"""Backoff: it grows, it stops growing, and two that failed together part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onceward.errors import UsageError
from onceward.retry import Backoff


@given(st.integers(-5, 10_000))
def test_a_wait_is_in_the_upper_half_of_its_step(attempts: int) -> None:
    backoff = Backoff(first_seconds=1.0, factor=2.0, seconds_max=60.0)
    ceiling = min(2.0 ** (min(max(attempts, 1), 100) - 1), 60.0)
    assert ceiling / 2 <= backoff.seconds_after(attempts) <= ceiling


def test_two_that_failed_together_part() -> None:
    assert len({Backoff().seconds_after(5) for _ in range(20)}) > 1


def test_a_factor_of_one_does_not_grow() -> None:
    assert 0.5 <= Backoff(first_seconds=1.0, factor=1.0).seconds_after(1000) <= 1.0


@pytest.mark.parametrize(
    "values",
    [{"first_seconds": 0.0}, {"first_seconds": -1.0}, {"factor": 0.5}, {"first_seconds": 10.0, "seconds_max": 1.0}],
)
def test_a_backoff_that_cannot_wait_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="backoff"):
        Backoff(**values)

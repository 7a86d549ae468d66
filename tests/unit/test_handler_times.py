"""How durations are counted, and the lease that follows from them."""

from __future__ import annotations

import pytest

from onceward.handler_times import added, bucket_of, summed_up, upper_seconds


@pytest.mark.parametrize("seconds", [0.0, 0.0005, 0.001, 0.0012, 0.03, 1.0, 29.9, 3600.0, 86_400.0])
def test_a_bucket_is_at_most_a_fifth_too_high(seconds: float) -> None:
    upper = upper_seconds(bucket_of(seconds))
    assert seconds <= upper
    assert upper <= max(0.001, seconds * 1.2)


def test_what_takes_for_ever_is_counted_in_the_last_bucket() -> None:
    assert bucket_of(10.0**12) == bucket_of(10.0**9)


def test_the_p99_is_what_99_of_100_do_not_exceed() -> None:
    counts = added([{bucket_of(0.01): (990, 9.9)}, {bucket_of(8.0): (10, 80.0)}])
    assert summed_up("c", [counts]).p99_seconds == upper_seconds(bucket_of(0.01))
    one_more = added([counts, {bucket_of(8.0): (1, 8.0)}])
    assert summed_up("c", [one_more]).p99_seconds == upper_seconds(bucket_of(8.0))


def test_the_slowest_day_counts() -> None:
    times = summed_up("c", [{bucket_of(0.1): (1000, 100.0)}, {bucket_of(2.0): (10, 20.0)}])
    assert times.handled == 1010
    assert times.average_seconds == 2.0
    assert times.p99_seconds == upper_seconds(bucket_of(2.0))


def test_a_lease_is_at_least_six_averages_and_more_than_the_p99() -> None:
    by_average = summed_up("c", [{bucket_of(5.0): (100, 500.0)}])
    assert not by_average.fit(29.9)
    assert by_average.fit(30.0)
    by_p99 = summed_up("c", [{bucket_of(0.01): (98, 0.98), bucket_of(20.0): (2, 40.0)}])
    assert not by_p99.fit(by_p99.p99_seconds)
    assert by_p99.fit(by_p99.p99_seconds + 1)

"""What a `Consumer` cannot work with is refused where it is written."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from onceward.consumer import Consumer
from onceward.errors import UsageError


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        (5, {}, "stable name"),
        (None, {}, "stable name"),
        ("", {}, "stable name"),
        ("a\nb", {}, "stable name"),
        ("charges", {"window": 30}, "window is a timedelta"),
        ("charges", {"window": timedelta(0)}, "more than 0"),
        ("charges", {"lease_seconds": 0}, "lease_seconds"),
        ("charges", {"attempts_max": 0}, "attempts_max"),
        ("charges", {"backoff": 5}, "backoff is a Backoff"),
        ("charges", {"other_types": "drop"}, "'park' or 'ignore'"),
        ("charges", {"foreign": "X-Event-Id"}, "foreign is a Foreign"),
    ],
)
def test_what_cannot_work_is_refused_with_what_can(name: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Consumer(name, **options)

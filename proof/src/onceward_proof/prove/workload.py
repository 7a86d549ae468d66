"""The orders: made from the seed, or read from a CSV file."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Final, NamedTuple

from onceward.errors import UsageError

AMOUNT_MAX: Final = 99_999_999  # the provider's own limit of one charge


class Order(NamedTuple):
    """One order: its id, and its amount in the currency's smallest unit."""

    id: str
    amount: int


def make_orders(count: int, seed: int) -> list[Order]:
    """`count` orders with amounts drawn from the seed."""
    if count < 1:
        raise UsageError(f"--orders must be at least 1, not {count}")
    rng = random.Random(f"orders {seed}")
    width = max(4, len(str(count)))
    return [Order(f"O-{n:0{width}d}", rng.randrange(500, 50_000)) for n in range(1, count + 1)]


def read_orders(path: Path) -> list[Order]:
    """The orders of a CSV file with the columns `id` and `amount`.

    Raises `UsageError` naming the line that is wrong.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _read(path, csv.DictReader(file))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not a CSV file in UTF-8: {error}") from error


def _read(path: Path, rows: csv.DictReader[str]) -> list[Order]:
    missing = [name for name in ("id", "amount") if name not in (rows.fieldnames or ())]
    if missing:
        columns = ", ".join(rows.fieldnames or ()) or "nothing"
        raise UsageError(
            f"{path}: line 1 must name the columns id and amount; missing: {', '.join(missing)}; found: {columns}"
        )
    lines: dict[str, int] = {}
    orders = [_order(path, rows.line_num, row, lines) for row in rows]
    if not orders:
        raise UsageError(f"{path} holds no orders")
    return orders


def _order(path: Path, line: int, row: dict[str, str], lines: dict[str, int]) -> Order:
    where = f"{path}, line {line}"
    order_id = (row["id"] or "").strip()
    if not order_id or len(order_id) > 100 or not order_id.isprintable():
        raise UsageError(f"{where}: an order's id is 1 to 100 printable characters, not {order_id!r}")
    if order_id in lines:
        raise UsageError(f"{where}: the order {order_id!r} is there already, in line {lines[order_id]}")
    lines[order_id] = line
    text = (row["amount"] or "").strip()
    if not text.lstrip("-").isdecimal():
        raise UsageError(f"{where}: the amount must be a whole number of the smallest unit (cents), not {text!r}")
    if not 1 <= int(text) <= AMOUNT_MAX:
        raise UsageError(f"{where}: the amount must be from 1 to {AMOUNT_MAX}, not {text}")
    return Order(order_id, int(text))

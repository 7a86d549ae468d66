"""What doctor says of a database and of a pgmq queue, from what Postgres says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.diagnoses import NEEDS, mends, wrong

from onceward.doctor.postgres import PgmqFacts, PostgresFacts, Setting, judge, judge_queue

GOOD = {
    "fsync": Setting("on", "default"),
    "full_page_writes": Setting("on", "default"),
    "synchronous_commit": Setting("on", "default"),
    "default_transaction_read_only": Setting("off", "default"),
    "transaction_timeout": Setting("0", "default"),
}
FACTS = PostgresFacts(role="shop", database="shop", settings=GOOD, threads=8)
QUEUE = PgmqFacts(name="orders", table="pgmq.q_orders", logged=True)


def setting(name: str, value: str, source: str = "configuration file") -> PostgresFacts:
    return replace(FACTS, settings={**GOOD, name: Setting(value, source)})


def test_a_database_that_is_set_well_has_no_findings() -> None:
    assert wrong(judge(FACTS, NEEDS)) == {}


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (setting("fsync", "off"), {"postgres.fsync": "error"}),
        (setting("full_page_writes", "off"), {"postgres.full_page_writes": "error"}),
        (setting("synchronous_commit", "off"), {"postgres.synchronous_commit": "warning"}),
        (setting("synchronous_commit", "local"), {}),
        (setting("default_transaction_read_only", "on"), {"postgres.read_only": "error"}),
        (replace(FACTS, standby=True), {"postgres.read_only": "error"}),
        (setting("transaction_timeout", "5000"), {"postgres.transaction_timeout": "error"}),
        (setting("transaction_timeout", "60000"), {}),
        (replace(FACTS, connections_max=10), {"postgres.connections": "error"}),
        (replace(FACTS, connections_max=11), {}),
    ],
)
def test_each_wrong_setting_is_found_by_name(facts: PostgresFacts, found: dict[str, str]) -> None:
    assert wrong(judge(facts, NEEDS)) == found


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ("user", "psql -c 'ALTER ROLE \"shop\" SET synchronous_commit = on'"),
        ("database", "psql -c 'ALTER DATABASE \"shop\" SET synchronous_commit = on'"),
        ("configuration file", "psql -c 'ALTER SYSTEM SET synchronous_commit = on' -c 'SELECT pg_reload_conf()'"),
        ("client", "take synchronous_commit out of the options of the DSN, or out of PGOPTIONS"),
    ],
)
def test_a_setting_is_mended_where_it_comes_from(source: str, command: str) -> None:
    facts = setting("synchronous_commit", "off", source)
    assert mends(judge(facts, NEEDS)) == {"postgres.synchronous_commit": command}


def test_an_unlogged_queue_is_found() -> None:
    assert wrong(judge_queue(QUEUE, NEEDS)) == {}
    unlogged = replace(QUEUE, logged=False)
    assert mends(judge_queue(unlogged, NEEDS)) == {"pgmq.logged": "psql -c 'ALTER TABLE pgmq.q_orders SET LOGGED'"}

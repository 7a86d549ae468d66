"""The `onceward` command, black-box: processes, their output and their exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.acceptance.processes import SOURCES, environment, onceward, refused, running, without_privileges
from tests.support.waiting import until, until_any_blocked

from onceward.cli import OWN_COMMANDS, make_parser
from onceward.day_partitions import LOCK_RETIRE, lock_key
from onceward.schema import migrations

NOBODY = "host=127.0.0.1 port=1 user=nobody"
PARKED = ("parked list", "parked show", "parked redrive", "parked settle", "parked discard", "parked decisions")
OUTBOX = ("outbox list", "outbox show", "outbox retry", "outbox discard")
QUEUE = ("queue create", "queue list")
COMMANDS = (
    "migrate",
    "upkeep",
    "queue",
    *QUEUE,
    "run",
    "relay",
    "parked",
    *PARKED,
    "outbox",
    *OUTBOX,
    "doctor",
    "status",
    "dev",
    "provider",
    "prove",
    "bench",
    "bench local",
)
Connect = Callable[..., psycopg.Connection[Any]]


def test_help_names_every_command_and_needs_no_driver() -> None:
    program = "import sys; from onceward.cli import main; main(['--help']); sys.exit('psycopg' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment(COLUMNS="120")
    )
    for command in COMMANDS:
        assert command.split()[0] in done.stdout
    assert "exit codes" in done.stdout


@pytest.mark.parametrize("command", [*OWN_COMMANDS, "--version"])
def test_a_command_of_our_own_does_not_look_for_what_else_is_installed(command: str) -> None:
    """To read the metadata of all distributions takes as long as the rest of the start."""
    program = "import sys; from onceward.cli import make_parser; make_parser(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, command], capture_output=True, text=True, check=True, env=environment()
    )
    assert "importlib.metadata" not in done.stdout.split()


def test_the_list_of_our_own_commands_is_complete() -> None:
    [choices] = [action.choices for action in make_parser("run")._actions if action.choices is not None]
    assert sorted(choices) == sorted(OWN_COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_shows_examples(command: str) -> None:
    done = onceward(*command.split(), "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert f"onceward {command}" in done.stdout


def test_the_proof_documents_its_exit_codes() -> None:
    text = " ".join(onceward("prove", "--help").stdout.split())
    assert re.search(r"0 proven; 1 hardened broke; 2 usage or environment; 3 inconclusive", text)


def test_the_version_is_printed() -> None:
    done = onceward("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "onceward")
    assert re.fullmatch(r"\d+\.\d+\.\d+", done.stdout.split()[1])


def test_importing_the_package_needs_no_driver_and_its_parts_no_pool() -> None:
    """What `import onceward` costs beside `import psycopg` is what it imports beside it: nothing but our own modules."""
    program = "import sys; import onceward; print('psycopg' in sys.modules, len(onceward.__all__) > 20)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.split() == ["False", "True"]
    program = """
        import sys, psycopg
        before = set(sys.modules)
        from onceward import Consumer, Inbox, Intents, Message, migrate, publish, relay, run
        ours = {name.split('.')[0] for name in set(sys.modules) - before}
        print(*sorted(ours - set(sys.stdlib_module_names)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout.split() == ["onceward"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["migrate", "--nonsense"], "--nonsense"),
        (["parked"], "VERB"),
        (["parked", "show"], "ID"),
        (["parked", "list", "--limit", "0"], "between 1"),
        (["run", "shop:charges"], "--queue"),
        (["run", "shop:charges", "--queue", "q", "--threads", "none"], "whole number"),
        (["run", "shop:charges", "--queue", "q", "--drain", "-1"], "more than 0"),
        (["relay"], "--queues"),
        (["relay", "--queues", "a=b", "a"], "TYPE=QUEUE"),
        (["relay", "--queues", "a=b,"], "TYPE=QUEUE"),
        (["relay", "--queues", "a=b", "a=c"], "twice"),
        (["relay", "--sink", "nowhere"], "MODULE:NAME"),
        (["prove", "--orders", "0"], "between 1"),
        (["prove", "--orders", "1", "--orders-from", "x.csv"], "not allowed with"),
        (["prove", "--orders-from", "nowhere.csv"], "no file nowhere.csv"),
        (["prove", "--schedule", "nowhere.json"], "no file nowhere.json"),
        (["prove", "--json", "/nowhere/x.json"], "no folder /nowhere"),
        (["prove", "--variants", "naive,,hardened"], "names with commas"),
        (["prove", "--queue", "carrier-pigeon"], "carrier-pigeon"),
        (["bench"], "KIND"),
        (["migrate", "--schema", "No Such", "--database", NOBODY], "does not answer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line(arguments: list[str], word: str) -> None:
    refused(onceward(*arguments), word)


WRITING: tuple[str, ...] = (
    "prove --json",
    "prove --html",
    "prove --for 1h --json",
    "prove --every-syscall --json",
    "prove --ablate --html",
    "prove --queue-settings --html",
)
WRITING += ("bench local --json", "explore --json", "explore --planted all --json")


@pytest.mark.parametrize("command", WRITING)
def test_a_result_that_could_not_be_written_is_refused_before_the_run(command: str, tmp_path: Path) -> None:
    existing = tmp_path / "there"
    existing.write_text("what was there before")
    existing.chmod(0o444)
    tmp_path.chmod(0o555)
    for file in (existing, tmp_path / "new"):
        refused(onceward(*command.split(), str(file), prefix=without_privileges()), f"{file} cannot be written", "denied")
    tmp_path.chmod(0o755)
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"]


def test_what_is_kept_in_a_folder_that_cannot_be_written_to_is_refused_by_name(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    ledger = onceward("provider", cwd=tmp_path, prefix=without_privileges())
    cluster = onceward("dev", cwd=tmp_path, prefix=without_privileges())
    tmp_path.chmod(0o755)
    refused(ledger, "--database", "provider.sqlite cannot be written")
    refused(cluster, f"{tmp_path}/.onceward cannot be written", "--folder")


def test_to_see_whether_a_result_can_be_written_changes_nothing(tmp_path: Path) -> None:
    existing = tmp_path / "there"
    existing.write_text("what was there before")
    for file in (existing, tmp_path / "new"):
        refused(onceward("prove", "--json", str(file), "--rate", "3"), "--for")
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["what was there before"]


@pytest.mark.parametrize(
    "command",
    ["migrate", "upkeep", "parked list", "parked show x", "parked redrive x", "relay --queues q", "outbox list", "status"],
)
def test_a_database_that_does_not_answer_is_one_line(command: str) -> None:
    refused(onceward(*command.split(), "--database", NOBODY), "the database does not answer")


def test_the_database_is_named_by_flag_or_environment() -> None:
    refused(onceward("migrate", ONCEWARD_DATABASE=NOBODY), "does not answer", "127.0.0.1")
    refused(onceward("migrate", PGHOST="127.0.0.1", PGPORT="1"), "does not answer", "127.0.0.1")
    refused(onceward("migrate", "--database", "nonsense = = 1", ONCEWARD_DATABASE=NOBODY), "the DSN cannot be read")


def test_an_empty_database_is_one_that_was_not_given() -> None:
    """`--database "$DSN"` with a variable that is not set: it must not quietly reach what else may be there."""
    refused(
        onceward("migrate", "--database", "", ONCEWARD_DATABASE=NOBODY), "does not answer ($ONCEWARD_DATABASE)", "port 1"
    )
    done = onceward("migrate", "--database", "", PGHOST="127.0.0.1", PGPORT="1")
    refused(done, "neither --database nor $ONCEWARD_DATABASE")


def test_an_error_says_which_of_two_databases_it_means(dsn: str) -> None:
    relay = ("relay", "--queues", "q")
    refused(onceward(*relay, "--database", NOBODY, "--queue-database", dsn), "does not answer (--database)")
    refused(onceward(*relay, "--database", dsn, "--queue-database", NOBODY), "does not answer (--queue-database)")
    refused(onceward(*relay, "--database", dsn, "--queue-database", "= 1"), "cannot be read (--queue-database)")


def test_without_libpq_the_extra_is_named(tmp_path: Path) -> None:
    """A machine on which no libpq is to be found, and a psycopg without one of its own."""
    (tmp_path / "sitecustomize.py").write_text("import ctypes.util; ctypes.util.find_library = lambda name: None\n")
    done = onceward("migrate", PSYCOPG_IMPL="python", PYTHONPATH=f"{tmp_path}{os.pathsep}{SOURCES}")
    refused(done, "pip install 'onceward[binary]'")


def test_ctrl_c_is_quiet(dsn: str, connect: Connect, db: psycopg.Connection[Any]) -> None:
    """Here, while it waits for another migration's lock."""
    with connect().transaction() as holding, running("migrate", "--database", dsn) as migrating:
        holding.connection.execute("LOCK TABLE onceward.migrations")
        until_any_blocked(db)
        assert migrating.stop(signal.SIGINT) == 130
        assert migrating.said == ""


def test_a_reader_that_goes_away_is_not_an_error(dsn: str) -> None:
    command = f"{sys.executable} -m onceward upkeep --database '{dsn}' --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_dev_gives_a_database_that_is_ready(tmp_path: Path) -> None:
    with running("dev", "--folder", str(tmp_path / "pg"), cwd=tmp_path) as dev:
        (dsn, *_) = until(lambda: re.findall(r"postgresql://\S+", dev.said), "the DSN being printed")
        assert onceward("parked", "list", "--database", dsn).stdout == "nothing is parked\n"
        with psycopg.connect(dsn) as conn:
            assert conn.execute("SELECT to_regclass('pgmq.meta') IS NOT NULL").fetchone() == (True,)
        assert dev.stop(signal.SIGINT) == 0


def test_dev_leaves_a_folder_alone_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("somebody's own\n")
    refused(onceward("dev", "--folder", str(tmp_path)), str(tmp_path), "not empty", "a new folder")
    refused(onceward("dev", "--folder", str(tmp_path / "log")), "is not a folder")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("log", "somebody's own\n")]


def test_provider_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    with running("provider", "--window", "5", cwd=tmp_path) as provider:
        until(lambda: "http://127.0.0.1:" in provider.said, "the address being printed")
        assert provider.stop(signal.SIGINT) == 0
    assert (tmp_path / "provider.sqlite").is_file()


def test_migrate_twice_does_nothing_the_second_time(empty_dsn: str) -> None:
    first = onceward("migrate", "--database", empty_dsn, "--json")
    assert json.loads(first.stdout)["applied"] == [f"{one.version:04d}_{one.name}" for one in migrations()]
    second = onceward("migrate", ONCEWARD_DATABASE=empty_dsn)
    assert (second.returncode, "nothing to do" in second.stdout) == (0, True)


def test_two_that_migrate_at_once_apply_it_once(empty_dsn: str) -> None:
    command = [sys.executable, "-m", "onceward", "migrate", "--json", "--database", empty_dsn]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(len(json.loads(output)["applied"]) for output in outputs) == [0, len(migrations())]


def test_the_script_for_a_dba_is_what_migrate_would_have_done(empty_dsn: str) -> None:
    script = onceward("migrate", "--sql", "--schema", "shop", "--database", NOBODY).stdout
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(script.encode())
    report = json.loads(onceward("upkeep", "--schema", "shop", "--database", empty_dsn, "--json").stdout)
    assert report["made"] != []
    done = onceward("migrate", "--schema", "shop", "--database", empty_dsn)
    assert done.stdout == f"schema 'shop' is at version {migrations()[-1].version}, nothing to do\n"


def test_the_script_from_a_version_brings_the_rest(empty_dsn: str) -> None:
    whole, newest = onceward("migrate", "--sql").stdout, migrations()[-1].version
    rest = onceward("migrate", "--sql", "--from-version", "2").stdout
    texts = [one.text.replace("{schema}", "onceward").strip() for one in migrations()]
    assert [rest.count(text) for text in texts] == [0, 0, *[1] * (newest - 2)]
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        first_two = whole.partition(texts[2])[0] + "COMMIT;"
        conn.execute(first_two.encode())
        conn.execute(rest.encode())
    assert "nothing to do" in onceward("migrate", "--database", empty_dsn).stdout
    refused(onceward("migrate", "--sql", "--from-version", "99"), "no version 99", f"1 to {newest}")
    refused(onceward("migrate", "--from-version", "1", "--database", NOBODY), "--from-version", "--sql")


def test_the_roles_are_made_or_printed_for_a_dba(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        prefix = f"cli_{conn.info.dbname}"
        names = [f"{prefix}_{kind}" for kind in ("consumer", "relay", "upkeep", "reader")]
        try:
            script = onceward("migrate", "--roles", prefix, "--sql", "--database", NOBODY).stdout
            assert onceward("migrate", "--database", empty_dsn).returncode == 0
            conn.execute(script.encode())
            done = onceward("migrate", "--roles", prefix, "--json", "--database", empty_dsn)
            assert json.loads(done.stdout)["roles"] == names
            assert ", ".join(names) in onceward("migrate", "--roles", prefix, "--database", empty_dsn).stdout
        finally:
            for name in names:
                conn.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}".encode())
    refused(onceward("migrate", "--roles", "No Such", "--database", NOBODY, "--sql"), "prefix")
    refused(onceward("migrate", "--roles", "--from-version", "1", "--sql"), "--from-version")


def test_a_queue_is_made_with_pgmq_where_that_is_missing_and_once(empty_dsn: str) -> None:
    create = ("queue", "create", "orders", "book-ings")
    refused(
        onceward("queue", "list", "--database", empty_dsn), "pgmq is not in this database", "onceward queue create NAME"
    )
    first = onceward(*create, "--queue-database", empty_dsn, "--database", NOBODY)
    assert (first.returncode, first.stdout) == (0, "pgmq is installed\nqueue 'orders' is made\nqueue 'book-ings' is made\n")
    second = onceward(*create, "more", "--database", empty_dsn, "--json")
    assert json.loads(second.stdout) == {"pgmq_installed": False, "created": ["more"]}
    assert (
        "queue 'more' was there already, nothing to do"
        in onceward("queue", "create", "more", "--database", empty_dsn).stdout
    )
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("SELECT pgmq.send('orders', '{}'), pgmq.create_unlogged('risky')")
    listing = onceward("queue", "list", ONCEWARD_DATABASE=empty_dsn).stdout
    assert re.sub(r"oldest \d+ s", "oldest N s", listing).splitlines() == [
        "book-ings  0 messages",
        "more  0 messages",
        "orders  1 messages, the oldest N s old",
        "risky  0 messages  UNLOGGED: a crash of its server empties it",
    ]
    listed = json.loads(onceward("queue", "list", "--database", empty_dsn, "--json").stdout)
    assert listed[0] == {"name": "book-ings", "messages": 0, "oldest_seconds": None, "durable": True}
    refused(onceward("queue", "create", "risky", "--database", empty_dsn), "UNLOGGED", "SET LOGGED")


def test_two_that_make_a_queue_at_once_make_it_once(empty_dsn: str) -> None:
    command = [sys.executable, "-m", "onceward", "queue", "create", "orders", "--json", "--database", empty_dsn]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) for _ in range(2)]
    reports = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    assert sorted(report["pgmq_installed"] for report in reports) == [False, True]
    assert sorted(report["created"] for report in reports) == [[], ["orders"]]


def test_the_script_that_makes_queues_needs_no_database_and_makes_them(empty_dsn: str) -> None:
    name = "it's"
    script = onceward("queue", "create", "orders", name, "--sql", "--database", NOBODY).stdout
    assert "pgmq.create('it''s')" in script
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(onceward("queue", "create", "orders", "bookings", "--sql").stdout.encode())
        with pytest.raises(psycopg.errors.DuplicateObject):
            conn.execute(onceward("queue", "create", "more", "--sql").stdout.encode())
        conn.rollback()
    names = [queue["name"] for queue in json.loads(onceward("queue", "list", "--json", "--database", empty_dsn).stdout)]
    assert names == ["bookings", "orders"]


@pytest.mark.parametrize(("name", "word"), [("a" * 60, "too long"), ("a;b", "invalid character"), ("", "names no queue")])
def test_a_name_that_no_queue_can_have_is_one_line(name: str, word: str, dsn: str) -> None:
    refused(onceward("queue", "create", name, "--database", dsn), word)


def test_migrate_into_another_schema(empty_dsn: str) -> None:
    assert onceward("migrate", "--database", empty_dsn, "--schema", "shop").returncode == 0
    with psycopg.connect(empty_dsn) as conn:
        row = conn.execute("SELECT to_regclass('shop.inbox') IS NOT NULL, to_regclass('onceward.inbox') IS NULL").fetchone()
    assert row == (True, True)
    refused(onceward("migrate", "--database", empty_dsn, "--schema", "Shop-1"), "schema name")


@pytest.mark.parametrize("command", ["parked list", "upkeep", "relay --queues q", "outbox list", "status"])
def test_a_schema_that_is_not_there_says_migrate(empty_dsn: str, command: str) -> None:
    refused(onceward(*command.split(), "--schema", "shop", "--database", empty_dsn), "shop", "onceward migrate")


@pytest.mark.parametrize("command", ["migrate", "parked list", "upkeep", "outbox list", "status"])
def test_a_schema_that_is_newer_than_the_code_is_left_alone(dsn: str, connect: Connect, command: str) -> None:
    connect().execute("INSERT INTO onceward.migrations (version, name) VALUES (99, 'from the future')")
    refused(onceward(*command.split(), "--database", dsn), "version 99", "newer than this code")


def test_upkeep_makes_what_is_missing(dsn: str, connect: Connect) -> None:
    partitions = "SELECT relid::regclass::text FROM pg_partition_tree('onceward.intents')"
    [*_, latest] = sorted(row[0] for row in connect().execute(partitions.encode()) if "_p2" in row[0])
    connect().execute(f"DROP TABLE {latest}".encode())
    report = json.loads(onceward("upkeep", "--database", dsn, "--json").stdout)
    assert report["made"] == [latest.partition(".")[2]]
    assert onceward("upkeep", "--database", dsn).stdout == "made 0 partitions, dropped 0\n"


def test_upkeep_says_why_it_retired_nothing(dsn: str, connect: Connect) -> None:
    connect().execute("SELECT pg_advisory_lock(%s, %s)", lock_key("onceward", LOCK_RETIRE))
    assert "no day was retired: another upkeep of this schema is at work" in onceward("upkeep", "--database", dsn).stdout
    assert json.loads(onceward("upkeep", "--database", dsn, "--json").stdout)["held_back"] == "busy"

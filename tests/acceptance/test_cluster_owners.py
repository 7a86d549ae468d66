"""Who owns a cluster for tests, and what is left when its owner dies: owners in processes of their own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.support.clusters import (
    SOURCES,
    backends,
    entries,
    linux_only,
    owner,
    rows,
    run,
    script,
    segment_of,
    shared_memory,
    watched,
)

from onceward.errors import UsageError
from onceward.testing.postgres import Cluster, sweep_leftovers
from onceward.testing.postgres.owners import Entry, Started, refuse_foreign


@linux_only
def test_leftovers_of_a_killed_owner_are_removed_at_the_next_start(temp: Path) -> None:
    # On another thread: the death signal is not set then, so that only the sweep can do it.
    with owner("thread") as (process, facts):
        server = Started.of(facts["pid"])
        assert server is not None
        segment = segment_of(Path(facts["folder"]))
        process.kill()
        process.wait()
        assert rows(facts["dsn"], "SELECT 1") == [1]
        alive = [server, *backends(facts["dsn"])]
        with Cluster.start() as cluster:
            assert not [one for one in alive if one.alive()]
            assert not Path(facts["folder"]).exists()
            assert rows(cluster.dsn, "SELECT 1") == [1]
            assert len(entries()) == 1
        assert segment not in shared_memory()


@linux_only
def test_a_server_ends_as_soon_as_its_owner_is_killed(temp: Path) -> None:
    with owner() as (process, facts), watched(facts["pid"]) as watch:
        process.kill()
        assert select.select([watch], [], [], 10)[0], "the server outlives its owner"
        process.wait()
        assert sweep_leftovers() == [facts["folder"]]
        assert sweep_leftovers() == []
        assert not Path(facts["folder"]).exists()


def test_two_owners_do_not_disturb_each_other(temp: Path, made: Path) -> None:
    with owner() as (process, facts), Cluster.start(made) as cluster:
        assert sweep_leftovers() == []
        assert rows(facts["dsn"], "SELECT 1") == [1]
        cluster.kill()
        assert rows(facts["dsn"], "SELECT 1") == [1]
        process.communicate("")  # its input ends: so does it, and what it started, without a `stop`
        assert process.returncode == 0
        assert not Path(facts["folder"]).exists()
        cluster.restart()
        assert rows(cluster.dsn, "SELECT 1") == [1]


def test_an_owner_is_recognised_by_its_start_as_well_as_by_its_pid(temp: Path) -> None:
    ours = Entry.add(temp / "onceward-ours", temporary=True)
    folder = temp / "onceward-other"
    folder.mkdir()
    stranger = Entry.add(folder, temporary=True)
    # The same pid, another start: the pid came again. Its server likewise is not the one on record, and is left alone.
    ended = Started(os.getpid(), "1")
    for path in entries():
        if path == Path(stranger.path):
            facts = json.loads(path.read_text())
            path.write_text(json.dumps(facts | {"owner": vars(ended), "server": vars(ended)}))
    assert sweep_leftovers() == [str(folder)]
    assert not folder.exists()
    assert entries() == [Path(ours.path)]
    ours.remove()


def test_a_forked_child_does_not_stop_its_parents_cluster(temp: Path) -> None:
    code = script("""
        import os, sys
        import psycopg
        from onceward.testing.postgres import Cluster
        from onceward.errors import UsageError

        with Cluster.start() as cluster:
            child = os.fork()
            if child == 0:
                cluster.stop()
                try:
                    cluster.kill()
                except UsageError:
                    sys.exit(7)  # through the end of the `with` block, and through atexit
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 7, status
            psycopg.connect(cluster.dsn).close()
        print("served")
    """)
    ended = run(code, env=os.environ | {"TMPDIR": str(temp)})
    assert (ended.stdout, ended.stderr, ended.returncode) == ("served\n", "", 0)


def test_a_registry_of_another_user_is_refused(temp: Path) -> None:
    (temp / f"onceward-{os.geteuid()}").symlink_to(temp)
    with pytest.raises(UsageError, match="not this user's own folder"):
        Cluster.start()


def test_dev_serves_until_it_is_told_to_stop_and_a_second_one_names_the_first(temp: Path) -> None:
    code = script("""
        import sys
        from onceward.testing.postgres import dev
        sys.exit(dev(prepare=lambda dsn: print("prepared", dsn)))
    """)
    environment = os.environ | {"TMPDIR": str(temp), "PYTHONPATH": str(SOURCES)}
    command = [sys.executable, "-W", "error", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=temp, env=environment) as process:
        assert process.stdout is not None
        prepared, dsn = process.stdout.readline().split()
        assert prepared == "prepared"
        server = Started.of(int((temp / ".onceward/pg/data/postmaster.pid").read_text().split()[0]))
        second = run(code, cwd=temp, env=environment)
        assert (second.returncode, second.stderr) == (2, "")
        assert dsn in second.stdout
        assert "already" in second.stdout
        assert rows(dsn, "SELECT 1") == [1]
        process.send_signal(signal.SIGTERM)
        output = process.stdout.read()
    assert process.returncode == 0
    assert dsn in output
    assert output.endswith("stopped\n")
    assert server is not None
    assert not server.alive()
    assert (temp / ".onceward" / ".gitignore").read_text() == "*\n"
    assert (temp / ".onceward" / "pg" / "data" / "PG_VERSION").exists()


def test_two_threads_start_at_once(temp: Path) -> None:
    started: list[Cluster] = []
    threads = [threading.Thread(target=lambda: started.append(Cluster.start())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [rows(cluster.dsn, "SELECT 1") for cluster in started] == [[1]] * 2
    assert len({cluster.port for cluster in started}) == 2
    for cluster in started:
        cluster.stop()
    assert entries() == []


OURS = ({"lock"}, {"lock", "log", "data.draft"}, {"lock", "log", "programs"}, {"lock", "data/PG_VERSION", "a note of mine"})
FOREIGN = ({"log"}, {"data/PG_VERSION"}, {"PG_VERSION", "base"}, {"lock", "passwd"}, {"lock", "data"}, {".hidden"})


@pytest.mark.parametrize("held", [set(), *OURS], ids=lambda held: " ".join(sorted(held)) or "nothing")
def test_a_folder_that_a_cluster_has_begun_or_holds_is_ours(held: set[str], tmp_path: Path) -> None:
    """Also one whose owner was killed at any moment before its cluster was made."""
    _lay_out(tmp_path, held)
    refuse_foreign(tmp_path)


@pytest.mark.parametrize("held", FOREIGN, ids=lambda held: " ".join(sorted(held)) or "nothing")
def test_a_folder_that_holds_something_else_is_refused(held: set[str], tmp_path: Path) -> None:
    _lay_out(tmp_path, held)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="name an empty or a new folder"):
        Cluster.start(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def _lay_out(folder: Path, names: set[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()

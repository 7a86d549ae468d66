"""A Postgres of a test's own, without an installed server.

It runs the programs of the system, or of a wheel.

    from onceward import migrate
    from onceward.testing.postgres import Cluster

    with Cluster.start() as cluster, psycopg.connect(cluster.dsn, autocommit=True) as conn:
        migrate(conn)
        ...
        cluster.kill()        # SIGKILL, as a crash of the machine would end it
        cluster.restart()     # recovered, at the same DSN

Start one for the whole test session, and give each test a database of its own: `create_database(name, template=...)` copies
one that is migrated already, in some tens of milliseconds. Needs `pip install 'onceward[testing]'`, and Linux or macOS;
elsewhere importing this raises `UsageError`, which says what to do.
"""

from importlib.util import find_spec

from onceward.errors import UsageError

if find_spec("fcntl") is None:
    raise UsageError("a Postgres for tests runs on Linux and macOS only: set a DSN of your own server")
if find_spec("psutil") is None:
    raise UsageError("a Postgres for tests needs psutil: pip install 'onceward[testing]', or set a DSN of your own server")

from onceward.testing.postgres.binaries import Binaries, find_binaries
from onceward.testing.postgres.cluster import AlreadyRunning, Cluster, ClusterFailed
from onceward.testing.postgres.dev import dev
from onceward.testing.postgres.owners import sweep_leftovers

__all__ = ["AlreadyRunning", "Binaries", "Cluster", "ClusterFailed", "dev", "find_binaries", "sweep_leftovers"]

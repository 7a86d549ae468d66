"""Postgres without a server: a cluster of one's own over `initdb` and `postgres`, from the system or from a wheel.

Importing this raises `UsageError` where it cannot work, and says what to do.
"""

from importlib.util import find_spec

from onceward.errors import UsageError

if find_spec("fcntl") is None:
    raise UsageError("the embedded Postgres runs on Linux and macOS only: set a DSN of your own server")
if find_spec("psutil") is None:
    raise UsageError(
        "the embedded Postgres needs psutil: pip install 'onceward[embedded]', or set a DSN of your own server"
    )

from onceward.testing.postgres.binaries import Binaries, find_binaries
from onceward.testing.postgres.cluster import AlreadyRunning, Cluster, ClusterFailed
from onceward.testing.postgres.dev import dev
from onceward.testing.postgres.owners import sweep_leftovers

__all__ = ["AlreadyRunning", "Binaries", "Cluster", "ClusterFailed", "dev", "find_binaries", "sweep_leftovers"]

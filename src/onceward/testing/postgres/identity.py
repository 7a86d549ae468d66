"""As which user the server runs.

Postgres refuses root, and a user that the machine does not know by name.
"""

from __future__ import annotations

import functools
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Final, Literal, NamedTuple

from onceward.errors import UsageError

LAUNCH: Final = (sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")))


class Identity(NamedTuple):
    """How `launch.py` changes itself, and which owner the files need, seen from outside."""

    kind: Literal["plain", "namespace", "user"]
    uid: int
    gid: int
    file_uid: int
    file_gid: int

    def arguments(self) -> list[str]:
        return [self.kind, str(self.uid), str(self.gid)]

    def own(self, folder: Path) -> None:
        """`folder` and all in it belong to the server's user.

        It changes last: after a crash, this is done again.
        """
        if os.geteuid() == 0 and folder.stat().st_uid != self.file_uid:
            for place in (*folder.rglob("*"), folder):
                os.chown(place, self.file_uid, self.file_gid, follow_symlinks=False)


@functools.cache
def server_identity() -> Identity:
    """Who the server is: this user; for root, and for a user without a name, `nobody`.

    First choice is a user namespace: `nobody` inside, this user outside, nothing on the machine changes, and folders
    that only this user can reach will do. Where that is refused (most containers), root starts the server as the real
    `nobody`. Tried once per process.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0 and _is_named(uid):
        return Identity("plain", uid, gid, uid, gid)
    nobody = _nobody()
    inside = Identity("namespace", nobody.pw_uid, nobody.pw_gid, uid, gid)
    if sys.platform == "linux" and _works(inside):
        return inside
    if uid == 0:
        return Identity("user", nobody.pw_uid, nobody.pw_gid, nobody.pw_uid, nobody.pw_gid)
    raise UsageError(f"Postgres refuses uid {uid}, which has no name in passwd: run as a user that has one, or set a DSN")


def _works(identity: Identity) -> bool:
    trial = subprocess.run([*LAUNCH, *identity.arguments(), "0", "0"], capture_output=True, check=False)
    return trial.returncode == 0


def _is_named(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _nobody() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise UsageError("Postgres refuses root, and this machine has no user `nobody`: run as an ordinary user") from None

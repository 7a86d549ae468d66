"""Becomes one of Postgres's programs.

It gives root up, follows its owner into death, and waits until it is on record.

Run as a script (`python -I -S launch.py ...`) and alone: it imports the standard library only. A `preexec_fn` would do
the same, but is not safe in a process with threads; this is, and it ends in `exec`, so its pid is the program's.

Arguments: identity (`plain`, `namespace`, `user`), uid, gid, the signal to get when the owner dies (0: none), the
owner's pid, and the command. Without a command it only tries the identity: the exit code says whether it works here.
"""

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWUSER = 0x10000000  # linux/sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h
GO = b"+"


def main(command: list[str], *, identity: str, uid: int, gid: int, death_signal: int, owner: int) -> None:
    """This process is `command`, under `identity`.

    It never starts if its owner died or does not say `GO` on stdin.
    """
    os.setsid()
    os.umask(0o077)
    os.closerange(3, 4096)
    libc = ctypes.CDLL(None, use_errno=True)
    if identity == "namespace":
        enter_namespace(libc, uid, gid)
    elif identity == "user":
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if death_signal:
        # Last, because a change of identity clears it. It fires when the *thread* that started us ends.
        if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != owner:
            raise SystemExit("launch: the owner has ended")
    if command:
        if os.read(0, 1) != GO:
            raise SystemExit("launch: the owner has ended")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execv(command[0], command)  # noqa: S606 - no shell is wanted


def enter_namespace(libc: ctypes.CDLL, uid: int, gid: int) -> None:
    """This process is `uid` in a user namespace of its own.

    For all outside it is still the user who started it.
    user_namespaces(7): who has just made a namespace may map the one id that it has itself.
    """
    outside_uid, outside_gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER)")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {outside_uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {outside_gid} 1")
    if os.geteuid() != uid:
        raise SystemExit("launch: the namespace has no effect")


if __name__ == "__main__":
    numbers = dict(zip(("uid", "gid", "death_signal", "owner"), map(int, sys.argv[2:6]), strict=True))
    main(sys.argv[6:], identity=sys.argv[1], **numbers)

"""Where the servers' programs are, and how they get there: jars by Maven, RabbitMQ by the system's package manager."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from onceward.errors import OncewardError, UsageError
from onceward.testing.postgres.owners import locked

_COPY: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_SAID_LINES_MAX: Final = 12
# A package of Debian starts its service when it is installed, unless this file says no: ours run privately.
_POLICY: Final = Path("/usr/sbin/policy-rc.d")
_START_NOTHING: Final = "#!/bin/sh\nexit 101\n"

logger = logging.getLogger("onceward")


class InstallFailed(OncewardError):
    """A program could not be installed; the text ends with what the installer said last."""


def servers_folder() -> Path:
    """What is kept of the servers: their programs, and the shared set.

    The environment's ONCEWARD_SERVERS_DIR, else `onceward/servers` in the user's cache.
    """
    named = os.environ.get("ONCEWARD_SERVERS_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(named) if named else Path(cache) / "onceward" / "servers"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made ({error.strerror}): name a folder in ONCEWARD_SERVERS_DIR") from error
    return folder.absolute()


def jars_folder(pom: Path) -> Path:
    """Where the jars that `pom` names are, or would be.

    The folder's name holds the checksum of `pom`: a change of what is installed is another folder.
    """
    digest = hashlib.sha256(pom.read_bytes()).hexdigest()[:12]
    return servers_folder() / f"{pom.name.partition('.')[0]}-{digest}"


def install_jars(pom: Path) -> Path:
    """The jars that `pom` names, and all that they need, are in the folder that is returned.

    What is there already is left as it is. Two callers at once take turns. Raises `UsageError` (no Maven, no Java) and
    `InstallFailed`.

    Crash: a draft is left, which the next installation removes. A folder without `.draft` in its name is whole.
    """
    folder = jars_folder(pom)
    if folder.exists():
        return folder
    program("java", "a Java of version 17 or newer", "apt-get install openjdk-17-jre-headless")
    maven = program("mvn", "Maven", "apt-get install maven")
    # One lock for all poms: Maven's local repository is not made for two that write to it.
    with locked(servers_folder() / "maven.lock"):
        if folder.exists():
            return folder
        logger.info("Maven copies the jars of %s to %s: some ten seconds", pom.name.partition(".")[0], folder)
        draft = folder.with_name(f"{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        command = [maven, "-q", "-B", "-f", str(pom), _COPY, f"-DoutputDirectory={draft}", "-DincludeScope=runtime"]
        _run(command, f"the jars of {pom.name}")
        draft.rename(folder)  # atomic: whoever sees the folder sees all of it
    return folder


def install_package(name: str, proof: Path) -> None:
    """The system's package `name` is installed: the file `proof`, which it brings, is there.

    No service of it is started. Raises `UsageError` where this user may not install packages, and `InstallFailed`.

    Crash: what apt has begun, apt continues. A `policy-rc.d` of ours may be left, and forbids services to start: the
    next installation does not take it for another's, and removes it.
    """
    if proof.exists():
        return
    by_hand = f"apt-get install -y --no-install-recommends {name}"
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        who = "there is no apt-get here" if apt is None else "only root may install packages"
        raise UsageError(f"{name} is not installed, and {who}: install it (Debian: sudo {by_hand})")
    with locked(servers_folder() / "packages.lock"):
        if proof.exists():
            return
        logger.info("apt-get installs %s: some ten seconds", name)
        install = [apt, *by_hand.split()[1:], "-qq", "-o", "DPkg::Lock::Timeout=300"]
        ours = not _POLICY.exists() or _POLICY.read_text() == _START_NOTHING
        try:
            if ours:
                _POLICY.write_text(_START_NOTHING)
                _POLICY.chmod(0o755)
            # The lists of a fresh machine are empty, and those of an old one name versions that are gone.
            _run([apt, "update", "-qq"], "the package lists", DEBIAN_FRONTEND="noninteractive")
            _run(install, name, DEBIAN_FRONTEND="noninteractive")
        finally:
            if ours:
                _POLICY.unlink(missing_ok=True)


def program(name: str, what: str, by_hand: str) -> str:
    """Where the program `name` is. Raises `UsageError`, with the command that installs it, when it is not."""
    found = shutil.which(name)
    if found is None:
        raise UsageError(f"{what} is needed, and `{name}` was not found: install it (Debian: {by_hand})")
    return found


def _run(command: list[str], what: str, **environment: str) -> None:
    """The command has succeeded. Raises `InstallFailed` with its last lines otherwise."""
    variables: Mapping[str, str] = os.environ | environment
    with tempfile.TemporaryFile() as said:
        # Into a file, not a pipe: a service that the installation starts would hold the pipe open.
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=variables, check=False
        )  # fmt: skip
        if done.returncode != 0:
            said.seek(0)
            last = said.read().decode(errors="replace").splitlines()[-_SAID_LINES_MAX:]
            ended = f"`{command[0]}` ended with {done.returncode}"
            raise InstallFailed("\n".join([f"{what} cannot be installed, {ended}:", *last]))

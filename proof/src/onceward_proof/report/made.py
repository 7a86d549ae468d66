"""What a result was made with: commit, date, machine, versions, command, and a checksum of the core that ran.

A figure in the documentation is worth something only while the code that it speaks of is the code that ran. The checksum
says whether it still is: it changes with every file that takes part in a delivery or in the sending of a message on the
queue of the run, and not with their comments.
"""

from __future__ import annotations

import ast
import io
import os
import platform
import subprocess
import sys
import tokenize
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import onceward
from onceward.testing.postgres.binaries import find_binaries

LIBRARY: Final = Path(onceward.__file__).parent
# All of the library is core, so that a new module counts until somebody says that it does not. These only start a
# process, say what it does, or look whether it may.
BESIDE: Final = frozenset({"__main__", "cli", "endpoints", "former_names", "health", "logs", "rights"})
FOLDERS: Final = ("protocol", "sql", "migrations", "transports")
# Of a queue whose adapter is a folder: it took part in the runs on that queue, and in no other.
ADAPTERS: Final = {"rabbitmq": "transports/rabbitmq", "kafka": "transports/kafka"}
# Options whose value is a file to write: where a result went says nothing about how it was made.
WRITTEN: Final = ("--json", "--html")
CHECKOUT_SECONDS_MAX: Final = 10.0


def core_checksum(library: Path = LIBRARY, queue: str = "pgmq") -> str:
    """Sixteen digits that change when the core's code or a statement of it does, or the adapter of a run on `queue`."""
    return _checksum(_sources(library), queue)


def _sources(library: Path) -> dict[str, str]:
    """Each file of the core and of every adapter, name to text."""
    flat = (file for file in library.glob("*.py") if file.stem not in BESIDE)
    folders = (*FOLDERS, *ADAPTERS.values())
    below = (file for folder in folders for file in (library / folder).iterdir() if file.suffix in (".py", ".sql"))
    return {file.relative_to(library).as_posix(): file.read_text(encoding="utf-8") for file in (*flat, *below)}


def _checksum(sources: Mapping[str, str], queue: str) -> str:
    others = tuple(f"{folder}/" for name, folder in ADAPTERS.items() if name != queue)
    digest = sha256()
    for name, source in sorted(sources.items()):
        if name.startswith(others):
            continue
        code = _without_comments(source) if name.endswith(".py") else _statements(source)
        digest.update(f"{name}\0{code}\0".encode())
    return digest.hexdigest()[:16]


def _without_comments(source: str) -> str:
    """The lines of Python that are neither comment, docstring nor empty."""
    # Not ast.unparse: each version of Python would write another text, and the checksum must be the same under all.
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            lines[line - 1] = lines[line - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            last = node.end_lineno or node.lineno
            lines[node.lineno - 1 : last] = [""] * (last - node.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _statements(source: str) -> str:
    return "\n".join(line.rstrip() for line in source.splitlines() if line.strip() and not line.startswith("--"))


# Read when the run begins: a core that is edited during a soak of half an hour is not the one that ran. Only read, because
# a checksum takes a moment, and few runs write a result.
_SOURCES_AT_THE_START: Final = _sources(LIBRARY)


def made(*, with_postgres: bool = True, queue: str = "pgmq") -> dict[str, Any]:
    """With what this process makes its result, of a run on `queue`. No host, no user and no path is named.

    `commit` is null outside a checkout; it ends in `-dirty` where a file of the code differs from it. `postgres` is null
    where no server ran.
    """
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
            "os": f"{platform.system()} {platform.machine()}",
        },
        "python": platform.python_version(),
        "postgres": _postgres_version() if with_postgres else None,
        "command": command_line(sys.argv[1:]),
        "core": _checksum(_SOURCES_AT_THE_START, queue),
    }


def command_line(arguments: Sequence[str]) -> str:
    """The command as somebody else would type it: without the files that were written, and without folders."""
    shown: list[str] = []
    is_file = False
    for argument in arguments:
        if not (is_file or argument.startswith(WRITTEN)):
            shown.append(argument.rpartition("/")[2])
        # `--json FILE` are two arguments, `--json=FILE` is one.
        is_file = argument in WRITTEN
    return " ".join(("onceward", *shown))


def _postgres_version() -> str | None:
    """Of the programs that the proof starts its servers with."""
    # postgres (PostgreSQL) 17.2 (Debian 17.2-1): the number is the third word, with or without what a packager adds.
    words = _output(find_binaries().postgres, "--version").split()
    return words[2] if len(words) > 2 else None


def _commit() -> str | None:
    checkout = LIBRARY.parents[1]
    if not (checkout / ".git").exists():
        return None
    commit = _output("git", "-C", checkout, "rev-parse", "--short=12", "HEAD")
    # The kept results themselves are being written while the evidence is made again.
    changed = _output("git", "-C", checkout, "status", "--porcelain", "--", "src", "proof", "examples")
    return (commit + ("-dirty" if changed else "")) or None


def _output(*command: str | Path) -> str:
    """What the program says; nothing where it cannot be run, because a result is worth more than its label."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECKOUT_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def to_sentence(facts: Mapping[str, Any]) -> str:
    """What stands under a table: the same facts, for a reader."""
    machine = facts["machine"]
    commit = facts["commit"] or "unknown"
    postgres = f", PostgreSQL {facts['postgres']}" if facts["postgres"] else ""
    return (
        f"Made on {facts['date']} at commit {commit}, core {facts['core']}: {machine['cores']} cores, "
        f"{machine['memory_gb']:g} GB, {machine['os']}, Python {facts['python']}{postgres}."
    )

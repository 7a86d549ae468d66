"""A person at the command line: each `onceward parked ...` is a process of its own, as it is where people decide."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from onceward.errors import OncewardError

PARKED: Final = (sys.executable, "-m", "onceward", "parked")
STOOD: Final = 0  # the exit code of a command whose decision stands
REFUSED: Final = 1  # of one that came too late, or must not be carried out

Strike = Callable[[Process], Awaitable[None]]


class CommandFailed(OncewardError):
    """A command that only reads has failed: nothing can be decided."""


class Ended(NamedTuple):
    """How a person's command ended.

    `exit_code`: negative after a signal; `complaint`: the last line of standard error.
    """

    person: str
    exit_code: int
    complaint: str


class Person:
    """Somebody who types commands against one database. `name` is kept with each decision."""

    def __init__(self, name: str, database: str) -> None:
        self.name = name
        self._database = database

    async def read(self, *arguments: str) -> Any:
        """What a command prints as JSON. Raises `CommandFailed`."""
        async with self._typed(*arguments, "--json") as process:
            out, error = await process.communicate()
        if process.returncode:
            raise CommandFailed(f"onceward parked {' '.join(arguments)} ended with {process.returncode}: {error.decode()}")
        return json.loads(out)

    async def settle(self, message_id: str, claim: tuple[str, ...], strike: Strike | None = None) -> Ended:
        """The person says `claim` of an effect of this message, and perhaps `strike` ends the process meanwhile."""
        named = ("--by", self.name, "--reason", "onceward prove --resolve", "--json")
        async with self._typed("settle", message_id, *claim, *named) as process:
            reading = asyncio.create_task(process.communicate())
            if strike is not None:
                await strike(process)
            _, error = await reading
        lines = error.decode().splitlines()
        return Ended(self.name, process.returncode or STOOD, lines[-1] if lines else "")

    @asynccontextmanager
    async def _typed(self, *arguments: str) -> AsyncIterator[Process]:
        """The command's process; afterwards it has ended, whatever happens here meanwhile."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = await asyncio.create_subprocess_exec(
            *PARKED, *arguments, "--database", self._database, stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE,
            env=environment,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

"""The provider's end of the line to the controller: every charge request and its answer is a passage, too.

The worker that asked is named by a header, never by the request itself (that would change what the key is compared with).
"""

from __future__ import annotations

import asyncio
import json
from itertools import count
from pathlib import Path
from typing import Any, Final

from onceward_proof.faults import SLOW_SECONDS
from onceward_proof.passage import Everywhere, armed_places
from onceward_proof.provider.hook import GO, Context, Kind, Verdict
from onceward_proof.schedule import read_schedule

VERDICTS: Final = {
    "go": GO,
    "drop": Verdict(Kind.DROP_REQUEST),
    "cut": Verdict(Kind.CUT_AFTER),
    "slow": Verdict(Kind.SLOW_RESPONSE, seconds=SLOW_SECONDS),
    "error before": Verdict(Kind.ERROR_BEFORE),
    "error after": Verdict(Kind.ERROR_AFTER),
}


class Reporter:
    """The hook that the proof's provider runs with."""

    def __init__(self, socket_path: str, schedule_path: str) -> None:
        self._socket_path = socket_path
        # Without a schedule, one goes on: the controller is asked each time.
        self._armed = frozenset(armed_places(read_schedule(Path(schedule_path)))) if schedule_path else Everywhere()
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._numbers = count(1)
        self._lock = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None

    async def request(self, context: Context) -> Verdict:
        return await self._pass_by("request", context)

    async def response(self, context: Context) -> Verdict:
        return await self._pass_by("response", context)

    async def _pass_by(self, boundary: str, context: Context) -> Verdict:
        if context.method != "POST" or context.transfer_group is None:
            return GO
        what: dict[str, Any] = {
            "at": boundary, "type": "order.placed", "order": context.transfer_group, "worker": context.worker,
            "key": context.idempotency_key, "replayed": context.replayed, "charge": context.charge,
            "status": context.status,
        }  # fmt: skip
        if (boundary, "order.placed", context.transfer_group) not in self._armed:
            await self._send(what)
            return GO
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._send(what | {"ask": number})
        return VERDICTS[await answer]

    async def _send(self, what: dict[str, Any]) -> None:
        async with self._lock:
            if self._writer is None:
                reader, self._writer = await asyncio.open_unix_connection(self._socket_path)
                self._reading = asyncio.create_task(self._read(reader))
                self._writer.write(b'{"hello": {"role": "provider", "slot": 0, "pid": 0}}\n')
        self._writer.write(json.dumps(what).encode() + b"\n")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            answer = json.loads(line)
            self._waiting.pop(answer["ask"]).set_result(answer["do"])


def make(argument: str) -> Reporter:
    """The hook factory that the provider's process calls: `argument` is JSON, [controller's socket, schedule file]."""
    socket_path, schedule_path = json.loads(argument)
    return Reporter(socket_path, schedule_path)

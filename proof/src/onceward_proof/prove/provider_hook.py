"""The provider's end of the line to the controller: every charge request and its answer is a passage, too.

The worker that asked is named by a header, never by the request itself (that would change what the key is compared with).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import count
from typing import Final

from onceward_proof.prove.faults import SLOW_SECONDS, Answer, Boundary
from onceward_proof.provider.call import Call
from onceward_proof.provider.hook import GO, Kind, Verdict
from onceward_proof.workers.line import waits_for
from onceward_proof.workers.reports import Note, Reply, Report

VERDICTS: Final = {
    Answer.GO: GO,
    Answer.DROP: Verdict(Kind.DROP_REQUEST),
    Answer.CUT: Verdict(Kind.CUT_AFTER),
    Answer.SLOW: Verdict(Kind.SLOW_RESPONSE, seconds=SLOW_SECONDS),
    Answer.ERROR_BEFORE: Verdict(Kind.ERROR_BEFORE),
    Answer.ERROR_AFTER: Verdict(Kind.ERROR_AFTER),
}


class Reporter:
    """The hook that the proof's provider runs with. `argument` is JSON: the controller's socket, and the schedule file."""

    def __init__(self, argument: str) -> None:
        self._socket_path, schedule_path = json.loads(argument)
        self._waits = waits_for(schedule_path)
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._numbers = count(1)
        self._opening = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None

    async def request(self, call: Call) -> Verdict:
        return await self._pass_by(Boundary.REQUEST, call)

    async def response(self, call: Call) -> Verdict:
        return await self._pass_by(Boundary.RESPONSE, call)

    async def _pass_by(self, boundary: Boundary, call: Call) -> Verdict:
        # A look-up charges nothing, and what names no order cannot be aimed at.
        if call.method != "POST" or call.transfer_group is None:
            return GO
        report = Report(
            boundary, message_type="order.placed", order=call.transfer_group, worker=call.worker or "",
            key=call.idempotency_key, replayed=call.replayed, charge=call.charge, status=call.status,
        )  # fmt: skip
        if not self._waits(report):
            await self._send(report)
            return GO
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        await self._send(replace(report, ask=number))
        return VERDICTS[await answer]

    async def _send(self, report: Report) -> None:
        # Opened at the first request: the controller listens by then, and this process has its event loop.
        async with self._opening:
            if self._writer is None:
                reader, self._writer = await asyncio.open_unix_connection(self._socket_path)
                self._reading = asyncio.create_task(self._read(reader))
                self._writer.write(Report(Note.HELLO).encode())
        self._writer.write(report.encode())

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            reply = Reply.decode(line)
            self._asked.pop(reply.ask).set_result(reply.answer)

"""Where schedules are kept for a replay: a folder that only this user can write to."""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final
from uuid import uuid4

from onceward.testing.postgres.owners import registry
from onceward_proof.prove.schedule import Schedule, schedule_text

# Some 100 kB each. A run under way reads its schedule again for each worker that it starts: it must be among the latest.
KEPT_MAX: Final = 100


def keep_schedule(schedule: Schedule, folder: Path | None = None) -> Path:
    """The schedule is in a file, in `folder` or in this user's own.

    Only the latest are kept in the user's own. Crash: a draft is left there until it is no longer among the latest.
    """
    text = schedule_text(schedule)
    # The name is made of the content, so that two runs at once never overwrite each other's file with something else.
    digest = sha256(text.encode()).hexdigest()[:8]
    where = folder or registry() / "schedules"
    where.mkdir(exist_ok=True)
    path = where / f"onceward-schedule-{schedule.seed}-{len(schedule.orders)}-{digest}.json"
    draft = where / f"{path.name}.{uuid4().hex}"
    # Renamed when it is whole: a worker that starts at this moment must not read half of it.
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    if folder is None:
        _delete_oldest(where)
    return path


def _delete_oldest(folder: Path) -> None:
    files: list[tuple[float, str]] = []
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # another run has deleted it meanwhile
            files.append((entry.stat().st_mtime, entry.path))
    for _, path in sorted(files, reverse=True)[KEPT_MAX:]:
        Path(path).unlink(missing_ok=True)

"""Whether a loop is live and ready, as a file or a tiny HTTP server shows it.

live    the loop turns; a handler that takes long does not stop it, a call that never returns does. Else: restart it
ready   the queue and the database have answered lately, and nothing drains. Else: look, but a restart would not help

The loop only leaves marks here, which costs it next to nothing; they are shown from a thread of its own.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from onceward.errors import UsageError
from onceward.events import Event

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

logger = logging.getLogger("onceward")
LIVE_SECONDS: Final = 60.0  # above every wait of a turn that is not stuck: a pool's, a connect, a pause after failures
READY_SECONDS: Final = 30.0
WRITE_SECONDS: Final = 1.0
CLIENT_SECONDS_MAX: Final = 5.0


class Health:
    """When a loop last did what; and from that, whether it is live and ready.

    Its times are of this process's clock.
    """

    def __init__(self, *, live_seconds: float = LIVE_SECONDS, ready_seconds: float = READY_SECONDS) -> None:
        self._live_seconds = live_seconds
        self._ready_seconds = ready_seconds
        self._turn_due = time.monotonic() + live_seconds
        # Never: a process is not ready before both have answered once.
        self._database_at = -math.inf
        self._queue_at = -math.inf
        self._progress_at = -math.inf
        self._draining = False
        self.in_hand: int | None = None  # deliveries received and not settled; None: this loop does not count them
        self._parts: dict[str, Health] = {}

    def part(self, name: str) -> Health:
        """The health of one of several loops: from now on, this is live and ready when all its parts are."""
        return self._parts.setdefault(name, Health(live_seconds=self._live_seconds, ready_seconds=self._ready_seconds))

    def turned(self) -> None:
        """The loop goes round: the next turn is due in `live_seconds`."""
        self._turn_due = time.monotonic() + self._live_seconds

    def database_answered(self) -> None:
        self._database_at = time.monotonic()

    def queue_answered(self) -> None:
        self._queue_at = time.monotonic()

    def database_failed(self) -> None:
        self._database_at = -math.inf

    def queue_failed(self) -> None:
        self._queue_at = -math.inf

    def progressed(self) -> None:
        """Something was received, or settled."""
        self._progress_at = time.monotonic()

    def drains(self, seconds: float) -> None:
        """The loop has been told to stop, and may need `seconds` for it without a turn."""
        self._draining = True
        self._turn_due = time.monotonic() + seconds + self._live_seconds

    def database_is_doubtful(self) -> bool:
        """It has not answered for half the time after which this is no longer ready: ask it."""
        return time.monotonic() - self._database_at > self._ready_seconds / 2

    @property
    def live(self) -> bool:
        if self._parts:
            return all(part.live for part in self._parts.values())
        return time.monotonic() < self._turn_due

    @property
    def ready(self) -> bool:
        if self._parts:
            return all(part.ready for part in self._parts.values())
        # The older of the two: a loop that has only one of them does nothing.
        answered = min(self._database_at, self._queue_at)
        return self.live and not self._draining and time.monotonic() - answered < self._ready_seconds

    def report(self) -> dict[str, Any]:
        """All of it, as plain JSON. Seconds are since it last happened; null: never.

        Of several loops, what was longest ago counts for the answers, and what was last for the progress.
        """
        if self._parts:
            return _together({name: part.report() for name, part in self._parts.items()})
        now = time.monotonic()

        def since(moment: float) -> float | None:
            return None if moment == -math.inf else round(now - moment, 1)

        return {
            "live": self.live,
            "ready": self.ready,
            "draining": self._draining,
            "last_progress_seconds": since(self._progress_at),
            "database_answered_seconds": since(self._database_at),
            "queue_answered_seconds": since(self._queue_at),
            "in_hand": self.in_hand,
            "pid": os.getpid(),
        }


def _together(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The reports of several loops as one, with each of them by its name."""
    reports = [*parts.values()]

    def longest_ago(key: str) -> float | None:
        seconds = [report[key] for report in reports]
        return None if None in seconds else max(seconds)

    return {
        "live": all(report["live"] for report in reports),
        "ready": all(report["ready"] for report in reports),
        "draining": any(report["draining"] for report in reports),
        "last_progress_seconds": min(
            (report["last_progress_seconds"] for report in reports if report["last_progress_seconds"] is not None),
            default=None,
        ),
        "database_answered_seconds": longest_ago("database_answered_seconds"),
        "queue_answered_seconds": longest_ago("queue_answered_seconds"),
        "in_hand": sum(report["in_hand"] or 0 for report in reports),
        "pid": os.getpid(),
        "consumers": parts,
    }


def of_relay(health: Health) -> Callable[[Event], None]:
    """A listener that leaves a relay's marks here."""
    # The lanes, by the thread that calls this, that have locked rows and no answer of the sink yet.
    sending: set[int] = set()

    def mark(event: Event) -> None:
        lane = threading.get_ident()
        health.turned()
        match event.point:
            case "relay.taken":
                health.database_answered()
                sending.add(lane)
            case "relay.published":
                health.queue_answered()
                sending.discard(lane)
            case "relay.deleted":
                health.progressed()
            case "relay.looked" if event.fields["failing"]:
                (health.queue_failed if lane in sending else health.database_failed)()
                sending.discard(lane)
            case "relay.looked":
                health.database_answered()
                if not sending:
                    health.queue_answered()  # it was not asked, but nothing waits for its answer

    return mark


@contextmanager
def shown(health: Health, target: str | None) -> Iterator[None]:
    """`health` can be read at `target`: a file, `HOST:PORT` or `:PORT` (127.0.0.1 alone).

    None: nowhere.
    Raises `UsageError` when it cannot be shown at the start. Later failures are logged: showing it never stops the loop.
    """
    if target is None:
        yield
        return
    address = _address(target)
    with _in_file(health, Path(target)) if address is None else _at_port(health, *address):
        yield


def _address(target: str) -> tuple[str, int] | None:
    """Host and port; None: it is a file."""
    if not target or target.isdigit():
        raise UsageError(f"health: {target!r} is neither a file nor HOST:PORT; a port of this machine is written :8080")
    match = re.fullmatch(r"\[?(?P<host>[^/]*?)\]?:(?P<port>\d+)", target)
    if match is None:
        return None
    if int(match["port"]) > 65535:
        raise UsageError(f"health: there is no port {match['port']}")
    return match["host"] or "127.0.0.1", int(match["port"])


@contextmanager
def _in_file(health: Health, file: Path) -> Iterator[None]:
    if file.is_dir():
        raise UsageError(f"health: {file} is a folder")
    try:
        _write(health, file)
    except OSError as error:
        raise UsageError(f"health: {file} cannot be written: {error}") from error
    ended = threading.Event()
    writer = threading.Thread(target=_keep_writing, args=(health, file, ended), name="onceward-health", daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join(timeout=CLIENT_SECONDS_MAX)
        _remove(file)


def _write(health: Health, file: Path) -> None:
    """The file holds the new report: a reader sees that or the one before, never half of one."""
    # In the same folder, so that the rename below is atomic; with the pid, because two processes may name the same file.
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_text(json.dumps(health.report()) + "\n", encoding="utf-8")
    fresh.replace(file)


def _keep_writing(health: Health, file: Path, ended: threading.Event) -> None:
    failing = False
    while not ended.wait(WRITE_SECONDS):
        try:
            _write(health, file)
            failing = False
        except Exception as error:  # noqa: BLE001 - showing health must not end anything; logged once per outage
            if not failing:
                logger.error("writing the health file failed; retrying every %.0f s: %s", WRITE_SECONDS, error)
            failing = True


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        logger.error("removing the health file failed; it describes a process that has ended: %s", error)


@contextmanager
def _at_port(health: Health, host: str, port: int) -> Iterator[None]:
    server = _server(health, host, port)
    threading.Thread(target=server.serve_forever, name="onceward-health", daemon=True).start()
    logger.info("health is at http://%s:%d", host, server.server_address[1])
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _server(health: Health, host: str, port: int) -> ThreadingHTTPServer:
    import socket  # noqa: PLC0415 - only where a port is wanted
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer  # noqa: PLC0415 - likewise

    class Server(ThreadingHTTPServer):
        daemon_threads = True  # a probe that never reads its answer must not hold up the end of the process
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def handle_error(self, _request: Any, client_address: Any) -> None:
            logger.info("answering a health request of %s failed", client_address, exc_info=True)

    class Answer(BaseHTTPRequestHandler):
        timeout = CLIENT_SECONDS_MAX

        def do_GET(self) -> None:
            code, text = answer(health, self.path)
            body = f"{text}\n".encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json" if text.startswith("{") else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, _format: str, *_: Any) -> None:
            """Probes come every few seconds: a line each would bury the rest."""

    try:
        return Server((host, port), Answer)
    except OSError as error:
        raise UsageError(f"health: cannot listen at {host}:{port}: {error}") from error


def answer(health: Health, path: str) -> tuple[int, str]:
    """Status and body for one GET: 200 is yes, 503 is no."""
    match path.partition("?")[0]:
        case "/live":
            return (200, "live") if health.live else (503, "not live: the loop has not turned lately")
        case "/ready":
            return (200, "ready") if health.ready else (503, "not ready: see /")
        case "/":
            return 200, json.dumps(health.report())
    return 404, "unknown path: ask for /live, /ready or /"

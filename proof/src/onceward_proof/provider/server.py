"""The provider as a process: serve it here, start it as a child that can be killed, or run it by hand."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from sqlite3 import DatabaseError
from types import FrameType, TracebackType
from typing import Any, Final, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from onceward_proof.provider.app import create_app
from onceward_proof.provider.call import CONNECTION
from onceward_proof.provider.hook import Hook
from onceward_proof.provider.ledger import WINDOW_SECONDS, Ledger

HOST: Final = "127.0.0.1"
BACKLOG: Final = 1024
# A connection that the server closes while the client sends would be a fault that nobody planned.
KEEP_ALIVE_SECONDS: Final = 86_400
START_SECONDS_MAX: Final = 30
STOP_SECONDS_MAX: Final = 5

HookFactory = Callable[[], Hook]

HOW_TO: Final = """\
Stripe's idempotency rules, on your machine. Ctrl-C ends it; {database} keeps the ledger. Drive it with the SDK:

    import stripe
    client = stripe.StripeClient("sk_test_x", base_addresses={{"api": "{url}"}}, max_network_retries=0)
    client.v1.charges.create({{"amount": 500, "currency": "usd", "source": "tok_visa"}},
                             options={{"idempotency_key": "order-1"}})

Move its clock past the {window:g} s window, and the same key charges again:

    curl -d '{{"advance_seconds": {window:g}}}' {url}/_admin/clock
    curl {url}/_admin/ledger
"""


class PortInUse(Exception):
    """The port is taken: another process listens there."""


class CuttableProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which also hands itself to the application, so that a connection can be cut."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.app_state = {**self.app_state, CONNECTION: self}


class Server(uvicorn.Server):
    """uvicorn's server; it says when it is ready, and cuts what is slow or held when it is told to end."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], close: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self._close = close
        self._parent: int | None = None

    def end_with_parent(self) -> None:
        """End the process at once when its parent has ended, however it ended.

        The parent holds the other end of our standard input, and never writes: its end is our end of file. A fork of
        the parent may hold that end open for longer, hence the look at the parent's process id on every tick.
        """
        self._parent = os.getppid()
        threading.Thread(target=_exit_at_end_of_input, daemon=True).start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, then say so."""
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Look whether the parent is still there, ten times a second."""
        if self._parent is not None and os.getppid() != self._parent:
            os._exit(0)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cut what waits, then let uvicorn close the rest."""
        self._close()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End on SIGTERM and SIGINT; unlike uvicorn, do not raise them again, so that the ledger is closed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  (uvicorn's signature)
        """Begin to end."""
        self.should_exit = True


def serve(
    database: Path,
    port: int = 0,
    hook_factory: HookFactory | None = None,
    ready: Callable[[str], None] | None = None,
    *,
    window_seconds: float | None = None,
    with_parent: bool = False,
) -> None:
    """Serve the provider on loopback until SIGTERM or SIGINT; blocks.

    `port` 0 takes a free one; `ready` is called with the URL once requests are accepted. `window_seconds` None keeps
    what the database says. `with_parent`: die when standard input ends or the parent does. Raises `PortInUse`.

    Crash: see `Ledger`; faults on demand, requests in flight and held answers are gone.
    """
    listener = listen(port)
    url = f"http://{HOST}:{listener.getsockname()[1]}"
    ledger = Ledger(database)
    try:
        if window_seconds is not None:
            ledger.set_window(window_seconds)
        app = create_app(ledger, hook_factory() if hook_factory else None)
        say_ready = ready or (lambda _url: None)
        server = Server(_config(app), lambda: say_ready(url), app.state.gateway.close)
        if with_parent:
            server.end_with_parent()
        server.run(sockets=[listener])
    finally:
        listener.close()
        ledger.close()


def listen(port: int) -> socket.socket:
    """Give a socket that is bound to the port on loopback; `PortInUse` if that cannot be."""
    # asyncio sets TCP_NODELAY only on sockets whose protocol is named; without it every answer waits 40 ms for an ACK.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":  # elsewhere this option would let two servers share one port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise PortInUse(f"cannot listen on {HOST}:{port}: {error.strerror}") from error
    return listener


def main(port: int = 0, database: Path = Path("provider.sqlite"), window: float | None = None) -> int:
    """Run the provider by hand until Ctrl-C.

    0 at its end, 2 if the port is taken or the file is not a database.
    """

    def ready(url: str) -> None:
        print(url)
        print(HOW_TO.format(url=url, database=database, window=window or WINDOW_SECONDS), flush=True)

    try:
        serve(database, port, ready=ready, window_seconds=window)
    except (PortInUse, DatabaseError) as error:
        print(f"provider: {error}", file=sys.stderr)
        return 2
    return 0


class ProviderProcess:
    """The provider as a child process, on a port that it keeps over restarts.

    It dies when this process does.
    """

    def __init__(
        self,
        database: Path,
        *,
        port: int = 0,
        window_seconds: float | None = None,
        hook: str | None = None,
        hook_argument: str = "",
        log: Path | None = None,
    ) -> None:
        """Start it; it accepts requests when this returns.

        `hook` names a factory ("package.module:function"), called in the child with `hook_argument`. What is importable
        here is importable there. `log` takes its standard error; None: ours.
        """
        self._options = {"database": str(database), "window_seconds": window_seconds, "hook": hook}
        self._options["hook_argument"] = hook_argument
        self._port = port
        self._log = log
        self._child = self._begin()

    @property
    def url(self) -> str:
        """The base address for the SDK."""
        return f"http://{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """The process id of the present child."""
        return self._child.pid

    def admin(self, path: str, document: object = None, *, method: str | None = None) -> Any:
        """Call /_admin/`path`: POST if there is a document, else GET; give its JSON answer."""
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(f"{self.url}/_admin/{path}", data, method=method)  # noqa: S310  (our own URL)
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)

    def kill(self) -> None:
        """SIGKILL, and return once the process is gone.

        Crash: exactly one; see `Ledger` for what is left.
        """
        self._child.kill()
        self._reap()

    def stop(self) -> None:
        """SIGTERM, and return once the process is gone; it has a second to close its connections."""
        self._child.terminate()
        try:
            self._child.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._child.kill()
        self._reap()

    def restart(self) -> None:
        """Kill it if it still runs, and start it on the same port and database."""
        self.kill()
        self._child = self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _begin(self) -> subprocess.Popen[str]:
        options = json.dumps(self._options | {"port": self._port})
        command = [sys.executable, "-m", "onceward_proof.provider", options]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with self._log.open("a") if self._log else nullcontext() as log:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self._port = _ready_port(child)
        return child

    def _reap(self) -> None:
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()


def _ready_port(child: subprocess.Popen[str]) -> int:
    """Read the child's first line, its URL.

    A child that ends before it or says nothing for long is an error.
    """
    assert child.stdout is not None  # noqa: S101  (asked for above)
    too_late = threading.Timer(START_SECONDS_MAX, child.kill)
    too_late.start()
    try:
        line = child.stdout.readline()
    finally:
        too_late.cancel()
    if not line:
        child.communicate()
        raise RuntimeError(f"the provider did not start: exit code {child.returncode}")
    return int(line.rsplit(":", 1)[1])


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app, http=CuttableProtocol, ws="none", loop="asyncio", lifespan="off", log_level="warning", access_log=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=1,
    )  # fmt: skip


def _exit_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)

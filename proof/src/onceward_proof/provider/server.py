"""The provider as a process: serve it, start it as a child that can be killed, or run it by hand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from sqlite3 import DatabaseError
from types import FrameType
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
STOP_SECONDS_MAX: Final = 5

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
    """Nobody can listen on this port: another process does, as a rule."""


class CuttableProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which also hands itself to the application, so that a connection can be cut."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.app_state = {**self.app_state, CONNECTION: self}


class Server(uvicorn.Server):
    """uvicorn's server; it ends with its parent, and cuts what is slow or held when it is told to end."""

    def __init__(self, config: uvicorn.Config, close: Callable[[], None], parent: int | None) -> None:
        super().__init__(config)
        self._close = close
        self._parent = parent

    async def on_tick(self, counter: int) -> bool:
        """End the process when its parent has ended, however it ended; uvicorn calls this ten times a second."""
        if self._parent is not None and os.getppid() != self._parent:
            os._exit(0)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cut what waits, then let uvicorn close the rest."""
        self._close()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  (uvicorn's signature)
        """Begin to end, on SIGTERM and SIGINT."""
        # Not kept for uvicorn to raise again at its end: the ledger is to be closed first.
        self.should_exit = True


def serve(listener: socket.socket, ledger: Ledger, hook: Hook | None = None, parent: int | None = None) -> None:
    """Serve the provider until SIGTERM or SIGINT; blocks. `parent`: die when this process, which started us, has ended.

    Crash: see `Ledger`; faults on demand, requests in flight and held answers are gone.
    """
    app = create_app(ledger, hook)
    config = uvicorn.Config(
        app, http=CuttableProtocol, ws="none", loop="asyncio", lifespan="off", log_level="warning", access_log=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=1,
    )  # fmt: skip
    Server(config, app.state.gateway.close, parent).run(sockets=[listener])


def listen(port: int) -> socket.socket:
    """Give a socket that is bound to the port on loopback; `PortInUse` if that cannot be."""
    try:
        listener = socket.create_server((HOST, port), backlog=BACKLOG)
    except OSError as error:
        raise PortInUse(f"cannot listen on {HOST}:{port}: {os.strerror(error.errno or 0)}") from error
    # Connections inherit it; asyncio would not set it on them. Without it every answer waits 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def main(port: int, database: Path, window: float | None) -> int:
    """Run the provider by hand until Ctrl-C; 0 at its end, 2 if the port is taken or the file is not a database."""
    try:
        # Ctrl-C is how it ends, also in the moment before uvicorn handles the signal.
        with suppress(KeyboardInterrupt), listen(port) as listener, closing(Ledger(database, window)) as ledger:
            url = f"http://{HOST}:{listener.getsockname()[1]}"
            print(url)
            print(HOW_TO.format(url=url, database=database, window=window or WINDOW_SECONDS), flush=True)
            serve(listener, ledger)
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
        window_seconds: float | None = None,
        hook: str | None = None,
        hook_argument: str = "",
        log: Path | None = None,
    ) -> None:
        """Start it; what is asked from now on, it answers.

        `hook` names a factory ("package.module:function"), called in the child with `hook_argument`. What is importable
        here is importable there. `log` takes its standard error; None: ours.
        """
        self._options = {"database": str(database), "window_seconds": window_seconds}
        self._options |= {"hook": hook, "hook_argument": hook_argument, "parent": os.getpid()}
        self._port = 0  # a free one, at first
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
        self._child.wait()

    def stop(self) -> None:
        """SIGTERM, and return once the process is gone; it has a second to close its connections."""
        self._child.terminate()
        try:
            self._child.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self) -> None:
        """Kill it if it still runs, and start it on the same port and database."""
        self.kill()
        self._child = self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _begin(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        # The child gets a socket that listens already: what is sent while it starts, waits there.
        with listen(self._port) as listener, self._log.open("a") if self._log else nullcontext() as log:
            self._port = listener.getsockname()[1]
            options = json.dumps(self._options | {"fd": listener.fileno()})
            return subprocess.Popen(
                [sys.executable, "-m", "onceward_proof.provider", options],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, pass_fds=[listener.fileno()],
                env=environment, start_new_session=True,
            )  # fmt: skip

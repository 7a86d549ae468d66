"""A TCP proxy before Postgres that can be cut.

It is cut at will, or around one statement: before it, or before its reply.
What a cut connection leaves behind cannot be tested with a mock: was the COMMIT carried out whose reply is missing?

    with Proxy(dsn) as proxy:
        with psycopg.connect(proxy.dsn) as conn:
            conn.execute("INSERT INTO payments ...")
            proxy.lose_reply_to(b"COMMIT")
            with pytest.raises(psycopg.OperationalError):
                conn.commit()          # it stands, and the client cannot know
        proxy.cut()                    # an outage: every connection breaks, and new ones are refused
        proxy.heal()
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from onceward.errors import UsageError

CHUNK_BYTES: Final = 65_536


class Proxy:
    """Carries connections to the Postgres at the DSN that it is given.

    `dsn` is the way through it.
    A context manager. `hits` counts the requests that were lost, or whose replies were. The server must listen on TCP, and
    the connection must not be encrypted where a request is to be recognised (`sslmode=disable`).
    """

    def __init__(self, dsn: str) -> None:
        options = conninfo_to_dict(dsn)
        if not {"host", "port"} <= options.keys() or str(options["host"]).startswith("/"):
            raise UsageError("a Proxy needs a DSN that names a host and a port: it connects by TCP")
        self._target = (str(options["host"]), int(str(options["port"])))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._refusing = False
        self.hits = 0
        self._marker: bytes | None = None
        self._forwards = True  # whether the request with the marker still reaches the server
        # Daemons, here and below: a test that fails must not keep its process alive.
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_reply_to(self, marker: bytes) -> None:
        """The next request that holds `marker` reaches the server, which answers.

        The connection is cut instead.
        """
        self._marker, self._forwards = marker, True

    def lose_request(self, marker: bytes) -> None:
        """The next request that holds `marker` is cut off before it reaches the server."""
        self._marker, self._forwards = marker, False

    def cut(self) -> None:
        """Every connection breaks now, and new ones are refused until `heal`."""
        with self._lock:
            self._refusing = True
            # A copy, closed outside the lock: each link that ends takes the lock to be forgotten.
            links = list(self._links)
        for link in links:
            link.close()

    def heal(self) -> None:
        """New connections go through again."""
        self._refusing = False

    def lose_now(self, request: bytes) -> Literal["request", "reply"] | None:
        """What is to be lost of this request.

        Only of the first that holds the marker is anything lost.
        """
        with self._lock:
            if self._marker is None or self._marker not in request:
                return None
            self._marker = None
            self.hits += 1
            return "reply" if self._forwards else "request"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._refusing:
                    client.close()
                    continue
                self._links.add(_Link(self, client, socket.create_connection(self._target)))

    def forget(self, link: _Link) -> None:
        """This connection has ended."""
        with self._lock:
            self._links.discard(link)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listener.close()


class _Link:
    """One client's connection, and ours to the server."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._loses_reply = False
        for pump in (self._pump_requests, self._pump_replies):
            threading.Thread(target=self._run, args=(pump,), daemon=True).start()

    def _run(self, pump: Callable[[], None]) -> None:
        with suppress(OSError):
            pump()
        self.close()
        self._proxy.forget(self)

    def _pump_requests(self) -> None:
        while chunk := self._client.recv(CHUNK_BYTES):
            lost = self._proxy.lose_now(chunk)
            if lost == "request":
                return
            # Set before the request goes out: its reply is read by the other thread, perhaps before this one goes on.
            self._loses_reply |= lost == "reply"
            self._server.sendall(chunk)

    def _pump_replies(self) -> None:
        while chunk := self._server.recv(CHUNK_BYTES):
            if self._loses_reply:
                return
            self._client.sendall(chunk)

    def close(self) -> None:
        for end in (self._client, self._server):
            with suppress(OSError):
                # close() alone would not wake the other thread out of its recv().
                end.shutdown(socket.SHUT_RDWR)
            end.close()

"""A TCP proxy before Postgres that can be cut: at will, or around one statement, before it or before its reply."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from psycopg.conninfo import conninfo_to_dict, make_conninfo

CHUNK_BYTES: Final = 65_536


class Proxy:
    """Use as a context manager; `dsn` goes through it."""

    def __init__(self, dsn: str) -> None:
        options = conninfo_to_dict(dsn)
        self._target = (str(options["host"]), int(str(options["port"])))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._refusing = False
        self.marker: bytes | None = None
        self.forwards = True  # whether the request with the marker still reaches the server
        self.hits = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_reply_to(self, marker: bytes) -> None:
        """The next request that holds `marker` reaches the server, which answers; the connection is cut instead."""
        self.marker, self.forwards = marker, True

    def lose_request(self, marker: bytes) -> None:
        """The next request that holds `marker` is cut off before it reaches the server."""
        self.marker, self.forwards = marker, False

    def cut(self) -> None:
        """Every connection breaks now, and new ones are refused until `heal`."""
        with self._lock:
            self._refusing = True
            links = list(self._links)
        for link in links:
            link.close()

    def heal(self) -> None:
        self._refusing = False

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
            marker = self._proxy.marker
            if marker is not None and marker in chunk:
                self._proxy.marker = None
                self._proxy.hits += 1
                if not self._proxy.forwards:
                    return
                self._loses_reply = True
            self._server.sendall(chunk)

    def _pump_replies(self) -> None:
        while chunk := self._server.recv(CHUNK_BYTES):
            if self._loses_reply:
                return
            self._client.sendall(chunk)

    def close(self) -> None:
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

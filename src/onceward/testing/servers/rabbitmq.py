"""RabbitMQ: a node of its own, with its management plugin."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import ClassVar, Final, Self
from urllib.request import urlopen

from onceward.errors import OncewardError
from onceward.testing.servers.installing import install_package
from onceward.testing.servers.server import Server

# Not those of /usr/sbin: they change to the user `rabbitmq`, and its node.
_PROGRAMS: Final = Path("/usr/lib/rabbitmq/bin")
_ANSWER_SECONDS_MAX: Final = 2.0
_PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME: Final = b"\x01"
_TICK_SECONDS_MAX: Final = 60.0
# epmd, by which Erlang's nodes find each other, belongs to this node alone: it has its own port, and ends with the node.
# The shell becomes the server by `exec`, so the epmd that it has started is the server's child. Where setpriv is missing
# (macOS), only a node that is killed from outside leaves one behind.
_START: Final = """\
if command -v setpriv >/dev/null; then setpriv --pdeathsig KILL epmd & else epmd & fi
exec rabbitmq-server
"""


class RabbitMQ(Server):
    """A node of its own with its management plugin (`management_url`), user and password `guest`.

    `settings` are those of rabbitmq.conf. Several run beside each other and beside the system's.

    A quorum queue that was declared a moment before a kill may come back without a leader: the node writes the names of new
    queues to disk some seconds later. `sync` has them written. Needs Debian's package, which root's first start installs.
    """

    title = "RabbitMQ"
    ports_preferred: ClassVar = {"AMQP": 18672, "management": 18673, "Erlang": 18674, "epmd": 18675}

    @classmethod
    def start(
        cls,
        folder: Path | None = None,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        lasting: bool = False,
        consumer_timeout_seconds: float | None = None,
    ) -> Self:
        """As for every server; a delivery that is not settled within `consumer_timeout_seconds` closes its channel.

        The default is RabbitMQ's own, 30 minutes. The node looks for late ones four times in that time.
        """
        late = {} if consumer_timeout_seconds is None else {"consumer_timeout": str(round(consumer_timeout_seconds * 1000))}
        return super().start(folder, port=port, settings={**late, **(settings or {})}, lasting=lasting)

    @classmethod
    def is_installed(cls) -> bool:
        return (_PROGRAMS / "rabbitmq-server").exists()

    @classmethod
    def install(cls) -> None:
        install_package("rabbitmq-server", _PROGRAMS / "rabbitmq-server")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    @property
    def management_url(self) -> str:
        """Where the management plugin's HTTP API is (below `/api`), for `guest` with password `guest`."""
        return f"http://127.0.0.1:{self._record.ports['management']}"

    def control(self, *words: str) -> str:
        """What `rabbitmqctl` with these words says. Raises `OncewardError` with what it says when it fails."""
        command = [str(_PROGRAMS / "rabbitmqctl"), "--quiet", *words]
        environment = os.environ | self._environment()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OncewardError(f"rabbitmqctl {words[0]} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def sync(self) -> None:
        """The queues that have been declared are on disk: from here on they survive a kill."""
        self.control("eval", "[dets:sync(Table) || Table <- dets:all()].")

    def _configure(self) -> None:
        for name in ("home", "mnesia", "logs", "generated"):
            (self.folder / name).mkdir(exist_ok=True)
        ports, settings = self._record.ports, self._record.settings
        conf = {
            "listeners.tcp.1": f"127.0.0.1:{ports['AMQP']}",
            "management.tcp.ip": "127.0.0.1",
            "management.tcp.port": str(ports["management"]),
            "log.console": "true",
            "log.console.level": "info",
            "log.file": "false",
            "vm_memory_high_watermark.absolute": "512MB",
            "disk_free_limit.absolute": "100MB",
            **settings,
        }
        lines = "".join(f"{name} = {value}\n" for name, value in conf.items())
        (self.folder / "rabbitmq.conf").write_text(lines)
        # The one setting that has no name in rabbitmq.conf, where it would end the start.
        tick = min(_TICK_SECONDS_MAX, int(settings.get("consumer_timeout", "1800000")) / 4000)
        (self.folder / "advanced.config").write_text(f"[{{rabbit, [{{channel_tick_interval, {round(tick * 1000)}}}]}}].\n")
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self.folder / "rabbitmq-env.conf").write_text("")

    def _command(self) -> list[str]:
        return [shutil.which("sh") or "/bin/sh", "-c", _START]

    def _environment(self) -> dict[str, str]:
        ports, folder = self._record.ports, self.folder
        quiet = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"  # schedulers that find nothing to do sleep at once
        return {
            "PATH": f"{_PROGRAMS}:{os.environ.get('PATH', os.defpath)}",
            # Erlang keeps the cookie there, by which nodes know each other.
            "HOME": str(folder / "home"),
            "RABBITMQ_NODENAME": "onceward@localhost",
            "RABBITMQ_DIST_PORT": str(ports["Erlang"]),
            "ERL_EPMD_PORT": str(ports["epmd"]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_PID_FILE": str(folder / "node.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-kernel inet_dist_use_interface {{127,0,0,1}} -start_epmd false {quiet}"
            ),
            # The script then becomes the node by `exec`, instead of watching over it as a child.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _is_ready(self) -> bool:
        return _speaks_amqp(self.port) and _answers_http(self.management_url)


def _speaks_amqp(port: int) -> bool:
    """The server answers a client's greeting with a method, Connection.Start; else it would name its own protocol."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_SECONDS_MAX) as conn:
            conn.sendall(_PROTOCOL_HEADER)
            return conn.recv(1) == _METHOD_FRAME
    except OSError:
        return False


def _answers_http(url: str) -> bool:
    try:
        with urlopen(url, timeout=_ANSWER_SECONDS_MAX) as answer:  # noqa: S310 - loopback
            return bool(answer.status == 200)
    except (HTTPException, OSError):
        return False

"""`onceward servers`: real brokers on this machine, shared by all tests, without Docker."""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentTypeError
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from onceward.commands.arguments import add_json, need, say, say_json, whole
from onceward.commands.logs import log_to_stderr
from onceward.commands.table import print_table
from onceward.errors import UsageError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from onceward.testing.servers.server import Server
    from onceward.testing.servers.shared import Shared

NAMES: Final = ("sqs", "rabbitmq", "kafka", "all")
SERVERS: Final = """\
examples:
  onceward servers up                       all three; prints what to export
  eval "$(onceward servers up sqs kafka)"   two of them, and exported
  onceward servers status --json
  onceward servers down

  sqs        ElasticMQ   ONCEWARD_SQS_ENDPOINT      java; mvn installs it
  rabbitmq   RabbitMQ    ONCEWARD_RABBITMQ_URL      root's apt-get installs it
  kafka      Kafka       ONCEWARD_KAFKA_BOOTSTRAP   java; mvn installs it

There is one set for all checkouts of a user. It listens on 127.0.0.1, runs
until `down`, and starts with empty data. Programs, logs and data are in
$ONCEWARD_SERVERS_DIR (default: onceward/servers in the user's cache).
To test against a server of your own, set its variable: tests look there
first.

exit codes: 0 all that were asked for are up (`down`: have ended), 1 `status`
found one that is not, 2 usage or environment
"""


def add_commands(commands: Any) -> None:
    parser = commands.add_parser(
        "servers",
        help="real brokers for tests: SQS, RabbitMQ, Kafka",
        description="Real brokers on this machine, without Docker: ElasticMQ (SQS), RabbitMQ and Kafka.",
        epilog=SERVERS,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    up = _add_action(actions, "up", "start those that do not run", up_command)
    up.add_argument(
        "--port", type=whole(1, 65535), metavar="N", help="where clients find it, if one server is named (default: its own)"
    )
    _add_action(actions, "down", "end them; their data goes", down_command)
    _add_action(actions, "status", "which are up", status_command)
    _add_action(actions, "install", "fetch the programs, start nothing", install_command)


def _add_action(actions: Any, name: str, what: str, perform: Any) -> ArgumentParser:
    parser: ArgumentParser = actions.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=SERVERS
    )
    parser.add_argument(
        "names", nargs="*", type=_name, default=["all"], metavar="SERVER", help="sqs, rabbitmq, kafka, all (default: all)"
    )
    add_json(parser)
    parser.set_defaults(perform=perform)
    return parser


def _name(text: str) -> str:
    """An argument type: the name of a server, or of all."""
    if text not in NAMES:
        raise ArgumentTypeError(f"{text!r} is none of {', '.join(NAMES)}")
    return text


def up_command(arguments: Namespace) -> int:
    asked = _asked(arguments)
    if arguments.port is not None and len(asked) != 1:
        raise UsageError("--port: name the one server that it is for")
    _install(asked)
    with ThreadPoolExecutor() as pool:
        started = [pool.submit(_up, shared, arguments.port) for shared in asked]
    up = [(shared, future.result()) for shared, future in zip(asked, started, strict=True)]
    if arguments.json:
        say_json({"servers": [_facts(shared) for shared in asked]})
    else:
        for shared, server in up:
            say(f"export {shared.variable}={server.url}")
    return 0


def _up(shared: Shared, port: int | None) -> Server:
    server = shared.up(port)
    _report(f"{shared.name}: {server.title} answers on {server.url} (pid {server.pid}, log {server.folder / 'log'})")
    return server


def down_command(arguments: Namespace) -> int:
    asked = _asked(arguments)
    ended = [shared.down() for shared in asked]
    for shared, was_up in zip(asked, ended, strict=True):
        _report(f"{shared.name}: {'ended' if was_up else 'did not run'}")
    if arguments.json:
        say_json({"servers": [_facts(shared) for shared in asked]})
    return 0


def status_command(arguments: Namespace) -> int:
    from onceward.testing.servers.shared import ServerState  # noqa: PLC0415

    asked = _asked(arguments)
    facts = [_facts(shared) for shared in asked]
    if arguments.json:
        say_json({"servers": facts})
    else:
        lines = [tuple(str(fact[key] or "") for key in ("name", "state", "url", "pid", "given")) for fact in facts]
        print_table(("SERVER", "STATE", "URL", "PID", "GIVEN BY THE ENVIRONMENT"), lines)
    return 0 if all(fact["state"] == ServerState.UP.value for fact in facts) else 1


def install_command(arguments: Namespace) -> int:
    asked = _asked(arguments)
    _install(asked)
    if arguments.json:
        say_json({"servers": [_facts(shared) for shared in asked]})
    return 0


def _asked(arguments: Namespace) -> list[Shared]:
    """The servers that were named, each once; all of them where none was."""
    need("testing", "psutil")
    from onceward.testing.servers.shared import SHARED  # noqa: PLC0415

    return [shared for shared in SHARED if {shared.name, "all"} & {*arguments.names}]


def _install(asked: list[Shared]) -> None:
    """Their programs are here; what takes long is announced on standard error."""
    log_to_stderr(None, None)
    logging.getLogger("onceward").setLevel(logging.INFO)
    for shared in asked:
        shared.kind.install()


def _facts(shared: Shared) -> dict[str, Any]:
    server = shared.running()
    return {
        "name": shared.name,
        "state": shared.state().value,
        "url": server.url if server else None,
        "pid": server.pid if server else None,
        "folder": str(shared.folder),
        "installed": shared.kind.is_installed(),
        "variable": shared.variable,
        "given": os.environ.get(shared.variable),
    }


def _report(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()

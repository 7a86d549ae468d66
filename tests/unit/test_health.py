"""What a probe is told: live while the loop turns, ready while queue and database answer, and never the end of the loop."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.support.waiting import until

from onceward.errors import UsageError
from onceward.events import Event
from onceward.health import Health, answer, of_relay, shown

SOON = 0.02


def answering(**options: Any) -> Health:
    health = Health(**options)
    health.turned()
    health.database_answered()
    health.queue_answered()
    return health


def ready(health: Health) -> bool:
    return answer(health, "/ready")[0] == 200


def test_a_loop_that_turns_is_live_and_one_that_is_stuck_is_not() -> None:
    health = answering(live_seconds=SOON)
    until(lambda: not health.live)
    assert not ready(health)
    assert answer(health, "/live")[0] == 503
    health.turned()
    assert health.live


def test_a_drain_is_live_for_as_long_as_it_may_take() -> None:
    health = answering(live_seconds=SOON)
    health.drains(3600)
    until(lambda: health.report()["database_answered_seconds"] > SOON)
    assert (health.live, health.ready) == (True, False)
    health.drains(0)
    until(lambda: not health.live)


@pytest.mark.parametrize("silent", ["database", "queue"])
def test_ready_is_when_both_have_answered(silent: str) -> None:
    health = Health()
    assert (health.live, health.ready) == (True, False)
    for name in {"database", "queue"} - {silent}:
        getattr(health, f"{name}_answered")()
    assert not ready(health)
    getattr(health, f"{silent}_answered")()
    assert ready(health)
    getattr(health, f"{silent}_failed")()
    assert not ready(health)


def test_an_answer_grows_old() -> None:
    health = answering(ready_seconds=SOON)
    until(lambda: not health.ready)
    assert health.database_is_doubtful()


def test_a_report_is_seconds_since_and_null_for_never() -> None:
    health = Health()
    assert health.report()["last_progress_seconds"] is None
    health.progressed()
    health.in_hand = 3
    report = health.report()
    assert (report["live"], report["ready"], report["in_hand"]) == (True, False, 3)
    assert 0 <= report["last_progress_seconds"] < 20
    json.dumps(report)


def announce(mark: Any, point: str, **fields: Any) -> None:
    mark(Event(point, "", "", fields))


def test_a_relay_is_ready_once_it_has_looked_and_until_its_sink_fails() -> None:
    health = Health()
    mark = of_relay(health)
    announce(mark, "relay.looked", failing=False)
    assert ready(health)
    announce(mark, "relay.taken")
    announce(mark, "relay.looked", failing=True)
    report = health.report()
    assert (report["ready"], report["queue_answered_seconds"]) == (False, None)
    assert report["database_answered_seconds"] is not None
    announce(mark, "relay.taken")
    assert not ready(health)
    announce(mark, "relay.published")
    announce(mark, "relay.deleted")
    assert ready(health)
    assert health.report()["last_progress_seconds"] is not None


def test_a_relay_whose_database_fails_is_not_ready() -> None:
    health = Health()
    mark = of_relay(health)
    announce(mark, "relay.looked", failing=False)
    announce(mark, "relay.looked", failing=True)
    assert (health.live, health.ready) == (True, False)
    assert health.report()["database_answered_seconds"] is None


def test_the_file_is_there_at_once_written_again_and_gone_at_the_end(tmp_path: Path) -> None:
    file, health = tmp_path / "health", answering()
    with shown(health, str(file)):
        assert json.loads(file.read_text())["ready"] is True
        health.drains(10)
        until(lambda: json.loads(file.read_text())["draining"])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_can_no_longer_be_written_is_said_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with shown(Health(), str(folder / "health")):
        (folder / "health").unlink()
        folder.rmdir()
        until(lambda: "writing the health file failed" in caplog.text)
        folder.mkdir()
        until((folder / "health").exists)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode().strip()
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def test_the_port_answers_live_ready_and_the_report() -> None:
    port, health = free_port(), answering()
    with shown(health, f":{port}"):
        assert get(port, "/live") == (200, "live")
        assert get(port, "/ready") == (200, "ready")
        assert json.loads(get(port, "/")[1])["live"] is True
        assert get(port, "/other")[0] == 404
        health.drains(10)
        assert get(port, "/ready?verbose")[0] == 503
    with pytest.raises(OSError, match="refused"):
        get(port, "/live")


def test_a_client_that_says_nonsense_and_goes_ends_nothing() -> None:
    port = free_port()
    with shown(Health(), f"127.0.0.1:{port}"):
        for nonsense in (b"", b"\0\xff\r\n\r\n", b"GET /"):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.sendall(nonsense)
        assert get(port, "/live") == (200, "live")


def test_what_cannot_be_shown_is_refused_at_the_start(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        targets = {
            f":{port}": "cannot listen at 127.0.0.1:",
            str(tmp_path / "nowhere" / "health"): "cannot be written",
            str(tmp_path): "is a folder",
            "8080": "a port of this machine is written :8080",
            "": "neither a file nor HOST:PORT",
            ":99999": "there is no port 99999",
            "no.such.host.invalid:80": "cannot listen at",
        }
        for target, text in targets.items():
            with pytest.raises(UsageError, match=text), shown(Health(), target):
                pass
    assert list(tmp_path.iterdir()) == []


def test_of_several_loops_each_must_be_live_and_ready() -> None:
    health = Health()
    parts = [health.part("charges"), health.part("ledger")]
    for part in parts:
        part.turned()
        part.database_answered()
    parts[0].queue_answered()
    assert (health.live, health.ready) == (True, False)
    assert (health.report()["queue_answered_seconds"], health.report()["last_progress_seconds"]) == (None, None)
    parts[1].queue_answered()
    parts[1].progressed()
    parts[0].in_hand, parts[1].in_hand = 2, 3
    report = health.report()
    assert (report["ready"], report["in_hand"], report["last_progress_seconds"]) == (True, 5, 0.0)
    assert report["consumers"]["ledger"]["in_hand"] == 3
    assert {*report} - {"consumers"} == {*Health().report()}
    parts[0].drains(20)
    assert (health.live, health.ready, health.report()["draining"]) == (True, False, True)

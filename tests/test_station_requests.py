"""Commands over MQTT to the whole station, with a real broker and a client of its own."""

from pathlib import Path
from typing import Any

from mosquitto import Listener, Mosquitto
from requester import Requester
from test_station import has_verdicts, historical, running, verdicts, write_pictures

from station.adapters.sqlite_journal import export
from station.messages import ReplayResult, Response
from station.wire import decode

COMMANDS = {"allow": ["replay", "pause", "resume", "snapshot", "set-threshold", "reload-bundle"]}


def folder(path: Path, **more: Any) -> dict[str, Any]:
    return {"camera": {"c": {"kind": "folder", "path": str(path), **more}}, "commands": COMMANDS}


def test_verdicts_can_be_asked_for_again(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 12)
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        document = {"broker": {"port": broker.port}, **folder(tmp_path / "in")}
        with running(tmp_path, document), Requester(broker.port) as requester:
            first = verdicts(listener.wait_until(has_verdicts(12)))
            epoch = first[0].epoch
            answer = requester.ask("replay", camera="c", epoch=epoch, first_sequence=4, last_sequence=9)
            assert (answer.accepted, answer.reason) == (True, None)
            assert isinstance(answer.result, ReplayResult)
            assert answer.result.rows == 6
            received = listener.wait_until(has_verdicts(18))
            again = verdicts(historical(received))
            assert [one.sequence for one in again] == [4, 5, 6, 7, 8, 9]
            assert [one.id for one in again] == [one.id for one in first[3:9]]
            began, ended = first[0].captured_at.isoformat(), "2100-01-01T00:00:00Z"
            answer = requester.ask("replay", since=began, until=ended)
            assert isinstance(answer.result, ReplayResult)
            assert answer.result.rows == 12
            listener.wait_until(has_verdicts(30))
            refused = requester.ask("replay", camera="c", epoch=epoch + 1, first_sequence=1, last_sequence=9)
            assert (refused.accepted, refused.reason) == (False, "the journal keeps no such verdict")
    kept = [row.message for row in export(tmp_path / "data" / "journal.sqlite") if row.message.kind == "command"]
    assert [decode(Response, one.payload).accepted for one in kept] == [True, True, False]

"""Commands over MQTT to the whole station, with a real broker and a client of its own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mosquitto import Listener, Mosquitto, Received
from requester import Requester
from test_station import eventually, has_verdicts, historical, running, states, verdicts, write_pictures

from station.adapters.sqlite_journal import export
from station.evidence import FOLDER
from station.messages import (
    BundleResult,
    CameraStateName,
    Gap,
    PauseResult,
    ReplayResult,
    Response,
    SkipReason,
    SnapshotResult,
    ThresholdResult,
)
from station.settings import SHIPPED_BUNDLE
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


LIVE = {"camera": {"c": {"kind": "simulated", "rate_fps": 20.0}}, "commands": COMMANDS}


def gaps(received: list[Received], why: str) -> list[Gap]:
    found = [decode(Gap, one.payload) for one in received if one.topic.endswith("/gap")]
    return [gap for gap in found if gap.why == why]


def test_a_pause_is_shown_declared_and_ends_by_itself(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        document = {"broker": {"port": broker.port}, **LIVE}
        with running(tmp_path, document) as station, Requester(broker.port) as requester:
            listener.wait_until(has_verdicts(3))
            assert requester.ask("resume", camera="c").reason == "camera c is not paused"
            refused = requester.ask("pause", camera="c", duration_s=4000.0)
            assert refused.reason == "duration_s = 4000: commands.pause_max_s allows 3600"
            refused = requester.ask("pause", camera="d", duration_s=1.0)
            assert refused.reason == "there is no camera d; there are c"
            paused = requester.ask("pause", camera="c", duration_s=0.6, reason="the belt is cleaned")
            assert isinstance(paused.result, PauseResult)
            received = listener.wait_until(lambda got: len(gaps(got, "paused")) == 1)
            (gap,) = gaps(received, "paused")
            shown = [one for one in states(received) if one.camera == "c"]
            assert [one.state for one in shown[-2:]] == [CameraStateName.PAUSED, CameraStateName.RUNNING]
            assert "the belt is cleaned" in str(shown[-2].reason)
            passed = {*range(gap.first_sequence or 0, (gap.last_sequence or 0) + 1)}
            assert len(passed) == gap.count
            received = listener.wait_until(has_verdicts(len(verdicts(received)) + 5))
            judged = {one.sequence for one in verdicts(received)}
            # Each frame has a verdict or stands in the gap.
            assert judged | passed == set(range(1, max(judged) + 1))
            assert not judged & passed
            assert station.health().cameras["c"].account.skipped == {SkipReason.PAUSED: gap.count}
            requester.ask("pause", camera="c", duration_s=600.0)
            listener.wait_until(lambda got: states(got)[-1].state is CameraStateName.PAUSED)
            assert requester.ask("snapshot", camera="c").reason == "camera c is paused"
            assert requester.ask("resume", camera="c").accepted
            listener.wait_until(lambda got: states(got)[-1].state is CameraStateName.RUNNING)


def test_files_wait_for_the_end_of_a_pause(tmp_path: Path) -> None:
    names = write_pictures(tmp_path / "in", 8)
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        document = {"broker": {"port": broker.port}, **folder(tmp_path / "in", mode="watch")}
        with running(tmp_path, document) as station, Requester(broker.port) as requester:
            listener.wait_until(has_verdicts(8))
            requester.ask("pause", camera="c", duration_s=600.0)
            listener.wait_until(lambda got: states(got)[-1].state is CameraStateName.PAUSED)
            shutil.copy(tmp_path / "in" / names[0], tmp_path / "new.png")
            (tmp_path / "new.png").rename(tmp_path / "in" / "new.png")
            requester.ask("resume", camera="c")
            received = listener.wait_until(has_verdicts(9))
            assert [one.source for one in verdicts(received)] == [*names, "new.png"]
            assert gaps(received, "paused") == []
            assert station.health().cameras["c"].account.skipped == {}


def test_the_next_picture_can_be_kept(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        evidence = {"ok_share": 0.0, "min_free_bytes": 0}
        with (
            running(tmp_path, {"broker": {"port": broker.port}, "evidence": evidence, **LIVE}),
            Requester(broker.port) as requester,
        ):
            answer = requester.ask("snapshot", camera="c")
            assert isinstance(answer.result, SnapshotResult)
            path = tmp_path / "data" / answer.result.evidence
            eventually(path.exists)
            identifier = answer.result.verdict
            received = listener.wait_until(lambda got: any(one.id == identifier for one in verdicts(got)))
            assert [one.evidence for one in verdicts(received) if one.id == identifier] == [answer.result.evidence]
    assert path.is_relative_to(tmp_path / "data" / FOLDER)


def test_a_threshold_set_by_command_shows_in_each_verdict_until_it_is_taken_back(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        document = {"broker": {"port": broker.port}, **LIVE}
        with running(tmp_path, document), Requester(broker.port) as requester:
            own = verdicts(listener.wait_until(has_verdicts(1)))[0]
            assert own.override == ()
            answer = requester.ask("set-threshold", camera="c", threshold=0.77)
            assert answer.result == ThresholdResult(threshold=0.77)
            received = listener.wait_until(lambda got: verdicts(got)[-1].threshold == 0.77)
            changed = verdicts(received)[-1]
            assert [(one.what, one.command) for one in changed.override] == [("threshold", answer.id)]
            requester.ask("set-threshold", camera="c", threshold=None)
            received = listener.wait_until(lambda got: verdicts(got)[-1].threshold == own.threshold)
            assert verdicts(received)[-1].override == ()


def test_a_bundle_is_loaded_anew_only_if_it_passes_and_no_frame_is_lost(tmp_path: Path) -> None:
    bundle = tmp_path / "boards.bundle"
    shutil.copy(SHIPPED_BUNDLE, bundle)
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        document = {"broker": {"port": broker.port}, "model": {"bundle": str(bundle)}, **LIVE}
        with running(tmp_path, document), Requester(broker.port) as requester:
            model = verdicts(listener.wait_until(has_verdicts(1)))[0].model
            whole = bundle.read_bytes()
            bundle.write_bytes(whole[: len(whole) // 2])
            refused = requester.ask("reload-bundle", camera="c")
            assert not refused.accepted
            assert "is not a whole zip file" in str(refused.reason)
            received = listener.wait_until(has_verdicts(len(verdicts(listener.received)) + 3))
            assert {one.model for one in verdicts(received)} == {model}
            bundle.write_bytes(whole)
            answer = requester.ask("reload-bundle")
            assert isinstance(answer.result, BundleResult)
            assert answer.result.models == {"c": model}
            received = listener.wait_until(lambda got: verdicts(got)[-1].override != ())
            assert [(one.what, one.command) for one in verdicts(received)[-1].override] == [("bundle", answer.id)]
            assert [one.sequence for one in verdicts(received)] == list(range(1, len(verdicts(received)) + 1))


def test_what_is_not_a_request_is_answered_with_the_reason_and_a_second_time_with_the_same_answer(
    tmp_path: Path,
) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port, "answers/#") as elsewhere:
        document = {"broker": {"port": broker.port}, **LIVE, "commands": {"allow": ["replay", "acknowledge"]}}
        with running(tmp_path, document), Requester(broker.port) as requester:
            first = requester.ask("pause", camera="c", duration_s=1.0)
            assert first.reason is not None
            assert first.reason.startswith("pause is not allowed: commands.allow")
            requester.send("pause", transaction=first.transaction, camera="c", duration_s=1.0)
            eventually(lambda: len(requester.answers) == 2)
            assert requester.answers == [first, first]
            request = {"transaction": "mine", "group": "press", "alarm": "high"}
            requester.send_bytes("acknowledge", json.dumps(request).encode(), answer_to="answers/plc")
            received = elsewhere.wait_until(lambda got: len(got) == 1)
            assert "no process group is watched" in str(decode(Response, received[0].payload).reason)
            eventually(lambda: len(requester.answers) == 3)
            # Neither a stranger's topic nor a station's is written to; a retained request is not even answered.
            requester.send_bytes("replay", b"{}", answer_to="inspection/s/status")
            requester.send_bytes("replay", b'{"transaction": "r"}', retain=True)
            requester.send_bytes("fly", b"\xff")
            eventually(lambda: len(requester.answers) == 5)
            assert requester.answers[3].reason == "not a ReplayRequest: transaction: Field required"
            assert (requester.answers[4].verb, requester.answers[4].transaction) == ("fly", None)
            assert elsewhere.count == 1


def test_a_restart_remembers_what_it_was_told_and_ignores_what_the_broker_retains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Mosquitto(tmp_path) as broker, Requester(broker.port) as requester:
        document = {"broker": {"port": broker.port}, **LIVE}
        with running(tmp_path, document):
            first = requester.ask("set-threshold", camera="c", threshold=0.9)
        requester.send_bytes("pause", b'{"transaction": "r", "camera": "c", "duration_s": 9}', retain=True)
        requester.send("set-threshold", transaction=first.transaction, camera="c", threshold=0.9)
        with running(tmp_path, document) as station:
            eventually(lambda: len(requester.answers) == 2)
            eventually(lambda: "is ignored: it is retained by the broker" in caplog.text)
            assert requester.answers == [first, first]
            eventually(lambda: station.health().cameras["c"].account.judged > 3)
            assert station.health().cameras["c"].account.skipped == {}

"""A stored picture, judged again with what stands beside it, gets the same verdict bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_station import eventually, running, write_pictures

from station.adapters.litert_model import load_model
from station.adapters.system_clock import SystemClock
from station.evidence import FOLDER
from station.judged_with import EvidenceRecord
from station.linescan import FRAME_LINES
from station.manifest import read_bundle
from station.messages import Capture, Frame, Reason, Verdict
from station.pipeline import Inspector, LoadedModel, Setup
from station.settings import SHIPPED_BUNDLE, FolderCamera, ModelSettings
from station.wire import decode

EVERYTHING = {"ok_share": 1.0}


def records(folder: Path) -> list[EvidenceRecord]:
    return [decode(EvidenceRecord, path.read_bytes()) for path in sorted((folder / FOLDER).rglob("*.json"))]


def again(folder: Path, record: EvidenceRecord, model: LoadedModel) -> Verdict:
    """The verdict on the stored picture, by an inspector that knows nothing of the station that stored it."""
    clock = SystemClock()
    inspector = Inspector("s", "c", 0, FolderCamera(kind="folder", path=Path()), ModelSettings(), clock)
    inspector.use(Setup(model))
    stored = record.verdict
    assert stored.evidence is not None
    assert record.judged_with is not None
    capture = Capture(
        cv2.imread(str(folder / stored.evidence), cv2.IMREAD_UNCHANGED),  # type: ignore[arg-type]
        stored.captured_at,
        0.0,
        first_line=stored.first_line,
        owned_rows=stored.owned_rows,
        lines_lost=stored.lines_lost,
        fault=record.judged_with.fault,
    )
    return inspector.inspect_again(Frame("c", stored.sequence, capture), record.judged_with)


def decided(verdict: Verdict) -> tuple[Any, ...]:
    return verdict.outcome, verdict.reasons, verdict.defects, verdict.score, verdict.threshold


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    bundle = read_bundle(SHIPPED_BUNDLE)
    return LoadedModel(load_model(bundle), bundle.manifest)


def test_frames_of_a_web_with_shared_seams(tmp_path: Path, model: LoadedModel) -> None:
    camera = {"kind": "simulated", "seed": 3, "rate_fps": 0, "frames": 40, "defect_share": 0.6}
    with running(tmp_path, {"camera": {"c": camera}, "evidence": EVERYTHING, "model": {"threshold": 0.31}}) as station:
        eventually(lambda: station.health().cameras["c"].account.judged >= 40)
    found = records(tmp_path / "data")
    assert len(found) >= 30
    with_seams = [one.judged_with for one in found if one.judged_with is not None and one.judged_with.seams is not None]
    assert len(with_seams) == len(found)
    assert any(one.seams is not None and one.seams.claimed for one in with_seams)
    assert {one.thresholds.default for one in with_seams if one.thresholds is not None} == {0.31}
    for record in found:
        assert decided(again(tmp_path / "data", record, model)) == decided(record.verdict)


def test_pictures_that_were_frozen_dark_or_without_a_picture_to_judge(tmp_path: Path, model: LoadedModel) -> None:
    write_pictures(tmp_path / "in", 2)
    for number in range(2, 5):
        shutil.copy(tmp_path / "in" / "000.png", tmp_path / "in" / f"{number:03}.png")
    cv2.imwrite(str(tmp_path / "in" / "005.png"), np.full((FRAME_LINES, 640), 9, np.uint8))
    camera = {"kind": "folder", "path": str(tmp_path / "in"), "frozen_after": 3}
    with running(tmp_path, {"camera": {"c": camera}, "evidence": EVERYTHING}) as station:
        eventually(lambda: station.health().cameras["c"].account.judged >= 6)
    found = {one.verdict.source: one for one in records(tmp_path / "data")}
    reasons = [found[f"{number:03}.png"].verdict.reasons for number in range(6)]
    assert reasons == [(), (), (), (), (Reason.FROZEN,), (Reason.DARK,)]
    for record in found.values():
        assert decided(again(tmp_path / "data", record, model)) == decided(record.verdict)

"""`station replay`: stored verdicts come out the same bit for bit, or it is said why not.

``FAULTS=long python -m pytest -s tests/test_replay.py`` stores 500 verdicts with a real run and replays each.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundle_makers import variant
from fault_tools import LONG, table
from test_bundle_library import told
from test_station import eventually, running

from station.__main__ import main
from station.adapters.bundle_library import BundleLibrary
from station.adapters.embedded_broker import free_port
from station.evidence import FOLDER
from station.judged_with import EvidenceRecord
from station.messages import Verb
from station.wire import decode, encode

STORED = 500 if LONG else 30


def document(folder: Path, **camera: Any) -> tuple[dict[str, Any], list[str]]:
    """A configuration for a station in this process, and the same as a file for the command line."""
    table = {"kind": "simulated", "seed": 11, "rate_fps": 20.0, "defect_share": 0.5, **camera}
    inside = {
        "broker": {"port": free_port()},
        "camera": {"c": table},
        "evidence": {"ok_share": 1.0, "min_free_bytes": 0},
    }
    keys = "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
    path = folder / "station.toml"
    path.write_text(f'[station]\nname = "s"\ndata_dir = "data"\n[camera.c]\n{keys}\n', encoding="utf-8")
    return inside, ["--config", str(path)]


def replayed(where: list[str], *arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    code = main(["replay", *where, "--json", *arguments])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def sidecars(folder: Path) -> list[Path]:
    return sorted((folder / "data" / FOLDER).rglob("*.json"))


@pytest.mark.fault
@pytest.mark.timeout(1800 if LONG else 300)
def test_stored_verdicts_come_out_the_same_also_those_of_a_bundle_that_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside, where = document(tmp_path)
    second = variant(tmp_path / "2.bundle", "2")
    with running(tmp_path, inside) as station:

        def stored() -> int:
            evidence = station.health().evidence
            return evidence.written if evidence is not None else 0

        eventually(lambda: stored() >= STORED // 2, within_s=600.0)
        sha256 = BundleLibrary(tmp_path / "data", None, 10_000_000).hand_in(second.read_bytes())
        assert told(tmp_path, Verb.INSTALL_BUNDLE, bundle=sha256).accepted
        assert told(tmp_path, Verb.ACTIVATE_BUNDLE, bundle=sha256).accepted
        second.unlink()
        eventually(lambda: stored() >= STORED, within_s=600.0)
    code, found = replayed(where, "--all", capsys=capsys)
    summary = found.pop()
    assert (code, summary["different"], summary["impossible"]) == (0, 0, 0), found
    assert summary["same"] >= STORED
    versions = {one["stored"]["model"]["version"] for one in found}
    outcomes = [one["stored"]["outcome"] for one in found]
    assert versions == {"1", "2"}
    assert {"ok", "ng"} <= set(outcomes)
    assert all(one["stored"] == one["again"] for one in found)
    defects = sum(len(one["stored"]["defects"]) for one in found)
    table(
        "stored verdicts judged again",
        {"stored": len(found), **summary, "ng": outcomes.count("ng"), "defects": defects, "bundles": len(versions)},
    )


def test_it_is_said_why_a_verdict_cannot_be_judged_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside, where = document(tmp_path, frames=12)
    with running(tmp_path, inside) as station:
        eventually(lambda: station.health().cameras["c"].account.judged >= 12)
    code, found = replayed(where, "--all", "--last", "5", capsys=capsys)
    assert (code, len(found)) == (0, 6)
    paths = sidecars(tmp_path)
    assert len(paths) >= 8
    cases = dict(zip(("gone", "picture", "verdict", "thresholds", "former", "damaged"), paths, strict=False))
    cases["gone"].with_suffix(".png").unlink()
    picture = cases["picture"].with_suffix(".png")
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")

    def rewritten(path: Path, **changes: Any) -> None:
        record = decode(EvidenceRecord, path.read_bytes())
        path.write_bytes(encode(record.model_copy(update=changes)))

    record = decode(EvidenceRecord, cases["verdict"].read_bytes())
    rewritten(cases["verdict"], verdict=record.verdict.model_copy(update={"score": 0.123}))
    record = decode(EvidenceRecord, cases["thresholds"].read_bytes())
    assert record.judged_with is not None
    assert record.judged_with.thresholds is not None
    strict = record.judged_with.thresholds.model_copy(update={"default": 0.0001})
    rewritten(
        cases["thresholds"],
        judged_with=record.judged_with.model_copy(update={"thresholds": strict, "machine": "another processor"}),
    )
    rewritten(cases["former"], judged_with=None)
    cases["damaged"].write_bytes(b"{")
    expected = {
        "gone": ("impossible", "the picture was deleted"),
        "picture": ("impossible", "the picture was altered"),
        "verdict": ("impossible", "the journal holds another verdict with this id"),
        "thresholds": ("different", "threshold: "),
        "former": ("impossible", "it was written by a former version"),
        "damaged": ("impossible", "the record is damaged"),
    }
    for name, (finding, reason) in expected.items():
        code, (one,) = replayed(where, cases[name].stem, capsys=capsys)
        assert (code, one["finding"]) == (1, finding)
        assert reason in " ".join(one["reasons"])
    _, (one,) = replayed(where, cases["thresholds"].stem, capsys=capsys)
    assert "judged on another processor; here " in one["reasons"][-1]
    code, found = replayed(where, "--all", capsys=capsys)
    summary = found.pop()
    assert code == 1
    assert (summary["impossible"], summary["different"], summary["same"]) == (5, 1, len(paths) - 6)
    # The bundle is in no file and no library any more.
    shutil.rmtree(tmp_path / "data" / "bundles")
    record = decode(EvidenceRecord, paths[-1].read_bytes())
    assert record.verdict.model is not None
    other = record.verdict.model.model_copy(update={"sha256": "0" * 64})
    rewritten(paths[-1], verdict=record.verdict.model_copy(update={"model": other}))
    os.remove(tmp_path / "data" / "journal.sqlite")  # noqa: PTH107
    code, (one,) = replayed(where, paths[-1].stem, capsys=capsys)
    assert (code, one["finding"]) == (1, "impossible")
    assert "is not kept: neither the library nor a file that the configuration names has it" in one["reasons"][0]
    assert main(["replay", *where, "01a21568-e4a7-78c5-97ee-b9cbe09c6dbf"]) == 1
    assert "no picture of it is kept" in capsys.readouterr().err

"""`station-export` as a user meets it: predict and threshold, on the shipped bundle and rendered boards."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from export.__main__ import COMMANDS, main
from export.dataset import read_dataset
from station.manifest import read_bundle
from station.settings import SHIPPED_BUNDLE

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered") / "boards"
    assert main(["render", "--out", str(folder), "--train-webs", "10", "--test-webs", "2", "--frames", "2"]) == 0
    return folder


def test_the_readme_names_every_command() -> None:
    text = README.read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"| `station-export {command}` |" in text


def test_predict_says_one_line_a_picture(boards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = read_dataset(boards).splits["test"][0]
    assert sample.reference is not None
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    (folder / "part.png").write_bytes(sample.picture.read_bytes())
    (tmp_path / "part.png").write_bytes(sample.reference.read_bytes())
    capsys.readouterr()
    marked = tmp_path / "marked"
    given = [str(tmp_path / "in"), str(tmp_path / "part.png")]
    assert main(["predict", str(SHIPPED_BUNDLE), *given, "--json", "--annotate", str(marked)]) == 0
    bad, good = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (bad["outcome"], good["outcome"]) == ("ng", "ok")
    assert bad["file"] == str(folder / "part.png")
    assert bad["score"] >= bad["threshold"] > good["score"]
    assert good["boxes"] == []
    assert 0 < bad["ms"] < 60_000
    (left, top, right, bottom), box = sample.boxes_px[0], bad["boxes"]
    middle = [(one["x_px"] + one["width_px"] / 2, one["y_px"] + one["height_px"] / 2) for one in box]
    assert any(left < x < right and top < y < bottom for x, y in middle)
    assert sorted(path.name for path in marked.iterdir()) == ["part.ng.png", "part.ok.png"]
    picture = cv2.imread(str(marked / "part.ng.png"))
    assert picture is not None
    assert picture.shape == (640, 640, 3)


def test_predict_goes_on_after_a_file_that_is_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    cv2.imwrite(str(tmp_path / "b.png"), np.full((64, 64), 60, np.uint8))
    given = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    assert main(["predict", str(SHIPPED_BUNDLE), *given, "--json"]) == 1
    told = capsys.readouterr()
    first, second, third = (json.loads(line) for line in told.out.splitlines())
    assert first == {"file": given[0], "error": f"{given[0]}: is not a whole picture"}
    assert second["outcome"] == "ok"
    assert "cannot be read" in third["error"]
    assert "2 of 3 files could not be judged" in told.err
    assert main(["predict", str(SHIPPED_BUNDLE), given[0], given[1]]) == 1
    assert re.match(rf"error +{given[0]}", capsys.readouterr().out)
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(SHIPPED_BUNDLE), str(tmp_path / "empty")]) == 1
    assert "holds no pictures" in capsys.readouterr().err
    assert main(["predict", str(SHIPPED_BUNDLE), given[1], "--reference", given[1]]) == 1
    assert "compares nothing: leave out --reference FILE" in capsys.readouterr().err


def test_a_threshold_is_chosen_anew_without_training(
    boards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new.bundle"
    before = read_bundle(SHIPPED_BUNDLE)
    capsys.readouterr()
    command = ["threshold", str(SHIPPED_BUNDLE), "--data", str(boards), "--split", "all", "--out", str(out)]
    assert main([*command, "--max-miss", "0"]) == 0
    told = capsys.readouterr().out
    after = read_bundle(out)
    assert after.model == before.model
    assert after.manifest.thresholds.default != before.manifest.thresholds.default
    assert f"before: {before.manifest.thresholds.default:.4g}" in told
    assert re.search(r"at 0\.\d+: 0 of \d+ good rejected \(95 % interval 0 % to [\d.]+ %\), 0 of \d+ bad missed", told)
    assert after.manifest.thresholds.chosen_on in told.replace("\n", ", ")
    assert "warning: 0 of" in told
    changed = {"thresholds", "golden", "members"}
    assert after.manifest.model_dump(exclude=changed) == before.manifest.model_dump(exclude=changed)
    for case in after.manifest.golden:
        assert abs(case.score - after.manifest.thresholds.default) > 0.02


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--bad-share", "0.1"], 1, "--bad-share: goes with --costs only"),
        (["--costs", "1"], 2, "expected two numbers"),
        (["--costs", "0:1"], 2, "both costs must be above 0"),
        (["--max-miss", "1"], 2, "must be a number from 0 to below 1"),
        (["--max-miss", "0", "--costs", "1:2"], 2, "not allowed with"),
        (["--costs", "1:inf"], 2, "1:inf: both costs must be above 0, and finite"),
        (["--costs", "1:1e12"], 2, "1:1e12: one counts for nothing beside the other; use --max-miss 0"),
    ],
)
def test_a_wrong_rule_writes_nothing(
    options: list[str], code: int, text: str, boards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new.bundle"
    command = ["threshold", str(SHIPPED_BUNDLE), "--data", str(boards), "--out", str(out), *options]
    if code == 1:
        assert main(command) == code
    else:
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == code
    assert text in capsys.readouterr().err
    assert not out.exists()

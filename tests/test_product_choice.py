"""A product that cannot be had is not noted for the next start, and regions that leave nothing to see are refused."""

from pathlib import Path
from typing import Any

import pytest

from station.__main__ import main
from station.adapters.product_file import ProductFile
from station.commands.exit_codes import ExitCode
from station.errors import ConfigurationError
from station.settings import from_document


def test_a_product_without_its_bundle_is_not_noted_for_the_next_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "station.toml"
    config.write_text(
        '[station]\ndata_dir = "data"\n[camera.c]\nkind = "simulated"\n'
        '[product.bolt]\nnumber = 1\n[product.nut]\nbundle = "gone.bundle"\n[product.pin]\nnumber = 3\n',
        encoding="utf-8",
    )
    assert main(["product", "change", "pin", "--config", str(config)]) == ExitCode.OK
    assert ProductFile(tmp_path / "data").load() == "pin"
    assert main(["product", "change", "nut", "--config", str(config)]) == ExitCode.BUNDLE
    shown = capsys.readouterr()
    assert "gone.bundle" in shown.err
    assert "the next start begins as before" in shown.err
    assert ProductFile(tmp_path / "data").load() == "pin"


def test_an_inspected_region_that_is_ignored_as_a_whole_is_refused() -> None:
    region = {"x_px": 10, "y_px": 10, "width_px": 50, "height_px": 50}
    larger = {**region, "width_px": 60}
    product: dict[str, Any] = {"inspect": {"x": region}}
    document = {"camera": {"c": {"kind": "simulated"}}, "product": {"a": product}}
    assert from_document(document, "s.toml", Path("/"), {}).product
    product["ignore"] = {"y": larger}
    with pytest.raises(ConfigurationError, match=r"inspect\.x lies in ignore\.y as a whole"):
        from_document(document, "s.toml", Path("/"), {})

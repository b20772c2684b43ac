"""How sensor logs are written, as options of the export."""

import argparse
from pathlib import Path

import pytest

from export.process_arguments import add_log_arguments, log_form
from export.process_logs import read_logs
from export.samples import DatasetError
from station.errors import StationError


def form_of(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_log_arguments(parser)
    return parser.parse_args(options)


def test_without_options_everything_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("when;t\n2026-01-01 00:00:00;1,5\n2026-01-01 00:00:01;1,6\n", encoding="utf-8")
    (log,) = read_logs([tmp_path], log_form(form_of())).logs
    assert log.values[:, 0].tolist() == [1.5, 1.6]


def test_options_say_what_cannot_be_found_out(tmp_path: Path) -> None:
    rows = "a\tseen\n1\t01.02.2026 10:00\n2\t01.02.2026 09:59\n3\t01.02.2026 10:01\n"
    (tmp_path / "log.csv").write_text(rows, encoding="utf-8")
    options = ["--separator", "tab", "--time-column", "seen", "--time-format", "%d.%m.%Y %H:%M", "--time-zone"]
    with pytest.raises(StationError, match="goes backwards"):
        read_logs([tmp_path], log_form(form_of(*options, "Europe/Berlin")))
    (log,) = read_logs([tmp_path], log_form(form_of(*options, "Europe/Berlin", "--backwards", "keep"))).logs
    assert log.time_s[0] % 86_400 == 9 * 3600
    assert log.values[:, 0].tolist() == [1, 2, 3]


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(DatasetError, match="--time-zone Mars/North: this computer knows no such time zone"):
        log_form(form_of("--time-zone", "Mars/North"))

"""Bundles are activated again and again under a camera's full rate: each frame is judged by exactly one of them.

``FAULTS=long python -m pytest -s tests/test_bundle_switches.py`` activates 50 at 50 frames/s.
"""

import itertools
from pathlib import Path

import pytest
from bundle_makers import variant, wrong_golden
from fault_tools import LONG, station_process, table
from test_bundle_library import SHIPPED, entry, installed, kept_verdicts, told
from test_station import eventually

from station.adapters.bundle_library import BundleLibrary
from station.adapters.control_folder import is_read
from station.adapters.embedded_broker import free_port
from station.adapters.sqlite_journal import stats
from station.bundle_file import open_members
from station.messages import SwitchResult, Verb

ACTIVATIONS = 50 if LONG else 4
RATE_FPS = 50.0 if LONG else 20.0
UNDISTURBED_S = 20.0 if LONG else 3.0
"""Nothing is switched for so long, for figures to compare with."""
SLOWEST_MS = 250.0


@pytest.mark.fault
@pytest.mark.timeout(1800 if LONG else 300)
def test_each_frame_is_judged_by_one_bundle_and_none_by_one_that_fails_its_golden_set(tmp_path: Path) -> None:
    document = f"""
[station]
name = "s"
data_dir = "data"
[broker]
port = {free_port()}
[evidence]
enabled = false
[camera.c]
kind = "simulated"
rate_fps = {RATE_FPS}
"""
    bad = wrong_golden(tmp_path / "wrong.bundle", "9").read_bytes()
    refused: list[str] = []
    with station_process(tmp_path, document) as station:
        station.start()
        eventually(lambda: is_read(tmp_path / "data"))
        good = [installed(tmp_path, variant(tmp_path / f"{version}.bundle", version)) for version in ("2", "3")]
        library = BundleLibrary(tmp_path / "data", None, 10_000_000)
        answer = told(tmp_path, Verb.INSTALL_BUNDLE, bundle=library.hand_in(bad))
        refused.append(str(answer.reason))
        # What the machine can do while nothing is switched.
        journal = tmp_path / "data" / "journal.sqlite"
        eventually(lambda: stats(journal).rows >= UNDISTURBED_S * RATE_FPS, within_s=120.0)
        # Somebody puts it into the library all the same.
        sha256 = open_members(bad, "b").sha256
        library.add(bad, entry(0).model_copy(update={"sha256": sha256, "name": "wrong"}))
        for number in range(ACTIVATIONS):
            answer = told(tmp_path, Verb.ACTIVATE_BUNDLE, bundle=good[number % 2])
            assert isinstance(answer.result, SwitchResult), answer.reason
            assert answer.result.models["c"].sha256 == good[number % 2]
            if number % 5 == 2:
                refused.append(str(told(tmp_path, Verb.ACTIVATE_BUNDLE, bundle=sha256).reason))
        assert station.stop() == 0
    found = kept_verdicts(tmp_path)
    assert [one.sequence for one in found] == list(range(1, len(found) + 1))
    models = [one.model.sha256 if one.model is not None else "none" for one in found]
    switches = [after for before, after in itertools.pairwise(models) if before != after]
    # In the order of the commands; where two came between two frames, nobody saw the first.
    commanded = iter([SHIPPED, *(good[number % 2] for number in range(ACTIVATIONS))])
    assert all(one in commanded for one in switches)
    assert set(models) <= {SHIPPED, *good}
    assert all("golden" in reason for reason in refused)
    first = models.index(good[0])
    before = sorted(one.latency_ms.total for one in found[first // 2 : first])
    latencies = sorted(one.latency_ms.total for one in found[first:])
    table(
        "bundles activated under load",
        {
            "activations": ACTIVATIONS,
            "seen in the verdicts": len(switches),
            "refused, golden set": len(refused),
            "frames": len(found),
            "unknown": sum(one.outcome.value == "unknown" for one in found),
            "before, p50 ms": before[len(before) // 2],
            "before, slowest ms": before[-1],
            "verdict, p50 ms": latencies[len(latencies) // 2],
            "verdict, p99 ms": latencies[len(latencies) * 99 // 100],
            "verdict, slowest ms": latencies[-1],
        },
    )
    # What another program on this machine takes from a short run is not the station's.
    assert not LONG or latencies[-1] <= SLOWEST_MS

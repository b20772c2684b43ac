"""The library of bundles: install, activate, go back, and what is taken back by itself; with and without a station."""

import itertools
import os
import resource
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bundle_makers import enlarging, variant, wrong_golden
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_station import eventually, running

from export.__main__ import main as export_main
from station import wire
from station.__main__ import main
from station.adapters.bundle_library import BundleLibrary
from station.adapters.control_folder import ask
from station.adapters.embedded_broker import free_port
from station.adapters.sqlite_journal import export
from station.boards import Web
from station.bundle_file import open_members
from station.bundle_index import Entry, Index
from station.bundle_settings import BundleSettings
from station.daemon import Station
from station.errors import BundleError, BundleLocked, ConfigurationError, StorageError
from station.messages import Fault, InstallResult, Origin, Outcome, Reason, Response, SwitchResult, Verb, Verdict
from station.settings import SHIPPED_BUNDLE, SHIPPED_PROCESS_BUNDLE
from station.simulated_process import CHANNELS

AT = datetime(2026, 1, 1, tzinfo=UTC)
SHIPPED = open_members(SHIPPED_BUNDLE.read_bytes(), "b").sha256


def entry(number: int, size_bytes: int = 10, *, used_days: int = 0) -> Entry:
    return Entry(
        sha256=f"{number:064x}", name=f"n{number}", version="1", task="detect", size_bytes=size_bytes,
        came="installed", at=AT, used_at=AT + timedelta(days=used_days),
    )  # fmt: skip


# The index


@given(steps=st.lists(st.one_of(st.integers(1, 4), st.none()), max_size=30))
def test_going_back_undoes_each_activation(steps: list[int | None]) -> None:
    """None goes back; a number activates the bundle of that number."""
    index = Index()
    expected: list[str | None] = [None]
    for number in range(1, 5):
        index = index.with_entry(entry(number))
    for step in steps:
        sha256 = f"{step:064x}" if step is not None else None
        if sha256 is None and len(expected) == 1:
            with pytest.raises(BundleError, match="nothing to go back to"):
                index.rolled_back("model", AT)
            continue
        if sha256 is not None and sha256 == expected[-1]:
            with pytest.raises(BundleError, match="is active already"):
                index.activated("model", sha256, AT)
            continue
        index = index.rolled_back("model", AT) if sha256 is None else index.activated("model", sha256, AT)
        if sha256 is None:
            expected.pop()
        else:
            expected = [*expected, sha256][-9:]
        assert index.active("model") == expected[-1]
        assert index.needed() == {one for one in expected if one is not None}


def test_what_is_longest_unused_goes_first_and_never_what_is_needed() -> None:
    index = Index()
    for number, used_days in ((1, 5), (2, 1), (3, 3), (4, 0)):
        index = index.with_entry(entry(number, used_days=used_days))
    index = index.activated("model", f"{2:064x}", AT).activated("model", f"{4:064x}", AT)
    pruned, gone = index.pruned(30, ())
    assert gone == (f"{3:064x}",)
    pruned, gone = index.pruned(5, ())
    assert gone == (f"{3:064x}", f"{1:064x}")
    assert set(pruned.entries) == index.needed()
    assert index.pruned(5, (f"{3:064x}",))[1] == (f"{1:064x}",)


def test_a_bundle_is_found_by_name_version_or_the_beginning_of_its_hash() -> None:
    index = Index().with_entry(entry(1)).with_entry(entry(2).model_copy(update={"name": "n1", "version": "2"}))
    assert index.find("n1:2").sha256 == f"{2:064x}"
    assert index.find(f"{1:064x}").version == "1"
    with pytest.raises(BundleError, match=r"n1: that could be n1 1 \(0{12}\), n1 2"):
        index.find("n1")
    with pytest.raises(BundleError, match="the library does not hold it; it holds n1 1"):
        index.find("n9")
    with pytest.raises(BundleError, match="it holds nothing"):
        Index().find("abcdef")


# The disk


def test_the_library_keeps_bundles_encrypted_and_says_what_is_wrong(tmp_path: Path) -> None:
    data = SHIPPED_BUNDLE.read_bytes()
    key, other = os.urandom(32), os.urandom(32)
    library = BundleLibrary(tmp_path, key, 10_000_000)
    sealed = entry(0).model_copy(update={"sha256": SHIPPED, "sealed": True})
    with pytest.raises(BundleLocked, match="there is no key"):
        BundleLibrary(tmp_path, None, 10_000_000).add(data, sealed)
    assert library.add(data, sealed).size_bytes > len(data)
    (stored,) = (tmp_path / "bundles" / "objects").iterdir()
    content = stored.read_bytes()
    assert b"manifest" not in content
    assert content[:2] != b"PK"
    assert library.read(SHIPPED) == data
    with pytest.raises(BundleLocked, match=r"is encrypted, and there is no key: set bundles\.key_credential"):
        BundleLibrary(tmp_path, None, 10_000_000).read(SHIPPED)
    with pytest.raises(BundleLocked, match=r"is encrypted with the key [0-9a-f]{16}, the one given is [0-9a-f]{16}"):
        BundleLibrary(tmp_path, other, 10_000_000).read(SHIPPED)
    for position in (0, 12, 20, 200, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 1
        stored.write_bytes(damaged)
        with pytest.raises((BundleError, BundleLocked)):
            library.read(SHIPPED)
    stored.write_bytes(content[:30])
    with pytest.raises(BundleError, match="is no sealed bundle, or cut short"):
        library.read(SHIPPED)
    stored.unlink()
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        library.read(SHIPPED)


def test_a_full_disk_leaves_the_library_as_it_was(tmp_path: Path) -> None:
    library = BundleLibrary(tmp_path, None, 10_000_000)
    library.add(b"x" * 100, entry(1))
    before = library.index()
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, former[1]))
    try:
        with pytest.raises(StorageError, match="cannot be written: File too large"):
            library.add(SHIPPED_BUNDLE.read_bytes(), entry(2).model_copy(update={"sha256": SHIPPED}))
        with pytest.raises(StorageError, match="cannot be written: File too large"):
            library.hand_in(SHIPPED_BUNDLE.read_bytes())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert library.index() == before
    assert sorted(path.name for path in (tmp_path / "bundles").rglob("*") if path.is_file()) == [
        f"{1:064x}.bundle", "index.json", "lock",
    ]  # fmt: skip


def test_a_damaged_index_is_named_and_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    library = BundleLibrary(tmp_path, None, 10_000_000)
    library.add(b"x", entry(1))
    left = tmp_path / "bundles" / "objects" / f".{2:064x}.bundle.part"
    left.write_bytes(b"half")
    library.add(b"y", entry(3))
    assert not left.exists()
    (tmp_path / "bundles" / "index.json").write_bytes(b"{")
    with pytest.raises(StorageError, match=r"index\.json: is damaged: file: Invalid JSON"):
        library.index()


# The command line, without a station


def configured(folder: Path, more: str = "") -> list[str]:
    path = folder / "station.toml"
    path.write_text(
        f'[station]\nname = "s"\ndata_dir = "data"\n{more}\n[camera.c]\nkind = "simulated"\n', encoding="utf-8"
    )
    return ["--config", str(path)]


def test_install_activate_and_go_back_without_a_station(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = configured(tmp_path)
    other = variant(tmp_path / "other.bundle", "7")

    def do(*arguments: str, code: int = 0) -> str:
        assert main(["bundle", arguments[0], *where, *arguments[1:]]) == code
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    assert "there is nothing to go back to: it judges with what the configuration names" in do("rollback", code=3)
    assert "the library does not hold it; it holds nothing" in do("activate", "boards", code=3)
    assert "installed boards 7, detect" in do("install", str(other))
    assert "slot model: boards 7" in do("activate", "boards:7")
    assert "is active already" in do("activate", "boards", code=3)
    assert "active in model" in do("list")
    assert main(["check", "--offline", *where]) == 0
    assert "boards 7, golden set reproduced" in capsys.readouterr().out
    # A name that the configuration has no table for, and a bundle that is for something else.
    assert "the configuration has no such table; there are model, camera.c" in do(
        "activate", "boards", "--slot", "camera.d", code=3
    )
    do("install", str(SHIPPED_PROCESS_BUNDLE))
    assert "is for readings (task forecast), not for the slot model" in do("activate", "oven", code=3)
    # What is damaged, or does not give what it promises, is refused and not kept.
    wrong = wrong_golden(tmp_path / "wrong.bundle", "8")
    assert "golden" in do("install", str(wrong), code=3)
    cut = tmp_path / "cut.bundle"
    cut.write_bytes(other.read_bytes()[:-9])
    assert "is not a whole zip file" in do("install", str(cut), code=3)
    assert "No such file" in do("install", str(tmp_path / "nowhere"), code=3)
    assert {one.version for one in BundleLibrary(tmp_path / "data", None, 1).index().entries.values()} == {"7", "1"}
    assert not list((tmp_path / "data" / "bundles" / "incoming").iterdir())
    assert "what the configuration names judges" in do("rollback")
    kept = [wire.decode(Response, row.message.payload) for row in export(tmp_path / "data" / "journal.sqlite")]
    assert [(one.verb, one.accepted, one.origin) for one in kept][2:4] == [
        ("install-bundle", True, Origin.LOCAL),
        ("activate-bundle", True, Origin.LOCAL),
    ]
    assert kept[0].reason is not None
    assert len(kept) == 11


def test_a_process_group_and_a_product_have_slots_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(SHIPPED_BUNDLE, tmp_path / "own.bundle")
    shutil.copy(SHIPPED_PROCESS_BUNDLE, tmp_path / "process.bundle")
    channels = "\n".join(f'channel.{name} = {{ source = "plant", unit = "{unit}" }}' for name, unit in CHANNELS)
    where = configured(
        tmp_path,
        f"""
[product.wide]
bundle = "own.bundle"
[product.narrow]
[sensors.plant]
kind = "simulated"
[process.oven]
bundle = "process.bundle"
{channels}
""",
    )
    assert main(["bundle", "install", *where, str(variant(tmp_path / "2.bundle", "2"))]) == 0
    assert main(["bundle", "install", *where, str(tmp_path / "process.bundle")]) == 0
    assert main(["bundle", "activate", *where, "boards", "--slot", "product.wide"]) == 0
    assert main(["bundle", "activate", *where, "oven", "--slot", "process.oven"]) == 0
    capsys.readouterr()
    for bundle, slot, reason in (
        ("boards", "product.narrow", "the configuration has no such table"),
        ("boards", "process.oven", "is for pictures (task detect), not for the slot process.oven"),
        ("oven", "camera.c", "is for readings (task forecast), not for the slot camera.c"),
    ):
        assert main(["bundle", "activate", *where, bundle, "--slot", slot]) == 3
        assert reason in capsys.readouterr().err
    assert main(["check", "--offline", *where]) == 0
    said = capsys.readouterr().out
    assert "product wide, camera c, bundle" in said
    assert "boards 2, golden set reproduced" in said
    assert "in slot process.oven: oven 1" in said


def test_a_bundle_of_another_task_judges_only_where_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variant(tmp_path / "parts.bundle", "1", name="parts", task="classify")
    where = configured(tmp_path, '[model]\nbundle = "parts.bundle"')
    assert main(["bundle", "install", *where, str(SHIPPED_BUNDLE)]) == 0
    capsys.readouterr()
    assert main(["bundle", "activate", *where, "boards"]) == 3
    refused = "has the task detect, slot model judges with the task classify; --other-task (other_task) allows it"
    assert refused in capsys.readouterr().err
    assert BundleLibrary(tmp_path / "data", None, 1).index().active("model") is None
    assert main(["bundle", "activate", *where, "boards", "--other-task"]) == 0
    assert BundleLibrary(tmp_path / "data", None, 1).index().active("model") == SHIPPED
    # From now on that is the former one; a version of the same task needs no word.
    assert main(["bundle", "install", *where, str(variant(tmp_path / "2.bundle", "2"))]) == 0
    assert main(["bundle", "activate", *where, "boards:2"]) == 0
    assert main(["bundle", "rollback", *where]) == 0
    answers = [wire.decode(Response, row.message.payload) for row in export(tmp_path / "data" / "journal.sqlite")]
    assert [one.accepted for one in answers if one.verb == "activate-bundle"] == [False, True, True]


def test_the_key_may_be_a_credential_of_the_service(tmp_path: Path) -> None:
    settings = BundleSettings(key_credential="bundle-key", encrypt=True)
    assert settings.read_key({}) is None
    with pytest.raises(ConfigurationError, match=r"bundles\.key_credential = 'bundle-key': cannot read"):
        settings.read_key({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    (tmp_path / "bundle-key").write_bytes(bytes(range(32)))
    assert settings.read_key({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == bytes(range(32))
    with pytest.raises(ValidationError, match="encrypt = true needs key_credential or key_file"):
        BundleSettings(encrypt=True)


def test_an_encrypted_bundle_needs_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_bytes(os.urandom(32).hex().encode() + b"\n")
    where = configured(tmp_path, '[bundles]\nkey_file = "key"')
    assert main(["bundle", "install", *where, str(SHIPPED_BUNDLE), "--encrypt"]) == 0
    assert "kept encrypted" in capsys.readouterr().out
    assert main(["bundle", "activate", *where, "boards"]) == 0
    assert main(["check", "--offline", *where]) == 0
    capsys.readouterr()
    configured(tmp_path)
    assert main(["bundle", "inspect", *where, "boards"]) == 3
    assert "is encrypted, and there is no key" in capsys.readouterr().err
    configured(tmp_path, '[bundles]\nkey_file = "short"')
    (tmp_path / "short").write_bytes(b"1234")
    assert main(["bundle", "inspect", *where, "boards"]) == 78
    assert "is no key: 32 bytes or 64 hexadecimal digits are needed" in capsys.readouterr().err
    configured(tmp_path)
    assert main(["bundle", "install", *where, str(variant(tmp_path / "x.bundle", "2")), "--encrypt"]) == 3
    assert "there is no key" in capsys.readouterr().err


# A running station


def kept_verdicts(folder: Path) -> list[Verdict]:
    rows = export(folder / "data" / "journal.sqlite")
    return [wire.decode(Verdict, row.message.payload) for row in rows if row.message.kind == "verdict"]


def told(folder: Path, verb: Verb, **request: object) -> Response:
    return ask(folder / "data", verb, request, 60.0)


def installed(folder: Path, bundle: Path) -> str:
    sha256 = BundleLibrary(folder / "data", None, 10_000_000).hand_in(bundle.read_bytes())
    answer = told(folder, Verb.INSTALL_BUNDLE, bundle=sha256)
    assert isinstance(answer.result, InstallResult), answer.reason
    return sha256


def faults(station: Station, what: str) -> list[Fault]:
    return [fault for fault in station.faults() if fault.what == what]


LIVE: dict[str, Any] = {"camera": {"c": {"kind": "simulated", "rate_fps": 20.0}}, "evidence": {"enabled": False}}


def test_a_running_station_switches_between_two_frames_and_back(tmp_path: Path) -> None:
    document = {"broker": {"port": free_port()}, **LIVE}
    with running(tmp_path, document) as station:

        def judged() -> int:
            return station.health().cameras["c"].account.judged

        eventually(lambda: judged() >= 5)
        second = installed(tmp_path, variant(tmp_path / "2.bundle", "2"))
        answer = told(tmp_path, Verb.ACTIVATE_BUNDLE, bundle=second[:12])
        assert isinstance(answer.result, SwitchResult)
        assert answer.result.models["c"].sha256 == second
        assert not answer.result.at_next_start
        seen = judged()
        eventually(lambda: judged() >= seen + 5)
        refused = told(tmp_path, Verb.ACTIVATE_BUNDLE, bundle=second)
        assert "is active already" in str(refused.reason)
        answer = told(tmp_path, Verb.ROLLBACK_BUNDLE)
        assert isinstance(answer.result, SwitchResult)
        assert answer.result.active is None
        assert answer.result.models["c"].sha256 == SHIPPED
        seen = judged()
        eventually(lambda: judged() >= seen + 5)
        assert "nothing to go back to" in str(told(tmp_path, Verb.ROLLBACK_BUNDLE).reason)
        told(tmp_path, Verb.ACTIVATE_BUNDLE, bundle=second)
    found = kept_verdicts(tmp_path)
    models = [one.model.sha256 for one in found if one.model is not None]
    assert len(models) == len(found)
    changes = [one for one, after in itertools.pairwise(models) if one != after]
    assert changes == [SHIPPED, second, SHIPPED][: len(changes)]
    assert len(changes) >= 2
    # What judged is kept, also what only the configuration named; the next start goes on with what is active.
    assert set(BundleLibrary(tmp_path / "data", None, 1).index().entries) == {SHIPPED, second}
    with running(tmp_path, document) as station:
        eventually(lambda: station.health().cameras["c"].account.judged >= 3)
    again = kept_verdicts(tmp_path)[len(found) :]
    assert {one.model.sha256 for one in again if one.model is not None} == {second}


def test_an_active_bundle_that_was_damaged_is_taken_back_at_the_start_and_said(tmp_path: Path) -> None:
    document = {"broker": {"port": free_port()}, **LIVE}
    where = configured(tmp_path)
    assert main(["bundle", "install", *where, str(variant(tmp_path / "2.bundle", "2"))]) == 0
    assert main(["bundle", "activate", *where, "boards"]) == 0
    (stored,) = (tmp_path / "data" / "bundles" / "objects").iterdir()
    stored.write_bytes(stored.read_bytes()[:-1])
    with running(tmp_path, document) as station:
        eventually(lambda: station.health().cameras["c"].account.judged >= 3)
        (fault,) = faults(station, "bundle model")
        assert "was taken back, it judges with what the configuration names again" in fault.reason
        assert "was altered in the library" in fault.reason
    assert {one.model.sha256 for one in kept_verdicts(tmp_path) if one.model is not None} == {SHIPPED}
    rows = [row.message for row in export(tmp_path / "data" / "journal.sqlite") if row.message.kind == "command"]
    record = wire.decode(Response, rows[-1].payload)
    assert (record.verb, record.origin, record.accepted) == ("rollback-bundle", Origin.STATION, True)


def test_a_bundle_whose_model_fails_on_frames_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture = np.tile(Web(7, defect_share=0.0).render(0, 640), (2, 2))[:1100, :1100]
    for number in range(3):
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), np.ascontiguousarray(picture))
    document = {
        "broker": {"port": free_port()},
        "camera": {"c": {"kind": "folder", "path": str(tmp_path / "in"), "mode": "loop", "rate_fps": 10.0}},
        "bundles": {"faults_in_a_row": 3},
        "evidence": {"enabled": False},
    }
    with running(tmp_path, document) as station:
        eventually(lambda: station.health().cameras["c"].account.judged >= 2)
        failing = installed(tmp_path, enlarging(tmp_path / "large.bundle", "8x"))
        answer = told(tmp_path, Verb.ACTIVATE_BUNDLE, bundle=failing)
        assert answer.accepted, answer.reason
        eventually(lambda: bool(faults(station, "bundle model")))
        assert "its model failed on" in faults(station, "bundle model")[0].reason
        seen = station.health().cameras["c"].account.judged
        eventually(lambda: station.health().cameras["c"].account.judged >= seen + 8)
    found = kept_verdicts(tmp_path)
    by_failing = [one for one in found if one.model is not None and one.model.sha256 == failing]
    assert len(by_failing) >= 3
    assert {(one.outcome, one.reasons) for one in by_failing} == {(Outcome.UNKNOWN, (Reason.MODEL_FAULT,))}
    assert found[-1].model is not None
    assert found[-1].model.sha256 == SHIPPED


def test_a_station_that_asks_for_signatures_takes_no_unsigned_bundle_from_the_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = configured(tmp_path)
    assert main(["bundle", "install", *where, str(variant(tmp_path / "2.bundle", "2"))]) == 0
    export_main(["keygen", str(tmp_path / "k")])
    configured(tmp_path, '[trust]\nkeys = ["k.pub.pem"]\nrequire_signature = true')
    capsys.readouterr()
    assert main(["bundle", "activate", *where, "boards"]) == 3
    assert "is not signed, and trust.require_signature is set" in capsys.readouterr().err
    assert main(["bundle", "install", *where, str(variant(tmp_path / "3.bundle", "3"))]) == 3
    export_main(["sign", str(tmp_path / "3.bundle"), "--key", str(tmp_path / "k.key.pem")])
    assert main(["bundle", "install", *where, str(tmp_path / "3.bundle")]) == 0
    assert main(["bundle", "activate", *where, "boards:3"]) == 0
    assert main(["check", "--offline", *where]) == 0

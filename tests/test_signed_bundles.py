"""Signed bundles: what the right key signed is let in, and nothing of what others made of it.

``FAULTS=long python -m pytest -s tests/test_signed_bundles.py`` takes a thousand tampered bundles and prints the table.
"""

import json
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tampering import KINDS, public_of, signed_bundle, trust_in

from export.__main__ import main as export_main
from export.signing import signed
from station.__main__ import main
from station.bundle_file import open_members, read_file, without_signatures
from station.errors import BundleError, ConfigurationError
from station.manifest import open_bundle, read_bundle
from station.process_bundle import open_process_bundle
from station.settings import SHIPPED_BUNDLE, SHIPPED_PROCESS_BUNDLE, from_document
from station.trust import Trust, key_id, read_public_key

LONG = os.environ.get("FAULTS") == "long"
SCALE = 1.0 if LONG else 0.1
PEAK_BYTES = 300_000_000
"""Beyond what the process had before: a bomb would take far more."""


@pytest.mark.timeout(3600 if LONG else 300)
def test_no_tampered_bundle_is_let_in_and_each_is_refused_with_its_reason() -> None:
    of = signed_bundle()
    assert open_bundle(of.data, "b", of.trust).signed_by == key_id(public_of(of.key))
    chance = random.Random(20)
    let_in: Counter[str] = Counter()
    made: Counter[str] = Counter()
    said: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    slowest_s = 0.0
    before_bytes = memory_bytes("VmRSS")
    # The kernel forgets the peak of the tests before.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    for kind, (share, make, expected) in KINDS.items():
        for _ in range(max(1, round(share * SCALE))):
            data = make(of, chance)
            if data == of.data:
                continue
            made[kind] += 1
            began_s = time.monotonic()
            reason = refusal(data, of.trust)
            if reason is None:
                let_in[kind] += 1
                continue
            assert reason.startswith("bundle b: ")
            assert len(reason.splitlines()) == 1
            assert expected in reason, kind
            said[kind][" ".join(reason.split()[2:8])] += 1
            slowest_s = max(slowest_s, time.monotonic() - began_s)
    for kind, count in made.items():
        print(f"| {kind} | {count} | {count - let_in[kind]} | {said[kind].most_common(1)[0][0]} … |")
    taken_bytes = memory_bytes("VmHWM") - before_bytes
    print(f"| all | {made.total()} | {made.total() - let_in.total()} | slowest {slowest_s * 1e3:.0f} ms |")
    assert let_in.total() == 0, let_in
    assert made.total() >= 90 * SCALE
    assert taken_bytes < PEAK_BYTES


def memory_bytes(what: str) -> int:
    """Of this process: `VmRSS` now, or `VmHWM`, the peak."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(what))


def refusal(data: bytes, trust: Trust) -> str | None:
    try:
        open_bundle(data, "b", trust)
    except BundleError as exc:
        return str(exc)
    return None


def test_each_signature_is_by_its_key_and_keys_can_change() -> None:
    old, new, stranger = (Ed25519PrivateKey.generate() for _ in range(3))
    by_old = signed(SHIPPED_BUNDLE.read_bytes(), "b", old)
    by_both = signed(by_old, "b", new)
    assert [one.key for one in open_members(by_both, "b").signatures] == [key_id(public_of(key)) for key in (old, new)]
    # While keys change, stations that know either of them use it.
    for trust in (trust_in(old), trust_in(new), trust_in(old, new)):
        assert open_bundle(by_both, "b", trust).signed_by is not None
    # The old key is revoked: what both have signed still counts by the new one.
    revoked = frozenset({key_id(public_of(old))})
    assert open_bundle(by_both, "b", trust_in(old, new, revoked=revoked)).signed_by == key_id(public_of(new))
    with pytest.raises(BundleError, match=r"is signed by the key [0-9a-f]{16}, which trust\.revoked names"):
        open_bundle(by_old, "b", trust_in(old, new, revoked=revoked, required=False))
    with pytest.raises(BundleError, match="is signed by the unknown key"):
        open_bundle(by_old, "b", trust_in(stranger, required=False))
    # Signing again with the same key leaves one signature of it.
    assert len(open_members(signed(by_both, "b", old), "b").signatures) == 2
    assert without_signatures(by_both, "b")[0] == SHIPPED_BUNDLE.read_bytes()
    # A station that knows no key uses it, and says of nobody that he signed it.
    assert open_bundle(by_both, "b").signed_by is None
    assert open_bundle(by_both, "b").model == read_bundle(SHIPPED_BUNDLE).model
    with pytest.raises(BundleError, match=r"is not signed, and trust\.require_signature is set"):
        open_bundle(SHIPPED_BUNDLE.read_bytes(), "b", trust_in(old))
    process = signed(SHIPPED_PROCESS_BUNDLE.read_bytes(), "p", old)
    assert open_process_bundle(process, "p", trust_in(old)).signed_by == key_id(public_of(old))
    with pytest.raises(BundleError, match="is signed by the unknown key"):
        open_process_bundle(process, "p", trust_in(new))


def test_the_commands_make_keys_and_sign_and_a_station_that_asks_for_signatures_refuses_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stem = tmp_path / "keys" / "line"
    assert export_main(["keygen", str(stem)]) == 0
    identifier = capsys.readouterr().out.split()[1]
    private, public = Path(f"{stem}.key.pem"), Path(f"{stem}.pub.pem")
    assert private.stat().st_mode & 0o777 == 0o600
    assert key_id(read_public_key(public)) == identifier
    assert export_main(["keygen", str(stem)]) == 1
    assert "is there already, and a key is never written over" in capsys.readouterr().err
    mine = tmp_path / "mine.bundle"
    assert export_main(["sign", str(SHIPPED_BUNDLE), "--key", str(private), "--out", str(mine)]) == 0
    assert f"signed by {identifier}" in capsys.readouterr().out
    assert open_bundle(read_file(mine), "m", Trust({identifier: read_public_key(public)}, True)).signed_by == identifier
    configuration = tmp_path / "station.toml"
    document = """
[station]
data_dir = "data"
[trust]
keys = ["keys/line.pub.pem"]
require_signature = true
[camera.c]
kind = "folder"
path = "in"
"""
    configuration.write_text(document, encoding="utf-8")
    assert main(["check", "--offline", "--config", str(configuration)]) == 3
    assert "is not signed, and trust.require_signature is set" in capsys.readouterr().out
    configuration.write_text(f'{document}bundle = "mine.bundle"\n', encoding="utf-8")
    assert main(["check", "--offline", "--config", str(configuration)]) == 0
    capsys.readouterr()
    revoked = document.replace("[trust]", f'[trust]\nrevoked = ["{identifier}"]')
    configuration.write_text(f'{revoked}bundle = "mine.bundle"\n', encoding="utf-8")
    assert main(["check", "--offline", "--config", str(configuration)]) == 3
    assert f"is signed by the key {identifier}, which trust.revoked names" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"require_signature": True}, "require_signature = true needs at least one file in keys"),
        ({"revoked": ["xyz"]}, "String should match pattern"),
        ({"keys": [7]}, "must be a path, written as a string"),
    ],
)
def test_wrong_settings_are_named(table: dict[str, object], reason: str, tmp_path: Path) -> None:
    document = {"camera": {"c": {"kind": "simulated"}}, "trust": table}
    with pytest.raises(ConfigurationError, match=reason) as error:
        from_document(json.loads(json.dumps(document)), "file", tmp_path, {})
    assert "file: trust" in str(error.value)


def test_keys_that_are_none_are_named(tmp_path: Path) -> None:
    stem = tmp_path / "k"
    export_main(["keygen", str(stem), "--passphrase-file", str(_file(tmp_path / "secret", b"open sesame\n"))])
    for path, reason in (
        (tmp_path / "nowhere", "cannot be read: No such file"),
        (_file(tmp_path / "text", b"hello"), "is no public key in PEM form"),
        (Path(f"{stem}.key.pem"), "is a private key; a station needs the public one"),
    ):
        with pytest.raises(ConfigurationError, match=reason) as error:
            read_public_key(path)
        assert str(error.value).startswith(f"{path}: ")


def test_a_private_key_needs_its_passphrase(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stem, bundle = tmp_path / "k", tmp_path / "b.bundle"
    bundle.write_bytes(SHIPPED_BUNDLE.read_bytes())
    right, wrong = _file(tmp_path / "right", b"open sesame\n"), _file(tmp_path / "wrong", b"open barley\n")
    export_main(["keygen", str(stem), "--passphrase-file", str(right)])
    sign = ["sign", str(bundle), "--key", f"{stem}.key.pem"]
    for more, reason in (
        ([], "needs --passphrase-file"),
        (["--passphrase-file", str(wrong)], "cannot be opened with this passphrase"),
        (["--passphrase-file", str(tmp_path / "nowhere")], "cannot be read: No such file"),
        (["--passphrase-file", str(_file(tmp_path / "empty", b"\n"))], "the first line is empty"),
    ):
        assert export_main([*sign, *more]) == 1
        assert reason in capsys.readouterr().err
    assert bundle.read_bytes() == SHIPPED_BUNDLE.read_bytes()
    assert export_main([*sign, "--passphrase-file", str(right)]) == 0
    assert export_main(["sign", str(right), "--key", f"{stem}.key.pem", "--passphrase-file", str(right)]) == 1
    assert "is not a whole zip file" in capsys.readouterr().err


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path

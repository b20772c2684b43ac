"""A bundle is refused for whatever is wrong with it, before a byte of the model is used."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from station.bundle_file import GOLDEN, MANIFEST, MODEL
from station.errors import BundleError
from station.manifest import (
    Bundle,
    parse_manifest,
    read_bundle,
)
from station.settings import SHIPPED_BUNDLE


def members() -> dict[str, bytes]:
    with zipfile.ZipFile(SHIPPED_BUNDLE) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def refused(path: Path, reason: str) -> None:
    with pytest.raises(BundleError, match=reason) as error:
        read_bundle(path)
    assert str(error.value).startswith(f"bundle {path}: ")
    assert len(str(error.value).splitlines()) == 1


def test_the_shipped_bundle_is_whole_and_under_a_megabyte() -> None:
    bundle = read_bundle(SHIPPED_BUNDLE)
    assert isinstance(bundle, Bundle)
    assert SHIPPED_BUNDLE.stat().st_size < 1_000_000
    assert bundle.golden
    assert bundle.manifest.labels == ("open", "short", "mousebite", "spur", "copper", "pin-hole")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda all_: all_.pop(MODEL), "member model.tflite is missing"),
        (lambda all_: all_.pop(MANIFEST), "manifest.json is missing"),
        (lambda all_: all_.pop(next(name for name in all_ if name.startswith(GOLDEN))), "is missing"),
        (lambda all_: all_.update({MODEL: all_[MODEL][:-1] + b"x"}), "member model.tflite was altered"),
        (lambda all_: all_.update({"extra.txt": b""}), "member extra.txt is not named in the manifest"),
        (lambda all_: all_.update({"../../etc/passwd": b""}), "has a name that no member may have"),
        (lambda all_: all_.update({MANIFEST: b"{"}), "manifest.json: text: Invalid JSON"),
        (lambda all_: all_.update({MANIFEST: b"\xff"}), "manifest.json: text: "),
        (lambda all_: all_.update({f"x{number}": b"" for number in range(300)}), "has 3[0-9]{2} members; at most 256"),
    ],
)
def test_a_bundle_that_was_tampered_with_is_refused(change, reason: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    content = members()
    change(content)
    refused(written(tmp_path / "b.bundle", content), reason)


@pytest.mark.parametrize(
    ("field", "value"),
    [("task", "paint"), ("labels", []), ("thresholds", {"default": 2}), ("schema_version", 9), ("surprise", 1)],
)
def test_a_wrong_field_of_the_manifest_is_named(field: str, value: object) -> None:
    document = json.loads(members()[MANIFEST])
    document[field] = value
    with pytest.raises(BundleError, match=f"manifest.json: {field}"):
        parse_manifest(json.dumps(document).encode(), "b")


def test_a_member_that_stands_in_it_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.bundle"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MODEL, b"one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(MODEL, b"two")
    refused(path, "member model.tflite stands in it twice")


def test_a_missing_file_and_what_is_no_zip_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "cannot be read: No such file")
    refused(tmp_path, "cannot be read: Is a directory")
    (tmp_path / "text").write_bytes(b"hello")
    refused(tmp_path / "text", "is not a whole zip file")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_flipped_bit_and_no_cut_gets_through(data: st.DataObject, tmp_path: Path) -> None:
    whole = SHIPPED_BUNDLE.read_bytes()
    content = bytearray(whole)
    if data.draw(st.booleans()):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path = tmp_path / "b.bundle"
    path.write_bytes(content)
    try:
        found = read_bundle(path)
    except BundleError:
        return
    # A bit of the zip's own bookkeeping, such as a date, is no part of what was validated: all content is as it was.
    original = read_bundle(SHIPPED_BUNDLE)
    assert (found.manifest, found.model, found.golden) == (original.manifest, original.model, original.golden)


def test_a_member_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, b"0" * 5_000_000)
    content = bytearray(buffer.getvalue())
    # The uncompressed size in the central directory, which is what a reader goes by.
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (10).to_bytes(4, "little")
    path = tmp_path / "b.bundle"
    path.write_bytes(content)
    with pytest.raises(BundleError):
        read_bundle(path)

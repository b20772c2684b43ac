"""Writes a bundle of any kind: whole, read back and tried, or not at all."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from station.bundle_file import MANIFEST, Part

Checked = TypeVar("Checked")


def write_checked(
    path: Path, manifest: Part, members: Mapping[str, bytes], check: Callable[[Path], Checked]
) -> Checked:
    """Write a bundle beside its place, try it, and only then give it its name.

    Args:
        path: of the bundle; its folder is made.
        manifest: whole but for its `members`, which are filled in here.
        members: name → content of every other member.
        check: reads the written file back and tries it.

    Raises:
        BundleError, GoldenMismatch: from the check: what was written does not work; nothing is left behind.
    """
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    # What is not there is not named: an older station refuses names that it does not know.
    text = manifest.model_copy(update={"members": digests}).model_dump_json(indent=2, exclude_none=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    try:
        with temporary.open("wb") as stream:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in {MANIFEST: text.encode(), **members}.items():
                    # A fixed date: the same members give the same file.
                    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED, 9)
            stream.flush()
            os.fsync(stream.fileno())
        checked = check(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return checked

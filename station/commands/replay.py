"""`station replay`: judge stored pictures again with all that decided then, and say whether it comes out the same.

The exit code is 0 when each verdict came out the same bit for bit (or no model had judged it), 1 when one did not, or
could not be judged again.
"""

import argparse
import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import cv2
import numpy as np

from station import wire
from station.adapters.bundle_library import BundleLibrary
from station.adapters.litert_model import load_model, machine
from station.adapters.sqlite_journal import Filter, export
from station.adapters.system_clock import SystemClock
from station.bundle_file import read_file
from station.commands.assembly import JOURNAL_FILE, with_product
from station.commands.exit_codes import ExitCode
from station.commands.looks import as_owner
from station.errors import BundleError, ModelError, ProtocolError, StorageError
from station.evidence import BY_VALUE, FILE, FOLDER, Kept
from station.judged_with import EvidenceRecord
from station.manifest import open_bundle
from station.messages import ModelRef, Pixels, Verdict
from station.picture import View, fingerprint, read_reference
from station.pipeline import LoadedModel
from station.replaying import DECIDED, Finding, Replayed, replay
from station.settings import SHIPPED_BUNDLE, CameraSettings, Settings, load

COMMITTED_WITHIN_S = 86_400.0
"""A verdict's id holds its time; it was stored at most this long afterwards."""
CLOCK_SLACK_S = 1.0
MODELS = 4
"""Bundles that are held loaded; verdicts of one time mostly have one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--config", type=Path, default=Path("station.toml"), help="configuration file")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("verdict", nargs="?", type=_uuid, metavar="VERDICT_ID", help="id of a verdict with a picture")
    which.add_argument("--all", action="store_true", help="all verdicts whose picture is kept")
    parser.add_argument("--last", type=int, metavar="N", help="with --all: the newest N of them")
    parser.add_argument("--camera", metavar="NAME", help="with --all: of this camera only")
    parser.add_argument("--json", action="store_true", help="one JSON object a verdict, and one with the counts")


def run(options: argparse.Namespace) -> ExitCode:
    """Judge again, print one line for each verdict.

    Raises:
        ConfigurationError: the configuration is wrong.
        StorageError: there is no such verdict among the stored ones, or the pictures or the journal cannot be read.
    """
    settings = load(options.config, os.environ)
    folder = settings.station.data_dir
    counts: Counter[Finding] = Counter()
    with as_owner(folder):
        again = _Again(settings)
        for path in _chosen(folder, options):
            found = again.look(path)
            counts[found.finding] += 1
            if options.json:
                print(json.dumps(_document(path, found), ensure_ascii=False), flush=True)
            elif not options.all or found.finding is not Finding.SAME:
                print(_text(path, found), flush=True)
    if not counts:
        raise StorageError(f"{folder / FOLDER}: holds no picture of a verdict that was asked for")
    summary = {one.value: counts[one] for one in Finding}
    if options.json and options.all:
        print(json.dumps(summary))
    elif options.all:
        print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in summary.items()))
    wrong = counts[Finding.DIFFERENT] + counts[Finding.IMPOSSIBLE]
    return ExitCode.FAILED if wrong else ExitCode.OK


class _Again:
    """Finds what was stored, and judges it again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.station.data_dir
        self._library = BundleLibrary(self._folder, settings.bundles.read_key(os.environ), settings.bundles.max_bytes)
        self._trust = settings.trust.read()
        self._clock = SystemClock()
        self._models: dict[tuple[str, str | None], LoadedModel] = {}

    def look(self, path: Path) -> Replayed:
        """Judge the verdict again whose record this file is."""
        try:
            record = wire.decode(EvidenceRecord, path.read_bytes())
        except OSError as exc:
            return Replayed(Finding.IMPOSSIBLE, None, None, (f"{path}: cannot be read: {exc.strerror}",))
        except ProtocolError as exc:
            return Replayed(Finding.IMPOSSIBLE, None, None, (f"{path}: the record is damaged: {exc}",))
        if (fault := self._against_journal(record.verdict)) is not None:
            return Replayed(Finding.IMPOSSIBLE, record.verdict, None, (fault,))
        try:
            picture: bytes | None = path.with_suffix(".png").read_bytes()
        except OSError:
            picture = None
        return replay(record, picture, _decode, self._load, self._clock)

    def _against_journal(self, verdict: Verdict) -> str | None:
        """Why the record is not to be trusted; None when the journal has the same verdict, or none any more."""
        path = self._folder / JOURNAL_FILE
        if not path.exists():
            return None
        made_s = (verdict.id.int >> 80) / 1e3
        around = Filter(
            camera=verdict.camera,
            epoch=verdict.epoch,
            first_sequence=verdict.sequence,
            last_sequence=verdict.sequence,
            since_s=made_s - CLOCK_SLACK_S,
            until_s=made_s + COMMITTED_WITHIN_S,
        )
        for row in export(path, around):
            if row.message.id == verdict.id:
                kept = wire.decode(Verdict, row.message.payload)
                # The rest, a part id say, may have come after the record was made.
                same = all(getattr(kept, what) == getattr(verdict, what) for what in (*DECIDED, "model"))
                return None if same else "the record was altered: the journal holds another verdict with this id"
        return None

    def _load(self, ref: ModelRef, reference_sha256: str | None) -> LoadedModel:
        known = (ref.sha256, reference_sha256)
        if known not in self._models:
            while len(self._models) >= MODELS:
                self._models.pop(next(iter(self._models)))
            bundle = open_bundle(self._find(ref), f"{ref.name} {ref.version}", self._trust)
            reference = self._reference(reference_sha256) if reference_sha256 is not None else None
            threads = self._settings.model.threads
            self._models[known] = LoadedModel(
                load_model(bundle, threads, reference=reference),
                bundle.manifest,
                reference=reference,
                reference_sha256=reference_sha256,
                machine=machine(threads),
            )
        return self._models[known]

    def _find(self, ref: ModelRef) -> bytes:
        """The bundle file with this hash: in the library, or one that the configuration names, or the shipped one."""
        if ref.sha256 in self._library.index().entries:
            return self._library.read(ref.sha256)
        named = [self._settings.model.bundle, *(camera.bundle for camera in self._cameras())]
        for path in dict.fromkeys([*(one for one in named if one is not None), SHIPPED_BUNDLE]):
            try:
                data = read_file(path)
            except BundleError:
                continue
            if hashlib.sha256(data).hexdigest() == ref.sha256:
                return data
        raise BundleError(
            f"the bundle {ref.name} {ref.version} ({ref.sha256[:12]}) is not kept: neither the library nor a file that "
            "the configuration names has it"
        )

    def _cameras(self) -> Iterator[CameraSettings]:
        """The cameras' tables, as they are and as each product has them."""
        for name, camera in self._settings.camera.items():
            yield camera
            yield from (with_product(camera, product.of(name)) for product in self._settings.product.values())

    def _reference(self, sha256: str) -> Pixels:
        """The picture of a good part with this fingerprint."""
        for camera in self._cameras():
            if camera.reference is None:
                continue
            try:
                pixels = read_reference(camera.reference, View.of(camera))
            except ModelError:
                continue
            if fingerprint(pixels) == sha256:
                return pixels
        raise BundleError("the reference picture that it was compared with is not one that a camera names now")


def _decode(picture: bytes) -> Pixels:
    try:
        pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as exc:
        raise ValueError(f"the picture cannot be decoded: {exc.err}") from exc
    if pixels is None:
        raise ValueError("the picture cannot be decoded")
    return np.asarray(pixels, np.uint8)


def _chosen(folder: Path, options: argparse.Namespace) -> list[Path]:
    """The records that are asked for, oldest first."""
    if not options.all:
        return [_record_of(folder, options.verdict)]
    wanted = _records(folder, options.camera)
    if options.last is not None:
        return sorted(heapq.nlargest(options.last, wanted, key=lambda path: path.stem), key=lambda path: path.stem)
    return sorted(wanted, key=lambda path: path.stem)


def _record_of(folder: Path, verdict: UUID) -> Path:
    day = Path(Kept(verdict, "c", BY_VALUE[0], 0).folder).parts[1]
    for suffix in ("json", "missing"):
        for path in (folder / FOLDER / day).glob(f"*/*/{verdict}.{suffix}"):
            return path
    raise StorageError(f"verdict {verdict}: no picture of it is kept, or it was deleted to keep the bounds")


def _records(folder: Path, camera: str | None) -> Iterator[Path]:
    for path in (folder / FOLDER).glob(f"*/{camera or '*'}/*/*"):
        name = FILE.fullmatch(path.name)
        if name is not None and name["suffix"] in ("json", "missing"):
            yield path


def _document(path: Path, found: Replayed) -> dict[str, Any]:
    def decided(verdict: Verdict | None) -> dict[str, Any] | None:
        keys = {"outcome", "reasons", "defects", "score", "threshold", "model"}
        return verdict.model_dump(mode="json", include=keys) if verdict is not None else None

    return {
        "verdict": path.stem,
        "finding": found.finding.value,
        "reasons": list(found.reasons),
        "stored": decided(found.stored),
        "again": decided(found.again),
    }


def _text(path: Path, found: Replayed) -> str:
    stored = found.stored
    what = f"verdict {path.stem}"
    if stored is not None:
        score = "" if stored.score is None else f", score {stored.score!r} of {stored.threshold!r}"
        model = "" if stored.model is None else f", by {stored.model.name} {stored.model.version}"
        what += f": {stored.outcome.value}{score}{model}"
    match found.finding:
        case Finding.SAME:
            return f"{what}\nsame: outcome, defects and scores, bit for bit"
        case Finding.NOT_JUDGED:
            return f"{what}\nnot judged: {'; '.join(found.reasons)}"
        case _:
            return "\n".join([what, *(f"{found.finding.value}: {reason}" for reason in found.reasons)])


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no verdict's id") from None

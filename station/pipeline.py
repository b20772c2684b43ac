"""The journey of a frame, readable top to bottom. Synchronous; knows no thread, no disk and no broker."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import numpy as np

from station.calibrated import CameraCalibration, with_areas
from station.calibration import PlaneMap, WebMap
from station.control import ThresholdChange
from station.errors import InferenceError
from station.ids import uuid7
from station.judge import INCOMPLETE, Judgement, above_threshold, judge, stricter, unjudged
from station.judged_with import JudgedWith, SeamState
from station.linescan import SeamOwner
from station.manifest import Manifest, Thresholds
from station.messages import (
    Capture,
    Changeover,
    Defect,
    Frame,
    Latency,
    ModelRef,
    Override,
    Pixels,
    ProcessState,
    Reason,
    Scores,
    Verdict,
)
from station.ports import Clock, Model
from station.quality import QualityGate
from station.recipe import NO_RECIPE, Recipe
from station.settings import BaseCamera, ModelSettings

logger = logging.getLogger(__name__)

MOST_DEFECTS = 250
"""Listed in a verdict, the best first: a model that sees them everywhere must not make a message that is too large."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that has passed its golden set, with the contract it was loaded under.

    Attributes:
        model: the model.
        manifest: its contract.
        command: the command that had it loaded; None: it was loaded at the start.
        reference_sha256: of the pixels that it compares pictures with; None: it compares with none.
        machine: processor, runtime and threads that it computes with.
        reference: those pixels.
    """

    model: Model
    manifest: Manifest
    command: UUID | None = None
    reference_sha256: str | None = None
    machine: str | None = None
    reference: Pixels | None = None

    @property
    def ref(self) -> ModelRef:
        """What verdicts say of it."""
        return self.model.ref

    def plan_for(self, shape: Sequence[int]) -> None:
        """Run once over an empty picture of this shape, before another thread has the model.

        The first picture of a size makes the runtime plan its memory, which may take as long as a picture: not the
        first frame after a changeover. Whether the model fits the frames is for the frames to show.
        """
        with suppress(InferenceError):
            self.model.infer(np.zeros(tuple(shape), np.uint8))


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What a camera's frames are judged with; a changeover puts another one in its place.

    Attributes:
        loaded: the model; None: there is none, every frame is `unknown`.
        recipe: of the product.
        changeover: how the line came to this product; None: it was so from the start.
        without: a threshold set by command that ended with the former product.
        controls: of the camera, that the product needs; None: those of the camera's table.
    """

    loaded: LoadedModel | None = None
    recipe: Recipe = NO_RECIPE
    changeover: Changeover | None = None
    without: ThresholdChange | None = None
    controls: Mapping[str, float] | None = None


class Inspector:
    """Judges the frames of one camera, in order.

    Args:
        station: the station's name.
        camera: the camera's name.
        epoch: number of this run of the station.
        settings: the camera's settings.
        model_settings: thresholds from the configuration override the bundle's.
        clock: times the stages.
        process_at: says where the process groups stood at a moment.
        calibration: the camera's; None: it has none.
    """

    def __init__(
        self,
        station: str,
        camera: str,
        epoch: int,
        settings: BaseCamera,
        model_settings: ModelSettings,
        clock: Clock,
        process_at: Callable[[datetime], Mapping[str, ProcessState]] = lambda _: {},
        calibration: CameraCalibration | None = None,
    ) -> None:
        self._station = station
        self._camera = camera
        self._epoch = epoch
        self._settings = settings
        self._model_settings = model_settings
        self._clock = clock
        self._process_at = process_at
        self._transport = timedelta(seconds=settings.transport_delay_s)
        self._seams = SeamOwner()
        self._gate: QualityGate | None = None
        self._loaded: LoadedModel | None = None
        self._recipe = NO_RECIPE
        self._changeover: Changeover | None = None
        self._told_changeover: Changeover | None = None
        self._told_outside: str | None = None
        self._thresholds: Thresholds | None = None
        self._change: ThresholdChange | None = None
        self._judged: tuple[Reason | None, Thresholds | None, SeamState | None, tuple[Reason, ...]] | None = None
        self._calibration = calibration
        self._scale: PlaneMap | WebMap | None = None
        self._beside: tuple[Reason, ...] = ()
        self._follow_calibration()

    def use(self, setup: Setup) -> None:
        """Judge with this from the next frame on."""
        if setup.changeover is not None and setup.changeover is not self._told_changeover:
            self._told_changeover = self._changeover = setup.changeover
        calibration, controls = self._calibration, setup.controls
        if calibration is not None and controls is not None and calibration.take_controls(controls):
            self._follow_calibration()
        loaded, recipe = setup.loaded, setup.recipe
        if loaded is self._loaded and recipe is self._recipe:
            return
        self._loaded, self._recipe = loaded, recipe
        self._gate = QualityGate(loaded.manifest.quality, self._settings.frozen_after) if loaded else None
        self._thresholds = self._choose_thresholds(loaded) if loaded else None
        self._follow_calibration()

    @property
    def calibration_problem(self) -> str | None:
        """What of the camera's calibration does not fit, in one line; None: all is well, or there is none."""
        return self._calibration.problem if self._calibration is not None else None

    @property
    def has_scale(self) -> bool:
        """Whether defects have an area in mm² now."""
        return self._scale is not None

    def look_at_camera(self) -> None:
        """The camera was opened: see whether the calibration fits the one that hangs there now."""
        if self._calibration is not None and self._calibration.look():
            self._follow_calibration()

    def correct(self, frame: Frame) -> Frame:
        """The frame with its picture corrected by the camera's flat field; its pixels hold until the next call."""
        pixels = frame.capture.pixels
        if self._calibration is None or pixels is None:
            return frame
        began_s = self._clock.monotonic_s()
        if self._calibration.see(frame.capture):
            self._follow_calibration()
        corrected = self._calibration.correct(pixels)
        if corrected is pixels:
            return frame
        spent_ms = (self._clock.monotonic_s() - began_s) * 1e3
        return replace(frame, capture=replace(frame.capture, pixels=corrected, correction_ms=spent_ms))

    def _follow_calibration(self) -> None:
        calibration = self._calibration
        if calibration is None:
            return
        self._scale = calibration.scale
        silenced = calibration.problem is not None and self._settings.uncalibrated == "unknown"
        self._beside = (Reason.UNCALIBRATED,) if silenced else ()
        if self._gate is not None and self._loaded is not None:
            self._gate.hold_to(calibration.limits(self._loaded.manifest.quality), calibration.framing)

    def obey(self, change: ThresholdChange | None) -> None:
        """Judge with the threshold that a command has set from the next frame on; None: with one's own again."""
        if change is self._change:
            return
        self._change = change
        self._thresholds = self._choose_thresholds(self._loaded) if self._loaded else None

    def inspect(self, frame: Frame) -> Verdict:
        """Judge one frame as it comes out of `correct`: quality, scores, ownership, thresholds.

        A fault of one frame gives an `unknown` verdict with its reason; nothing is raised for a picture.
        """
        taken_s = self._clock.monotonic_s()
        verdict_id = uuid7(int(self._clock.now().timestamp() * 1e3))
        stages = _Stages()
        process = self._process_at(frame.capture.captured_at - self._transport)
        thresholds, groups = self._thresholds_now(process)
        seams = self._seams.state if frame.capture.owned_rows is not None else None
        judgement = self._judge(frame.capture, thresholds, stages, verdict_id)
        beside = tuple(one for one in judgement.reasons if one in (Reason.MISPLACED, Reason.UNCALIBRATED))
        self._judged = (frame.capture.fault, thresholds, seams, beside)
        done_s = self._clock.monotonic_s()
        captured_s = frame.capture.captured_monotonic_s
        changeover, self._changeover = self._changeover, None
        total_ms = (done_s - captured_s) * 1e3
        spent_ms = stages.quality_ms + stages.preprocess_ms + stages.inference_ms
        return Verdict(
            id=verdict_id,
            station=self._station,
            camera=self._camera,
            epoch=self._epoch,
            sequence=frame.sequence,
            outcome=judgement.outcome,
            reasons=judgement.reasons,
            defects=judgement.defects[:MOST_DEFECTS],
            score=judgement.score,
            threshold=judgement.threshold,
            model=self._loaded.ref if self._loaded else None,
            captured_at=frame.capture.captured_at,
            source=frame.capture.source,
            first_line=frame.capture.first_line,
            owned_rows=frame.capture.owned_rows,
            lines_lost=frame.capture.lines_lost,
            latency_ms=Latency(
                queue=_ms(taken_s - captured_s - frame.capture.correction_ms / 1e3),
                correction=round(frame.capture.correction_ms, 3),
                quality=round(stages.quality_ms, 3),
                preprocess=round(stages.preprocess_ms, 3),
                inference=round(stages.inference_ms, 3),
                judge=round(max(0.0, (done_s - taken_s) * 1e3 - spent_ms), 3),
                total=round(max(0.0, total_ms), 3),
            ),
            late=total_ms > self._settings.late_after_ms,
            override=self._overrides() + tuple(Override(what="threshold", group=group) for group in groups),
            process=process,
            product=self._recipe.product,
            changeover=changeover,
            allowed=judgement.allowed[:MOST_DEFECTS],
            unlisted=sum(max(0, len(one) - MOST_DEFECTS) for one in (judgement.defects, judgement.allowed)),
        )

    def judged_with(self) -> JudgedWith:
        """What decided the last verdict besides its picture and its bundle.

        Raises:
            ValueError: nothing was inspected yet.
        """
        if self._judged is None:
            raise ValueError("nothing was inspected yet")
        fault, thresholds, seams, beside = self._judged
        return JudgedWith(
            thresholds=thresholds,
            quality=self._gate.limits if self._gate is not None else None,
            frozen_after=self._settings.frozen_after,
            repeats=self._gate.repeats if self._gate is not None else 1,
            fault=fault,
            seams=seams,
            beside=beside,
            scale=self._scale,
            reference_sha256=self._loaded.reference_sha256 if self._loaded is not None else None,
            product=self._recipe.model_dump(mode="json", exclude_defaults=True) or None,
            machine=self._loaded.machine if self._loaded is not None else None,
        )

    def inspect_again(self, frame: Frame, judged: JudgedWith) -> Verdict:
        """Judge one frame with what decided it the first time, instead of the settings; the bundle is that of `use`.

        Raises:
            ValueError: what is noted of the product cannot be read.
        """
        self._recipe = Recipe.model_validate_json(json.dumps(judged.product or {}))
        self._thresholds = judged.thresholds
        if judged.quality is not None and self._loaded is not None:
            self._gate = QualityGate(judged.quality, judged.frozen_after)
            if frame.capture.pixels is not None:
                self._gate.expect(frame.capture.pixels, judged.repeats)
        self._seams.state = judged.seams or SeamState()
        self._scale, self._beside = judged.scale, judged.beside
        return self.inspect(frame)

    def _thresholds_now(self, process: Mapping[str, ProcessState]) -> tuple[Thresholds | None, Sequence[str]]:
        """The thresholds to judge with, and the groups in alarm for whose sake they are stricter than otherwise."""
        own, limit = self._thresholds, self._settings.threshold_in_alarm
        groups = [group for group, state in process.items() if state.alarms]
        if own is None or limit is None or not groups:
            return own, ()
        strict = stricter(own, limit)
        return (strict, groups) if strict != own else (own, ())

    def _overrides(self) -> tuple[Override, ...]:
        overrides = []
        if self._change is not None:
            overrides.append(Override(what="threshold", command=self._change.command))
        if self._loaded is not None and self._loaded.command is not None:
            overrides.append(Override(what="bundle", command=self._loaded.command))
        return tuple(overrides)

    def _judge(self, capture: Capture, thresholds: Thresholds | None, stages: "_Stages", verdict_id: UUID) -> Judgement:
        if capture.fault is not None and capture.fault not in INCOMPLETE:
            return unjudged(capture.fault)
        if capture.pixels is None:
            return unjudged(Reason.UNREADABLE)
        if self._loaded is None or self._gate is None or thresholds is None:
            return unjudged(Reason.MODEL_FAULT)
        started_s = self._clock.monotonic_s()
        quality = tuple(dict.fromkeys((*self._gate.check(capture), *self._beside)))
        stages.quality_ms = (self._clock.monotonic_s() - started_s) * 1e3
        if any(reason not in INCOMPLETE for reason in quality):
            return unjudged(*quality)
        if outside := self._recipe.outside(capture.pixels.shape[1], capture.pixels.shape[0]):
            self._tell_outside(outside)
            return unjudged(Reason.WRONG_SIZE)
        try:
            scores = self._loaded.model.infer(capture.pixels)
        except InferenceError as exc:
            logger.error(
                "camera %s: a frame could not be judged: %s",
                self._camera,
                exc,
                extra={"camera": self._camera, "verdict": verdict_id},
            )
            return unjudged(Reason.MODEL_FAULT)
        stages.preprocess_ms, stages.inference_ms = scores.preprocess_ms, scores.inference_ms
        scores = self._looked_at(scores)
        defects = self._own(capture, above_threshold(scores, thresholds))
        if self._scale is not None:
            defects = with_areas(capture.pixels, defects, self._scale, self._loaded.reference)
        counting, allowed = self._recipe.let_pass(defects)
        return replace(judge(scores, counting, thresholds, quality), allowed=allowed)

    def _looked_at(self, scores: Scores) -> Scores:
        """The candidates that stand where the product is looked at."""
        kept = tuple(one for one in scores.candidates if self._recipe.looks_at(one.box))
        if len(kept) == len(scores.candidates):
            return scores
        return replace(scores, candidates=kept, score=max((one.score for one in kept), default=0.0))

    def _tell_outside(self, outside: str) -> None:
        if outside != self._told_outside:
            logger.error("camera %s: %s", self._camera, outside, extra={"camera": self._camera})
            self._told_outside = outside

    def _own(self, capture: Capture, defects: tuple[Defect, ...]) -> tuple[Defect, ...]:
        """The defects that this frame reports, out of all that stand in its picture."""
        if capture.first_line is None or capture.owned_rows is None:
            return defects
        return self._seams.claim(capture.first_line, capture.owned_rows, defects)

    def _choose_thresholds(self, loaded: LoadedModel) -> Thresholds:
        own = loaded.manifest.thresholds
        threshold = self._model_settings.threshold if self._change is None else self._change.threshold
        if threshold is not None:
            # The band in which the bundle is not sure is its own: a bundle without a good class must never say ok.
            own = Thresholds(
                default=threshold,
                unsure_from=own.unsure_from,
                chosen_on="configuration" if self._change is None else "command",
            )
        return own if self._change is not None else self._recipe.thresholds_over(own)


@dataclass(slots=True)
class _Stages:
    quality_ms: float = 0.0
    preprocess_ms: float = 0.0
    inference_ms: float = 0.0


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds * 1e3), 3)

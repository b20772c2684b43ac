"""A camera's line while the station runs: takes its frames, has them judged, and hands the verdicts on.

One thread of the station calls `step` again and again; what others ask of a camera reaches it through `CameraControl`
and `use`. A frame passes two places: `_verdict_of`, where it is judged, and `_hand_over`, from which on the verdict
counts and is on its way.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from station import wire
from station.accounting import FrameAccount
from station.bundle_desk import Places
from station.calibrated import CameraCalibration
from station.control import CameraControl, Pause, fulfil
from station.faults import FaultBoard
from station.ids import uuid7
from station.messages import (
    CameraEvent,
    CameraHealth,
    CameraState,
    CameraStateName,
    Frame,
    Gap,
    Outgoing,
    Reason,
    SkipReason,
    Verdict,
)
from station.part_ids import PartIds
from station.pipeline import Inspector, LoadedModel, Setup
from station.ports import Clock, EvidenceStore, FrameSource, Publisher
from station.progress import CameraProgress
from station.recipe import Recipe
from station.reject_line import RejectLines
from station.settings import CameraSettings
from station.succession import Succession

LATENCY_WINDOW = 6_000
"""Newest latencies behind the percentiles in `health`: a minute at a hundred frames a second."""
OUT_OF_ORDER_S = 1.0
"""By so much a frame may have been captured before the one in front of it: a stream's times of capture are estimated.
What held earlier is let go of, since each model that was loaded anew takes ten and more megabytes."""


@dataclass(frozen=True, slots=True)
class BundleKey:
    """What a camera's model is made of: products that share it share the model.

    Attributes:
        places: where its bundle is looked for.
        reference: the picture that it compares with.
    """

    places: Places
    reference: Path | None


@dataclass(frozen=True, slots=True)
class CameraProduct:
    """How a camera judges one product.

    Attributes:
        recipe: which defects count.
        bundle: what its model is made of.
        load: loads it through the golden set; raises ModelError.
        try_out: loads it in another process, to see what it does; raises ModelError.
        controls: of the camera, that it needs; empty: it has none to set.
    """

    recipe: Recipe
    bundle: BundleKey
    load: Callable[[], LoadedModel]
    try_out: Callable[[], None]
    controls: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CameraPart:
    """One camera as the composition hands it over.

    Attributes:
        settings: its settings.
        source: the camera's process.
        products: how it judges each product; without products, None is the only one.
        cpu: run the inference thread on this processor only; None: anywhere.
        calibration: reads what `station calibrate` wrote for the camera; None: it has none.
        silence_s: a running camera that delivers nothing for this long is at fault; None: silence is no fault.
        waits: the source waits for whoever takes its frames and loses nothing, as a folder of files does.
        part_ids: gives the verdicts their part ids; None: the parts have none.
    """

    settings: CameraSettings
    source: FrameSource
    products: Mapping[str | None, CameraProduct]
    cpu: int | None = None
    silence_s: float | None = None
    waits: bool = False
    part_ids: PartIds | None = None
    calibration: Callable[[], CameraCalibration] | None = None


@dataclass(slots=True)
class _Paused:
    """A pause that holds, and what went by in it."""

    told: Pause
    began: datetime
    beneath: CameraEvent
    frames: int = 0
    first_sequence: int | None = None
    last_sequence: int | None = None

    def passed_by(self, sequence: int) -> None:
        self.frames += 1
        self.first_sequence = self.first_sequence or sequence
        self.last_sequence = sequence


class CameraLine:
    """A camera while the station runs. `finish` and `step` belong to its own thread; the rest may be called by any.

    Args:
        station: the station's name.
        name: the camera's name.
        epoch: number of this run of the station.
        part: the camera as the composition handed it over; its source is entered by whoever calls `step`.
        inspector: judges its frames.
        record: takes what is to be journalled and published; may wait.
        publisher: for the camera's retained state.
        evidence: keeps pictures; None: none are kept.
        judged: told of each verdict that is on its way.
        rejects: told of each part when its frame is taken, and at once when it is judged.
        faults: told of a camera that delivers nothing.
        clock: time.
    """

    def __init__(
        self,
        *,
        station: str,
        name: str,
        epoch: int,
        part: CameraPart,
        inspector: Inspector,
        record: Callable[[Outgoing], object],
        publisher: Publisher,
        evidence: EvidenceStore | None,
        judged: Callable[[Verdict], object],
        rejects: RejectLines,
        faults: FaultBoard,
        clock: Clock,
    ) -> None:
        self.name = name
        self.part = part
        self._ids = part.part_ids
        self.control = CameraControl()
        self._station = station
        self._epoch = epoch
        self._inspector = inspector
        self._record = record
        self._publisher = publisher
        self._evidence = evidence
        self._judged = judged
        self._rejects = rejects
        self._faults = faults
        self._clock = clock
        self._succession: Succession[Setup] = Succession(Setup())
        self._lock = threading.Lock()
        self._account = FrameAccount()
        self._last_sequence = 0
        self._latencies_ms: deque[float] = deque(maxlen=LATENCY_WINDOW)
        self._state = CameraStateName.STARTING
        self._since: datetime | None = None
        self._reason: str | None = None
        self._turns = 0
        self._taken = 0
        self._settled = 0
        self._pause: _Paused | None = None
        self._failing: tuple[str, int] = ("", 0)
        self._shape: tuple[int, ...] | None = None
        self._tell_calibration()

    @property
    def setup(self) -> Setup:
        """What judges what is captured now; during a changeover the former one."""
        with self._lock:
            return self._succession.newest.thing

    @property
    def failing(self) -> tuple[str, int]:
        """The sha256 of the bundle whose model failed on the newest frame that it saw, and on how many in a row."""
        return self._failing

    def prepare(self, loaded: LoadedModel) -> None:
        """Have a model that nobody else uses yet ready for the pictures that are judged here, if one was seen."""
        if self._shape is not None:
            loaded.plan_for(self._shape)

    @property
    def settled(self) -> int:
        """Frames that were judged, though their verdicts may wait for their part ids, or skipped."""
        return self._settled

    def use(self, setup: Setup) -> None:
        """Judge with another form of what judges now from the next frame on."""
        with self._lock:
            self._succession.replace(setup)

    def begin_changeover(self) -> None:
        """What is captured from now on is `unknown` (changeover)."""
        # The time is taken under the lock: what was looked up before was captured before.
        with self._lock:
            self._succession.begin(self._clock.monotonic_s())

    def complete_changeover(self, setup: Setup) -> None:
        """What is captured from now on is judged with this, and no longer by a threshold set for the former product."""
        with self._lock:
            self._succession.complete(self._clock.monotonic_s(), replace(setup, without=self.control.threshold))

    def abandon_changeover(self) -> None:
        """What is captured from now on is judged as before."""
        with self._lock:
            self._succession.abandon(self._clock.monotonic_s())

    def progress(self) -> CameraProgress:
        """The counters that show whether this camera's thread does its work."""
        return CameraProgress(self.name, self._turns, self._taken, self._settled, self._state, self.part.silence_s)

    def health(self) -> CameraHealth:
        """The camera's figures now."""
        with self._lock:
            depth = self.part.source.depth()
            account = self._account.snapshot(depth)
            last_sequence = self._last_sequence
        return CameraHealth(
            state=self._state,
            account=account,
            epoch=self._epoch,
            last_sequence=last_sequence,
            queue_depth=depth,
            part_ids=self._ids.health if self._ids is not None else None,
        )

    def latencies_ms(self) -> list[float]:
        """The newest latencies from the exposure to the verdict, `LATENCY_WINDOW` at most."""
        with self._lock:
            return list(self._latencies_ms)

    # The camera's own thread

    def finish(self) -> None:
        """Stop capturing; what was captured comes out of `step` before it says that the source has stopped."""
        self.control.resume()
        self.part.source.finish()

    def step(self, timeout_s: float, rest: Callable[[float], object]) -> bool:
        """Take what the source delivers next, if anything does within `timeout_s`.

        Args:
            timeout_s: how long to wait for it.
            rest: waits that long in the place of a source that a pause holds back.

        Returns:
            False when the source has stopped and delivered everything.
        """
        self._turns += 1
        self._follow_pause()
        if self._ids is not None:
            timeout_s = self._ids.wait_s(timeout_s)
        item: Frame | CameraEvent | None = None
        if self._pause is not None and self.part.waits:
            rest(timeout_s)
        else:
            item = self.part.source.read(timeout_s)
        if isinstance(item, Frame):
            self._inspect(item)
        elif isinstance(item, CameraEvent):
            self._camera_changed(item)
            if item.state is CameraStateName.STOPPED:
                self._hand_over(self._ids.rest() if self._ids is not None else ())
                return False
        if self._ids is not None:
            self._hand_over(self._ids.ready(idle=item is None))
        return True

    def _inspect(self, frame: Frame) -> None:
        self._taken += 1
        with self._lock:
            self._account.captured(frame.capture)
            self._last_sequence = frame.sequence
        # A part whose verdict does not come in time is thrown out all the same: its moment must be known before.
        self._rejects.expect(self.name, frame.sequence, frame.capture.captured_monotonic_s)
        try:
            skipped = frame.capture.skipped
            if skipped is None and self._pause is not None:
                self._pause.passed_by(frame.sequence)
                skipped = SkipReason.PAUSED
            if skipped is not None:
                self._rejects.decide(self.name, frame.sequence, "skipped")
                with self._lock:
                    self._account.skipped(skipped)
                self._settled += 1
                if self._ids is not None:
                    self._ids.passed_over(frame.capture)
                return
            verdict = self._verdict_of(frame)
            found = self._ids.look(frame.capture) if self._ids is not None else None
        finally:
            frame.release()
        if self._ids is None:
            self._hand_over([verdict])
        else:
            self._ids.take(verdict, frame.capture, found)
        self._settled += 1

    def _verdict_of(self, frame: Frame) -> Verdict:
        """Judge a frame by what held when it was captured, and keep its picture where one is wanted."""
        with self._lock:
            held = self._succession.at(frame.capture.captured_monotonic_s)
            self._succession.forget(frame.capture.captured_monotonic_s - OUT_OF_ORDER_S)
        if held.between:
            frame = replace(frame, capture=replace(frame.capture, fault=Reason.CHANGEOVER))
        change = self.control.threshold
        self._inspector.use(held.thing)
        self._inspector.obey(None if change is held.thing.without else change)
        frame = self._inspector.correct(frame)
        if frame.capture.pixels is not None:
            self._shape = frame.capture.pixels.shape
        self._tell_calibration()
        verdict = self._inspector.inspect(frame)
        # In front of whatever a verdict may wait for: picture, part id, disk.
        self._rejects.decide(self.name, frame.sequence, verdict.outcome.value)
        self._note_failure(verdict)
        if self._evidence is not None:
            orders = self.control.take_orders() if frame.capture.pixels is not None else ()
            judged_with = self._inspector.judged_with
            verdict = self._evidence.keep(verdict, frame.capture.pixels, wanted=bool(orders), judged_with=judged_with)
            fulfil(orders, verdict)
        return verdict

    def _tell_calibration(self) -> None:
        self._faults.set(f"calibration {self.name}", self._inspector.calibration_problem)
        lacks = None if self._inspector.has_scale else self.setup.recipe.without_scale(self.name)
        self._faults.set(f"product rules {self.name}", lacks)

    def _hand_over(self, verdicts: Sequence[Verdict]) -> None:
        """Put verdicts on their way and into the account; nothing changes them any more."""
        for verdict in verdicts:
            self._record(wire.outgoing(verdict))
            with self._lock:
                self._account.judged(verdict.outcome)
                self._latencies_ms.append(verdict.latency_ms.total)
            self._judged(verdict)

    def _note_failure(self, verdict: Verdict) -> None:
        """Count the frames on which the model failed; one that it did not see, a dark one say, counts for nothing."""
        if verdict.model is None:
            return
        sha256 = verdict.model.sha256
        if Reason.MODEL_FAULT in verdict.reasons:
            known, count = self._failing
            self._failing = (sha256, count + 1 if known == sha256 else 1)
        elif verdict.score is not None:
            self._failing = (sha256, 0)

    def _follow_pause(self) -> None:
        """Begin and end a pause; what went by in it is declared at its end."""
        told = self.control.paused(self._clock.monotonic_s())
        pause = self._pause
        if told is (pause.told if pause is not None else None):
            return
        now = self._clock.now()
        if told is not None:
            if pause is None:
                beneath = CameraEvent(self.name, self._state, self._since or now, self._reason)
                self._pause = _Paused(told, now, beneath)
            else:
                self._pause = replace(pause, told=told)
            why = f": {told.reason}" if told.reason else ""
            reason = f"by command until {told.until.isoformat(timespec='seconds')}{why}"
            self._show_state(CameraEvent(self.name, CameraStateName.PAUSED, self._pause.began, reason))
            return
        assert pause is not None
        self._pause = None
        self._show_state(replace(pause.beneath, at=now))
        if pause.frames:
            gap = Gap(
                id=uuid7(int(now.timestamp() * 1e3)),
                station=self._station,
                camera=self.name,
                what="frames",
                count=pause.frames,
                began=pause.began,
                ended=now,
                epoch=self._epoch,
                first_sequence=pause.first_sequence,
                last_sequence=pause.last_sequence,
                why="paused",
            )
            self._record(wire.outgoing_gap(gap))

    def _show_state(self, event: CameraEvent) -> None:
        self._state, self._since, self._reason = event.state, event.at, event.reason
        state = CameraState(
            station=self._station, camera=self.name, state=event.state, since=event.at, reason=event.reason
        )
        self._publisher.retain(wire.camera_state_topic(self._station, self.name), wire.encode(state))

    def _camera_changed(self, event: CameraEvent) -> None:
        if self._pause is not None:
            self._pause.beneath = event
        else:
            self._show_state(event)
        what = f"camera {self.name}"
        if event.state is CameraStateName.STALLED:
            self._faults.set(what, event.reason or "delivers nothing")
        elif event.state in (CameraStateName.RUNNING, CameraStateName.FINISHED):
            self._faults.set(what, None)
            self._inspector.look_at_camera()
            self._tell_calibration()
        if event.missed_since is not None:
            gap = Gap(
                id=uuid7(int(event.at.timestamp() * 1e3)),
                station=self._station,
                camera=self.name,
                what="frames",
                count=None,
                began=event.missed_since,
                ended=event.at,
                epoch=self._epoch,
                why="camera_stalled",
            )
            self._record(wire.outgoing_gap(gap))

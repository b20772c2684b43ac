"""What the stages hand each other, and what the station publishes.

Two kinds. *In-process* messages (`Capture`, `Frame`, `Scores`, …) are frozen dataclasses and may hold pixels.
*Published* messages (`Verdict`, `Health`, …) are frozen pydantic models: their JSON form is the wire format and their
JSON Schema is printed by ``station schema``. Wall times are UTC; monotonic times come from CLOCK_MONOTONIC, which all
processes of one machine share. Units stand in the names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, JsonValue

SCHEMA_VERSION = 1

Pixels = npt.NDArray[np.uint8]
"""`[height, width]` grey or `[height, width, 3]` BGR; row 0 is the line scanned first."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
"""A station's, camera's or group's name: it becomes an MQTT topic level and a file name."""


class Outcome(StrEnum):
    """What the station says of one frame."""

    OK = "ok"
    NG = "ng"
    UNKNOWN = "unknown"


class Reason(StrEnum):
    """Why an outcome is not `ok`."""

    DEFECT = "defect"
    DARK = "dark"
    BRIGHT = "bright"
    BLURRED = "blurred"
    FROZEN = "frozen"
    PARTIAL = "partial"
    LINES_LOST = "lines_lost"
    OVERLOAD = "overload"
    UNREADABLE = "unreadable"
    WRONG_SIZE = "wrong_size"
    MODEL_FAULT = "model_fault"
    CAMERA_FAULT = "camera_fault"
    UNSURE = "unsure"
    MISPLACED = "misplaced"
    UNCALIBRATED = "uncalibrated"
    CHANGEOVER = "changeover"
    PART_ID = "part_id"


class PartIdState(StrEnum):
    """How it stands with a frame's part id. Only `joined` and `doubled` have one."""

    JOINED = "joined"
    DOUBLED = "doubled"
    MISSING = "missing"
    AMBIGUOUS = "ambiguous"
    UNREADABLE = "unreadable"
    SOURCE_FAULT = "source_fault"
    NOT_AWAITED = "not_awaited"


class SkipReason(StrEnum):
    """Why a captured frame got no verdict. Only a camera with the policy `latest`, a rate limit or a pause skips
    frames."""

    SUPERSEDED = "superseded"
    RATE_LIMIT = "rate_limit"
    PAUSED = "paused"


class CameraStateName(StrEnum):
    """Where a camera stands."""

    STARTING = "starting"
    RUNNING = "running"
    STALLED = "stalled"
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped"


class SourceStateName(StrEnum):
    """Where a source of readings stands."""

    CONNECTING = "connecting"
    RUNNING = "running"
    DOWN = "down"
    FINISHED = "finished"


class ProcessStateName(StrEnum):
    """Where a process group stands. Only `normal` is an all-clear."""

    NOT_READY = "not_ready"
    NORMAL = "normal"
    ALARM = "alarm"
    SENSOR_FAULT = "sensor_fault"
    MODEL_FAULT = "model_fault"


class Verb(StrEnum):
    """What the station can be asked to do over MQTT."""

    REPLAY = "replay"
    PAUSE = "pause"
    RESUME = "resume"
    SNAPSHOT = "snapshot"
    SET_THRESHOLD = "set-threshold"
    RELOAD_BUNDLE = "reload-bundle"
    CHANGE_PRODUCT = "change-product"
    INSTALL_BUNDLE = "install-bundle"
    ACTIVATE_BUNDLE = "activate-bundle"
    ROLLBACK_BUNDLE = "rollback-bundle"
    ACKNOWLEDGE = "acknowledge"
    SHELVE = "shelve"
    RESET = "reset"
    REMOVE_FROM_SERVICE = "remove-from-service"
    RETURN_TO_SERVICE = "return-to-service"
    SUPPRESS = "suppress"
    UNSUPPRESS = "unsuppress"


class Origin(StrEnum):
    """How a command reached the station."""

    MQTT = "mqtt"
    LOCAL = "local"
    STATION = "station"
    PLANT = "plant"


class EvidenceClass(StrEnum):
    """What a stored picture is evidence of, in growing value."""

    OK = "ok"
    BORDERLINE = "borderline"
    UNKNOWN = "unknown"
    NG = "ng"


class EvidenceDrop(StrEnum):
    """Why a wanted picture was not taken; its verdict then holds no reference."""

    OVERLOAD = "overload"
    BUDGET = "budget"
    FAULT = "fault"


class StatusName(StrEnum):
    """Where the station stands. A consumer that sees `offline` sees the last will or an orderly stop."""

    ONLINE = "online"
    DEGRADED = "degraded"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class Slice:
    """A block of consecutive lines from a line-scan camera.

    Attributes:
        pixels: `[lines, width]`, at least one line.
        first_line: number of the first line since the camera was opened; a jump means lost lines.
        captured_at: wall time at which the last line was exposed.
        captured_monotonic_s: the same moment on the monotonic clock.
        partial: the belt stopped and the driver gave the block up before it was full.
    """

    pixels: Pixels
    first_line: int
    captured_at: datetime
    captured_monotonic_s: float
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Capture:
    """One picture as a camera adapter delivers it, not yet numbered.

    Attributes:
        pixels: the picture, or None when there is none to judge (`fault` then says why).
        captured_at: wall time of the exposure (of the last line, for line-scan frames).
        captured_monotonic_s: the same moment on the monotonic clock.
        source: where it came from: a file's name, a line range; None for a live camera.
        first_line: number of row 0 on the web, for line-scan frames.
        owned_rows: rows `[start, stop)` whose defects this frame reports; None means all.
        lines_lost: lines that are missing from the picture.
        fault: set when the camera itself knows that the picture must not be judged.
        skipped: set when the camera's own rate limit passed this picture over.
        correction_ms: what the flat-field correction of the picture took.
    """

    pixels: Pixels | None
    captured_at: datetime
    captured_monotonic_s: float
    source: str | None = None
    first_line: int | None = None
    owned_rows: tuple[int, int] | None = None
    lines_lost: int = 0
    fault: Reason | None = None
    skipped: SkipReason | None = None
    correction_ms: float = 0.0


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Frame:
    """A capture with its place in the camera's count; the unit of the account.

    Attributes:
        camera: the camera's name.
        sequence: from 1 within the station's run, without gaps; every number is accounted for.
        capture: the picture and its origin.
        release: gives the pixels' memory back to the camera; the pixels must not be touched afterwards.
    """

    camera: str
    sequence: int
    capture: Capture
    release: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True)
class CameraEvent:
    """A camera changed its state.

    Attributes:
        camera: the camera's name.
        state: the new state.
        at: wall time of the change.
        reason: one line for people; None when all is well.
        missed_since: set when frames may have gone by unseen: the time of the last frame before the stall.
    """

    camera: str
    state: CameraStateName
    at: datetime
    reason: str | None = None
    missed_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ordered:
    """The plant calls for a product.

    Attributes:
        what: its name or number, as it was written; None: that cannot be read.
        fault: why not, in one line.
    """

    what: str | None
    fault: str | None = None


@dataclass(slots=True)
class Adjustment:
    """A camera is to take other controls: set by the camera's thread, read by whoever asked.

    Attributes:
        controls: all that are to hold.
        must: they are not refused: the camera delivers nothing until it takes them.
        done: they hold, and were read back.
        refused: why they do not; those before hold again.
    """

    controls: Mapping[str, float]
    must: bool = False
    done: bool = False
    refused: str | None = None


class Message(BaseModel):
    """Base of everything that is published: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Box(Message):
    """An upright box in pixels of the frame; x to the right, y down, origin at the frame's top left corner."""

    x_px: float
    y_px: float
    width_px: float = Field(ge=0)
    height_px: float = Field(ge=0)

    @property
    def centre_px(self) -> tuple[float, float]:
        """Centre as (x, y)."""
        return self.x_px + self.width_px / 2, self.y_px + self.height_px / 2


class Defect(Message):
    """One defect that was found.

    Attributes:
        label: class name from the bundle.
        score: probability in 0..1 as the model gives it.
        box: where it stands.
        area_mm2: its area, if the camera's scale is calibrated.
        area_from: `outline`: the area of the defect itself, see `station.defect_area`; `box`: nothing stands out
            clearly in the box, so that this is the area of the whole box, and the defect's is smaller.
    """

    label: str
    score: float = Field(ge=0, le=1)
    box: Box
    area_mm2: float | None = None
    area_from: Literal["outline", "box"] | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says of one picture.

    Attributes:
        candidates: every detection above the model's floor, best first; thresholds have not been applied.
        score: the largest score anywhere in the picture, in 0..1.
        heatmap: `[rows, columns]` float32 in 0..1, the largest class probability per cell (of a classifier the best
            class's activation); None when not asked for.
        class_scores: of a classifier, the probability of each label of the bundle; of an anomaly model its score.
        preprocess_ms: time from the picture to the input tensor.
        inference_ms: time of the invocation and the decoding.
    """

    candidates: tuple[Defect, ...]
    score: float
    heatmap: npt.NDArray[np.float32] | None = field(default=None, compare=False)
    class_scores: tuple[float, ...] = ()
    preprocess_ms: float = field(default=0.0, compare=False)
    inference_ms: float = field(default=0.0, compare=False)


class ModelRef(Message):
    """Which model judged."""

    name: str
    version: str
    sha256: str


class Latency(Message):
    """Milliseconds that a frame spent on its way to the verdict; `total` is from the exposure to the verdict, and
    `part_id` what reading the part's id or waiting for it took of that;
    `correction` is the flat field's."""

    queue: float
    correction: float = 0.0
    quality: float
    preprocess: float
    inference: float
    judge: float
    part_id: float = 0.0
    total: float


class ProcessState(Message):
    """Where a process group stood when a frame was captured, less the camera's transport delay.

    Attributes:
        state: of the group.
        risk: 0..1; None when there was none to give.
        alarms: the group's alarms whose condition held.
        as_of: the time of the readings that this rests on; None: there were none yet.
        complete: the readings of that moment had come in. What comes later is in the journal; a verdict is not changed.
    """

    state: ProcessStateName
    risk: float | None = None
    alarms: tuple[Name, ...] = ()
    as_of: datetime | None = None
    complete: bool = False


class Override(Message):
    """Something that was changed for as long as its reason holds: by a command, or while a process group is in alarm.

    Attributes:
        what: the threshold, or the bundle.
        command: id of the response that the command got, which is also its id in the journal.
        group: the process group that is in alarm; its alarms stand in the verdict's `process`.
    """

    what: Literal["threshold", "bundle"]
    command: UUID | None = None
    group: Name | None = None


class Changeover(Message):
    """The line changed over to another product.

    Attributes:
        former: product that ran before.
        command: id of the response that the order got, which is also its id in the journal.
        by: who ordered it, as far as they said.
    """

    former: Name
    command: UUID
    by: str | None = None


class Verdict(Message):
    """What the station says of one frame; exactly one for each frame that is not skipped.

    Attributes:
        id: UUIDv7; a consumer drops what it has seen.
        epoch: new at each start of the station, growing.
        sequence: the frame's number within the epoch, from 1; gaps and order show by (epoch, sequence).
        part_id: the part's own number where one is known.
        part_id_state: whether it is, and why not; None: this camera's parts have no ids.
        score: the largest score that counted, 0..1; None when nothing was judged.
        threshold: the threshold that score was compared with.
        source: file name, or the range of lines of a line-scan frame.
        first_line: number of the frame's first line on the web (line-scan only).
        owned_rows: rows `[start, stop)` whose defects this frame reports (line-scan only).
        lines_lost: lines missing from the frame.
        late: the verdict came later than the camera's `late_after_ms`.
        durable: the verdict was on disk before it was published.
        evidence: path of the stored picture, relative to the station's data folder; None: none was taken.
        process: group → where it stood when the frame was captured.
        override: what was changed by command and holds for this verdict.
        product: that the line made; of a frame captured during a changeover the former one. None: none is configured.
        changeover: set in a camera's first verdict under a product that the line was changed over to.
        allowed: defects that a rule of the product lets pass; they do not count.
        unlisted: defects and allowed ones that were found besides those that are listed.
    """

    schema_version: Literal[1] = 1
    id: UUID
    station: Name
    camera: Name
    epoch: int
    sequence: int = Field(ge=1)
    part_id: str | None = None
    part_id_state: PartIdState | None = None
    outcome: Outcome
    reasons: tuple[Reason, ...] = ()
    defects: tuple[Defect, ...] = ()
    score: float | None = None
    threshold: float | None = None
    model: ModelRef | None = None
    captured_at: datetime
    source: str | None = None
    first_line: int | None = None
    owned_rows: tuple[int, int] | None = None
    lines_lost: int = 0
    latency_ms: Latency
    late: bool = False
    durable: bool = True
    evidence: str | None = None
    process: Mapping[Name, ProcessState] = Field(default_factory=dict)
    override: tuple[Override, ...] = ()
    product: Name | None = None
    changeover: Changeover | None = None
    allowed: tuple[Defect, ...] = ()
    unlisted: int = 0


class CameraState(Message):
    """Retained on `camera/<camera>/state`."""

    schema_version: Literal[1] = 1
    station: Name
    camera: Name
    state: CameraStateName
    since: datetime
    reason: str | None = None


class Fault(Message):
    """Something that is wrong now.

    Attributes:
        what: the part concerned: `camera <name>`, `model`, `broker`, `journal`, …
        reason: one line that says what to do.
        since: when it began.
    """

    what: str
    reason: str
    since: datetime


class Status(Message):
    """Retained on `status`; also the last will (then `offline`)."""

    schema_version: Literal[1] = 1
    station: Name
    status: StatusName
    since: datetime
    version: str
    boot_id: UUID
    model: ModelRef | None = None
    product: Name | None = None
    faults: tuple[Fault, ...] = ()


class Account(Message):
    """Where the captured frames of one camera went: captured = ok + ng + unknown + skipped + pending.

    Attributes:
        skipped: count by reason.
        pending: captured, not judged yet.
        lines_lost: lines that the line-scan camera did not deliver.
    """

    captured: int = 0
    ok: int = 0
    ng: int = 0
    unknown: int = 0
    skipped: Mapping[SkipReason, int] = Field(default_factory=dict)
    pending: int = 0
    lines_lost: int = 0

    @property
    def judged(self) -> int:
        """Frames with a verdict."""
        return self.ok + self.ng + self.unknown

    @property
    def balanced(self) -> bool:
        """Whether every captured frame is accounted for."""
        return self.captured == self.judged + sum(self.skipped.values()) + self.pending


class PartIdHealth(Message):
    """The part ids of one camera within `Health`, counted since the start.

    Attributes:
        states: verdicts by `part_id_state`.
        waiting: verdicts that wait for their ids now.
        late: ids that came when the verdict of their frame was on its way already; no frame got them.
        unclaimed: ids whose window held no frame.
    """

    states: Mapping[PartIdState, int] = Field(default_factory=dict)
    waiting: int = 0
    late: int = 0
    unclaimed: int = 0


class CameraHealth(Message):
    """One camera within `Health`; `part_ids` is None where its parts have no ids."""

    state: CameraStateName
    account: Account
    epoch: int
    last_sequence: int
    queue_depth: int
    part_ids: PartIdHealth | None = None


class JournalHealth(Message):
    """The journal within `Health`.

    Attributes:
        head: hash of the newest row, hexadecimal; a consumer that keeps it can see a cut tail.
        rows: rows kept.
        outbox: rows that no broker has acknowledged yet.
        size_bytes: the journal's files.
        durable: False while the disk refuses writes.
        replays: stretches of verdicts that were asked for and are not all sent again yet.
    """

    head: str
    rows: int
    outbox: int
    size_bytes: int
    durable: bool
    replays: int = 0


class EvidenceHealth(Message):
    """The store of pictures within `Health`.

    Attributes:
        kept: pictures in the store, by class, and marks of missing ones among them.
        size_bytes: what they take.
        written: pictures written since the start.
        dropped: wanted since the start and not taken, by reason; their verdicts hold no reference.
        missing: taken since the start and then not written; a mark with the reason stands in their place.
        deleted: deleted since the start to keep the bounds.
        queue_depth: taken and not written yet.
    """

    kept: Mapping[EvidenceClass, int]
    size_bytes: int
    written: int
    dropped: Mapping[EvidenceDrop, int]
    missing: int
    deleted: int
    queue_depth: int


class Percentiles(Message):
    """Median and 99th percentile, milliseconds."""

    p50: float
    p99: float


class SourceHealth(Message):
    """One source of readings within `Health`.

    Attributes:
        rows: taken since the start.
    """

    state: SourceStateName
    since: datetime | None
    reason: str | None
    rows: int


class ProcessHealth(Message):
    """One process group within `Health`.

    Attributes:
        as_of: time of the newest step.
        alarms: those that make the group be in alarm.
        bad: channels that are not good, with the reason.
        ticks: steps made since the start.
        late, repeated, out_of_order, wrong_time: rows that came so.
        restarts: gaps over which no steps were made.
    """

    state: ProcessStateName
    as_of: datetime | None
    risk: float | None
    alarms: tuple[Name, ...]
    bad: Mapping[str, str]
    ticks: int
    late: int
    repeated: int
    out_of_order: int
    wrong_time: int
    restarts: int


class RejectHealth(Message):
    """One reject output within `Health`: expected = pending + spared + written + late + failed.

    Attributes:
        connected: its device answers.
        expected: parts whose frames were taken from the output's cameras.
        pending: their moment has not come yet.
        spared: need no signal.
        written: the device acknowledged the signal in time.
        late: it did so later than `late_after_ms`.
        failed: the signal was not given: too late, the device away or refusing, or no verdict and no count.
        overdue: of all of them, those whose moment came before their verdict.
        held: why the heartbeat stands still; None: it runs, or there is none.
        sent_ms: from the moment to the sending, over the last thousand signals.
        answered_ms: from the moment to the device's acknowledgement, over the same.
    """

    connected: bool
    expected: int
    pending: int
    spared: int
    written: int
    late: int
    failed: int
    overdue: int
    held: str | None
    sent_ms: Percentiles | None
    answered_ms: Percentiles | None


class StandingAlert(Message):
    """One alert that stands, within `Health`; see `station.alert_messages.Alert`."""

    alert_id: UUID
    alert: Name
    subject: str
    priority: str
    since: datetime


class Health(Message):
    """Retained on `health`; a heartbeat.

    Attributes:
        valid_until: when this has passed without a newer one, the station hangs, whatever its session says.
        evidence: the store of pictures; None when it is switched off.
        alerts: those that stand, oldest first.
        rejects: the reject outputs.
        latency_ms: from the exposure to the verdict, over the last minute's frames.
        disk_free_bytes: on the file system of the data folder.
        rss_mb: resident memory of the station's process, in 10^6 bytes.
    """

    schema_version: Literal[1] = 1
    station: Name
    at: datetime
    valid_until: datetime
    uptime_s: float
    cameras: Mapping[str, CameraHealth]
    journal: JournalHealth | None
    evidence: EvidenceHealth | None = None
    sensors: Mapping[str, SourceHealth] = Field(default_factory=dict)
    process: Mapping[str, ProcessHealth] = Field(default_factory=dict)
    alerts: tuple[StandingAlert, ...] = ()
    rejects: Mapping[Name, RejectHealth] = Field(default_factory=dict)
    latency_ms: Percentiles | None
    disk_free_bytes: int
    rss_mb: float


class Gap(Message):
    """A declared loss on `gap`: something was not seen or could not be kept.

    Attributes:
        what: `frames` went by unseen, or `verdicts` could not be kept.
        count: how many, None when nobody can know.
        began, ended: the time it concerns.
        epoch, first_sequence, last_sequence: the verdicts concerned, where they had numbers.
        why: `station_down`, `camera_stalled`, `paused`, `journal_corrupt`, `journal_full`, `disk_full`, `too_large`, …
    """

    schema_version: Literal[1] = 1
    id: UUID
    station: Name
    camera: Name | None
    what: Literal["frames", "verdicts"]
    count: int | None
    began: datetime
    ended: datetime
    epoch: int | None = None
    first_sequence: int | None = None
    last_sequence: int | None = None
    why: str


class ReplayResult(Message):
    """What a `replay` puts on its way.

    Attributes:
        rows: verdicts that are sent again.
        stretches: which ones.
    """

    class Stretch(Message):
        """Verdicts of one camera and epoch; `rows` of them are kept."""

        camera: Name
        epoch: int
        first_sequence: int
        last_sequence: int
        rows: int

    rows: int
    stretches: tuple[Stretch, ...]


class PauseResult(Message):
    """A camera is paused, until a `resume` or this time."""

    until: datetime


class ResumeResult(Message):
    """A pause has ended at this time."""

    resumed: datetime


class SnapshotResult(Message):
    """The verdict whose picture was taken, and the picture's path relative to the data folder."""

    verdict: UUID
    evidence: str


class ThresholdResult(Message):
    """The threshold that a camera judges with from its next frame on; None: those of its bundle or configuration."""

    threshold: float | None


class BundleResult(Message):
    """The models that the cameras judge with from their next frame on."""

    models: Mapping[str, ModelRef]


class InstallResult(Message):
    """A bundle is in the library.

    Attributes:
        installed: which one.
        task: what it is for.
        signed_by: id of the trusted key that signed it; None: nobody did, or no key is known to check with.
        sealed: it is kept encrypted.
    """

    installed: ModelRef
    task: str
    signed_by: str | None
    sealed: bool


class SwitchResult(Message):
    """What is active in a slot of the library.

    Attributes:
        slot: the table of the configuration whose `bundle` it stands in for.
        active: the bundle; None: what the configuration names.
        former: what was active before; None: what the configuration names.
        models: what the cameras concerned judge with from their next frame on.
        at_next_start: nothing that runs judges with it yet.
    """

    slot: str
    active: ModelRef | None
    former: ModelRef | None
    models: Mapping[str, ModelRef]
    at_next_start: bool


class AlarmResult(Message):
    """Where an alarm stands after a command.

    Attributes:
        transition: id of the message on the alarm's topic.
        state: of the alarm, see `Alarm`.
        shelved_until: end of the shelf time.
    """

    transition: UUID
    state: str
    shelved_until: datetime | None = None


class ChangeoverResult(Message):
    """The product that runs now, the one that ran before, and how long the changeover took."""

    product: Name
    former: Name
    took_ms: float


Result = (
    AlarmResult
    | ReplayResult
    | PauseResult
    | ResumeResult
    | SnapshotResult
    | ThresholdResult
    | BundleResult
    | ChangeoverResult
    | InstallResult
    | SwitchResult
)


class Response(Message):
    """The answer to a command, on `response/<verb>`; the journal keeps it as the record of the command.

    Attributes:
        id: UUIDv7; what an `override` names.
        verb: as it stood in the request's topic.
        transaction: the request's own, to know the answer by; None where none could be read.
        origin: how it came: over `mqtt`, from the command line of the station's machine (`local`), as an order of the
            `plant`, by a topic or a register that the configuration names, or nobody asked: the `station` did it by
            itself.
        accepted: whether it was carried out.
        reason: why not; None when it was.
        request: the command as it was understood; None when it was not.
        result: what came of it; None when it was refused.
    """

    schema_version: Literal[1] = 1
    id: UUID
    station: Name
    verb: str
    transaction: str | None
    at: datetime
    origin: Origin = Origin.MQTT
    accepted: bool
    reason: str | None = None
    request: Mapping[str, JsonValue] | None = None
    result: Result | None = None


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as it came, not looked at yet.

    Attributes:
        topic: where it was published.
        payload: its bytes.
        retained: the broker keeps it, or kept it: nobody asks for it now.
        answer_to: response topic that the sender asked for (MQTT 5, section 4.10), if any.
        correlation: correlation data that the sender wants back.
        origin: how it came; only what comes over MQTT needs to be allowed.
        reply: takes the answer of a sender who did not ask over the broker.
    """

    topic: str
    payload: bytes
    retained: bool = False
    answer_to: str | None = None
    correlation: bytes | None = None
    origin: Origin = Origin.MQTT
    reply: Callable[[bytes], object] | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which verdicts to look for: sequences of a camera's epoch, or a time.

    Attributes:
        camera: None: of all cameras.
        epoch, first_sequence, last_sequence: both ends included; None: by time.
        since_s, until_s: wall times of the commits, seconds since 1970, both ends included; None: by sequence.
    """

    camera: str | None
    epoch: int | None = None
    first_sequence: int | None = None
    last_sequence: int | None = None
    since_s: float | None = None
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message on its way through the journal to the broker.

    Attributes:
        id: unique; the consumer's key for dropping duplicates.
        kind: `verdict`, `gap`, `alarm` for a transition of one, `alert`, or `command` for the response to one.
        topic: MQTT topic.
        payload: UTF-8 JSON.
        camera, epoch, sequence: place in the camera's order; None for messages that are not of a camera, except that
            the transitions of a process group's alarms, and the alerts, have an order, too.
        outcome: of a verdict: decides what goes first when the journal must shrink.
    """

    id: UUID
    kind: Literal["verdict", "gap", "command", "alarm", "alert"]
    topic: str
    payload: bytes
    camera: str | None = None
    epoch: int | None = None
    sequence: int | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A journal row that waits for the broker's acknowledgement.

    Attributes:
        row: the journal's row number, growing.
        committed_at_s: wall time of the commit, seconds since 1970.
        message: what to publish.
    """

    row: int
    committed_at_s: float
    message: Outgoing


@dataclass(frozen=True, slots=True)
class Replayed:
    """A piece of a replay was put back into the outbox, or had been sent never before.

    Attributes:
        first_row: the lowest row concerned; None when there was nothing left.
    """

    first_row: int | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that the broker would not take.

    Attributes:
        row: its number.
        reason: the broker's, in words.
    """

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class Link:
    """Where the connection to the broker stands.

    Attributes:
        connected: the broker has accepted the station and messages may be sent.
        connections: how many connections were made since the start; when it grows, what was in flight must go back.
        session_present: the broker still knew the station's session when it accepted the newest connection.
        window: messages that the broker takes before it acknowledges one (MQTT 5, section 3.2.2.3.3).
        largest_bytes: of a packet that the broker takes (section 3.2.2.3.6); None: it names no limit.
        reason: why there is no connection, one line; None while there is one.
        refused: the broker refused the login or the certificate; someone must act.
    """

    connected: bool = False
    connections: int = 0
    session_present: bool = False
    window: int = 65_535
    largest_bytes: int | None = None
    reason: str | None = None
    refused: bool = False

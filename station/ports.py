"""The seams: what the journey needs from the outside, as Protocols of one to three methods."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from station.bundle_index import Entry, Index
from station.judged_with import JudgedWith
from station.messages import (
    Adjustment,
    CameraEvent,
    Capture,
    EvidenceHealth,
    Frame,
    JournalHealth,
    Link,
    ModelRef,
    Ordered,
    OutboxRow,
    Outgoing,
    Pixels,
    Refusal,
    Replayed,
    ReplayResult,
    Scores,
    Selection,
    Verdict,
)
from station.part_id_messages import ReadCodes, SeenId
from station.process_messages import AlarmLimits, Mask, Moment, Readings, SourceEvent, StepRisk, Tick, Values


class Clock(Protocol):
    """Time, as an argument."""

    def now(self) -> datetime:
        """Wall time, UTC, aware."""

    def monotonic_s(self) -> float:
        """CLOCK_MONOTONIC in seconds; the same in all processes of the machine."""


class Resource(Protocol):
    """Something with a beginning and an end; `__init__` does no input or output, `__enter__` does."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Camera(Resource, Protocol):
    """One picture source, driven from one thread. It lives in the camera's child process and may block for ever."""

    def read(self) -> Capture:
        """Wait for the next picture.

        Raises:
            CameraError: the device is gone or cannot be used as configured; close and open it again.
            EndOfStream: a file or a folder read once is finished.
        """


@runtime_checkable
class Adjustable(Protocol):
    """A camera whose controls can be set while it is open."""

    def adjust(self, controls: Mapping[str, float]) -> None:
        """Set controls, with the matching automatics off, and read each back.

        Raises:
            CameraError: names every control that did not take its value.
        """


class FrameSource(Resource, Protocol):
    """The station's side of a camera: numbered frames and changes of state, in order."""

    def read(self, timeout_s: float) -> Frame | CameraEvent | None:
        """Return the next frame or event; None when nothing came within `timeout_s`."""

    def depth(self) -> int:
        """Frames captured and numbered, but not yet returned by `read`; may be asked from another thread."""

    def adjust(self, controls: Mapping[str, float], *, must: bool = False) -> Adjustment:
        """Have the camera take these controls and read them back; from another thread. A refusal leaves it as it was.

        Controls that `must` be taken are not refused: nothing is captured until they are.

        What is captured is never under controls that are neither the former nor these.
        """

    def finish(self) -> None:
        """Capture no more: `read` still returns what was captured, then a STOPPED event, then always None."""


class Model(Protocol):
    """A loaded bundle."""

    @property
    def ref(self) -> ModelRef:
        """Which bundle this is."""

    def infer(self, pixels: Pixels) -> Scores:
        """Score one picture.

        Raises:
            InferenceError: the picture does not fit the model, or the runtime failed.
        """


class Sensors(Resource, Protocol):
    """One source of readings, driven from one thread.

    A source that cannot be reached is no exception: it tries again by itself, with capped and jittered back-off, and
    says once that it is down (`SourceEvent`) and once that it is running again.
    """

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the points, in the order of the values of each row; fixed once the source is entered."""

    def read(self, timeout_s: float) -> Readings | SourceEvent | None:
        """Return the next row or event, oldest first; None when nothing came within about `timeout_s`.

        A replayed log that has ended says so with an event FINISHED, and then always returns None after the wait.
        """


class StepModel(Protocol):
    """A recurrent model of one process group: one call a tick, O(1); it remembers what came before.

    One thread uses it. It says what it is made for, so that a configuration that does not match can be refused.
    """

    @property
    def ref(self) -> ModelRef:
        """Which bundle this is."""

    @property
    def channels(self) -> tuple[tuple[str, str], ...]:
        """(name, unit) of each channel in the model's order; unit "" where the bundle knows none."""

    @property
    def step_s(self) -> float:
        """The fixed step that it was trained on, in seconds."""

    @property
    def limits(self) -> AlarmLimits:
        """When its risk becomes an alarm."""

    @property
    def reset_after_s(self) -> float:
        """The gap after which its training began anew, in seconds."""

    @property
    def flat_after_s(self) -> tuple[float | None, ...]:
        """How long each channel may stand still before it is bad, as the training logs show; None: for ever."""

    def step(self, at_s: float, values: Values, mask: Mask) -> StepRisk:
        """Take the readings of one step, and say what they are worth.

        Args:
            at_s: wall time of the step, seconds since 1970.
            values: `[channels]`, in the channels' units; finite; 0 where the mask is False.
            mask: `[channels]`, True where the channel is good.

        Raises:
            InferenceError: the runtime failed; the model must be reset before the next step.
        """

    def reset(self) -> None:
        """Forget everything: the next ticks warm up."""

    def snapshot(self) -> bytes:
        """What it remembers, to be kept over a restart; says by itself which model and scaling it belongs to."""

    def restore(self, snapshot: bytes) -> bool:
        """Go on from a snapshot; False, and forgetting everything, when it is not of this very model."""


class ReadingsJournal(Protocol):
    """Keeps what the process groups' channels were; any thread."""

    def begin(self, group: str, channels: Sequence[tuple[str, str]]) -> None:
        """Learn a group's channels, (name, unit) each, in the order of its ticks.

        Raises:
            StorageError: nothing was noted.
        """

    def keep(self, group: str, ticks: Sequence[Tick], moments: Sequence[Moment]) -> None:
        """Take ticks, with where the group stood at them.

        Raises:
            StorageError: some could not be kept, and are lost.
        """

    def flush(self) -> None:
        """Bring to the disk what is in memory.

        Raises:
            StorageError: some could not be kept, and are lost.
        """


class Orders(Resource, Protocol):
    """Brings orders of the plant as they come; like `Sensors` it tries again by itself, and says when it is down."""

    def read(self, timeout_s: float) -> Ordered | Readings | SourceEvent | None:
        """Return the next order, row with a product's number, or event; None when nothing came within `timeout_s`."""


class ProductStore(Protocol):
    """Notes which product runs, over a restart."""

    def load(self) -> str | None:
        """The product that was noted last; None: none was.

        Raises:
            StorageError: there is a note, and it cannot be read.
        """

    def save(self, product: str) -> None:
        """Note a product; it is on the disk when this returns.

        Raises:
            StorageError: the former note is still there.
        """


class StateStore(Protocol):
    """Keeps what each of several things of one kind remembers over a restart."""

    def load(self, name: str) -> bytes | None:
        """The newest state; None: there is none.

        Raises:
            StorageError: there is one, and it cannot be read.
        """

    def save(self, name: str, state: bytes) -> None:
        """Replace the state; never half of it.

        Raises:
            StorageError: the former one is still there.
        """


class PartIdSource(Resource, Protocol):
    """Brings the ids of parts as they come; like `Sensors` it tries again by itself, and says when it is down."""

    def read(self, timeout_s: float) -> SeenId | SourceEvent | None:
        """Return the next id or event, oldest first; None when nothing came within about `timeout_s`."""


class CodeReader(Protocol):
    """Reads codes in pictures."""

    def read(self, pixels: Pixels) -> ReadCodes:
        """The codes that stand there."""


class Journal(Resource, Protocol):
    """The audit trail and outbox. One thread at a time uses it."""

    def commit(self, messages: Sequence[Outgoing], acknowledged: Sequence[int]) -> Sequence[OutboxRow]:
        """Store messages and mark rows as acknowledged in one transaction; durable when it returns.

        Returns:
            The new rows, in the order of `messages`; after them the gaps that the journal itself had to declare.
            Numbers grow; where some were passed over, the journal may have put older messages into its outbox.

        Raises:
            StorageError: nothing of it was stored.
        """

    def pending(self, after_row: int, limit: int) -> Sequence[OutboxRow]:
        """Rows after `after_row` that no broker has acknowledged, oldest first.

        Raises:
            StorageError: the disk cannot be read.
        """

    def replay(self, acknowledged_since_s: float) -> int | None:
        """Put rows that were acknowledged at or after this wall time (seconds since 1970) back into the outbox.

        Returns:
            The first such row; None when there is none.

        Raises:
            StorageError: nothing was put back.
        """

    def begin_replays(self, stretches: Sequence[ReplayResult.Stretch]) -> None:
        """Note durably that these verdicts are to be sent again; `replay_next` does it, piece by piece.

        Raises:
            StorageError: nothing was noted.
        """

    def replay_next(self, limit: int) -> Replayed | None:
        """Put up to `limit` of the verdicts that are to be sent again back into the outbox; None: there are none.

        Raises:
            StorageError: nothing was put back.
        """

    def last_verdicts(self) -> Sequence[OutboxRow]:
        """The newest verdict of each camera."""

    def latest(self, limit: int) -> Sequence[OutboxRow]:
        """The newest verdicts of all cameras together, oldest first.

        Raises:
            StorageError: the disk cannot be read.
        """

    def health(self) -> JournalHealth:
        """Figures for the `health` topic."""


class BundleLibrary(Protocol):
    """Keeps bundles, and which is active where; any thread, and other processes beside it."""

    def index(self) -> Index:
        """What it holds now.

        Raises:
            StorageError: that cannot be read.
        """

    def read(self, sha256: str) -> bytes:
        """The bytes of a bundle file.

        Raises:
            BundleError: it is not there, or was altered.
            BundleLocked: it is encrypted, and the key is missing or another one.
        """

    def add(self, data: bytes, entry: Entry) -> Entry:
        """Put a bundle in; return its entry as it stands.

        Raises:
            StorageError: the library is as it was.
            BundleLocked: it should be encrypted, and there is no key.
        """

    def change(self, how: Callable[[Index], Index]) -> Index:
        """Change what is active or noted; durable when it returns. What `how` raises changes nothing.

        Raises:
            StorageError: all is as it was.
        """


class BundleInbox(Protocol):
    """Bundle files that were handed in and are not in the library yet."""

    def handed_in(self, sha256: str) -> bytes:
        """One of them.

        Raises:
            BundleError: it is not there.
        """

    def discard(self, sha256: str) -> None:
        """Remove it."""


class Archive(Protocol):
    """What the journal keeps, for those who only look."""

    def find(self, selection: Selection) -> Sequence[ReplayResult.Stretch]:
        """The stretches of sequences that hold all that was asked for; any thread.

        Raises:
            StorageError: the disk cannot be read.
        """

    def answers(self) -> Sequence[Outgoing]:
        """The newest responses to commands, oldest first; any thread.

        Raises:
            StorageError: the disk cannot be read.
        """

    def alerts(self) -> Sequence[Outgoing]:
        """The newest alerts, oldest first; any thread.

        Raises:
            StorageError: the disk cannot be read.
        """


class EvidenceStore(Resource, Protocol):
    """Keeps pictures beside the verdicts, never in front of them."""

    def keep(
        self,
        verdict: Verdict,
        pixels: Pixels | None,
        *,
        wanted: bool = False,
        judged_with: Callable[[], JudgedWith] | None = None,
    ) -> Verdict:
        """Copy the picture if it is wanted and there is room; any thread, never waits for the disk.

        With `wanted` somebody asked for this one, whatever the verdict. `judged_with` is asked what decided the verdict
        when the picture is taken, and only then.

        Returns:
            The verdict to hand to the journal: with the picture's reference if it was taken, else as it was.
        """

    def committed(self, messages: Sequence[Outgoing]) -> None:
        """These messages are in the journal, or on their way without it: their pictures may be written."""

    def step(self, timeout_s: float) -> None:
        """Write one picture, or wait up to `timeout_s` for one; one thread."""

    @property
    def health(self) -> EvidenceHealth:
        """Figures for the `health` topic; any thread."""


class RejectDevice(Resource, Protocol):
    """What throws parts out, or lets them pass; driven from one thread. Entering it connects and writes nothing.

    Each method waits for the device's answer, and raises OutputError when it is away, OutputRefused when it says no.
    """

    def set(self, *, on: bool) -> None:
        """Give the signal, or take it back."""

    def beat(self, count: int) -> None:
        """Write the heartbeat, 0 to 65535."""

    def count(self) -> int:
        """Read the encoder's counts, as the registers hold them."""

    def look(self) -> str:
        """Read what `set`, `beat` and `count` would use, and say in one line what stands there; nothing is written."""


class StateSink(Protocol):
    """Where the latest state of a thing is shown; keeps the newest only."""

    def retain(self, topic: str, payload: bytes, expires_s: float | None = None) -> None:
        """Set a retained message: published now, and again after each reconnect.

        With `expires_s` the broker forgets it after that time (MQTT 5, section 3.3.2.3.3).
        """


class Publisher(StateSink, Resource, Protocol):
    """The connection to the broker; never blocks, never raises for a broker that is away."""

    def send(self, row: OutboxRow, *, historical: bool) -> bool:
        """Hand one message to the network; False when there is no connection and it must be sent again later."""

    def fits(self, message: Outgoing) -> bool:
        """Whether the broker takes a message of this size; one that it does not would end the connection each time."""

    def acknowledgements(self) -> Sequence[int]:
        """Rows that the broker acknowledged since the last call."""

    def refusals(self) -> Sequence[Refusal]:
        """Rows that the broker answered and refused since the last call."""

    def link(self) -> Link:
        """Where the connection stands; `send` uses the connection that was reported last."""

    def copy(self, topic: str, payload: bytes, correlation: bytes | None) -> None:
        """Send a message once, without a promise, with the correlation data of the one that it answers."""


class ServiceManager(Resource, Protocol):
    """Who watches over the process. It ends a station that gave no sign of life for too long."""

    def ready(self) -> None:
        """The station has started."""

    def report(self, status: str, *, alive: bool) -> None:
        """Say in one line how it goes; only with `alive` is it a sign of life. May be called often."""

    def stopping(self) -> None:
        """The station has begun its orderly stop."""


Labels = Mapping[str, float]
"""Class name → threshold in 0..1."""

"""Commands as they come over MQTT or from this machine: one typed request a verb, and how bytes become one. Pure.

Each request carries a `transaction` that its sender made up; the answer repeats it. Unknown keys, wrong types and
values beyond their limits are refused with a reason that names the key. What a verb may do to a station is for its
handler; here it is only whether the request says something that could be done.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Self

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError, model_validator

from station.bundle_index import SLOT
from station.errors import ProtocolError
from station.messages import Message, Name, Verb

MAX_BYTES = 16_384
"""A longer request is not read."""
LARGEST = 2**63 - 1
"""SQLite's largest integer."""

Transaction = Annotated[str, Field(pattern=r"^[!-~]{1,64}$")]
"""1 to 64 printable ASCII characters without a space; a UUID for example."""
Count = Annotated[int, Field(ge=0, le=LARGEST)]


class Request(Message):
    """What every request has.

    Attributes:
        transaction: made up by the sender; a second request of the same verb with the same one gets the same answer
            and does nothing.
        valid_until: a request that comes later than this (it may have waited in the broker) is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    transaction: Transaction
    valid_until: AwareDatetime | None = None


class ReplayRequest(Request):
    """Send verdicts again: those of `camera` and `epoch` from `first_sequence` to `last_sequence`, or those that were
    stored from `since` to `until` (of every camera where none is named). Both ends are included."""

    camera: Name | None = None
    epoch: Count | None = None
    first_sequence: Count | None = None
    last_sequence: Count | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        by_sequence = (self.epoch, self.first_sequence, self.last_sequence)
        by_time = (self.since, self.until)
        if any(one is not None for one in by_sequence):
            if any(one is None for one in (self.camera, *by_sequence)) or any(one is not None for one in by_time):
                raise ValueError("give camera, epoch, first_sequence and last_sequence together, or since and until")
            if (self.first_sequence or 0) > (self.last_sequence or 0):
                raise ValueError("first_sequence is behind last_sequence")
        elif self.since is None or self.until is None:
            raise ValueError("give camera, epoch, first_sequence and last_sequence together, or since and until")
        elif self.since > self.until:
            raise ValueError("since is later than until")
        return self


class CameraRequest(Request):
    """A request that concerns one camera."""

    camera: Name


class PauseRequest(CameraRequest):
    """Judge nothing for `duration_s`; it ends by itself. A second pause takes the place of the first."""

    duration_s: float = Field(gt=0, le=1e9)
    reason: str | None = Field(default=None, max_length=200)


class ResumeRequest(CameraRequest):
    """End a pause."""


class SnapshotRequest(CameraRequest):
    """Keep the picture of the next frame as evidence, whatever its outcome, if one comes in time."""

    within_s: float = Field(default=10.0, gt=0, le=3600)


class SetThresholdRequest(CameraRequest):
    """Judge with this threshold for all classes until the station restarts; null: with those of the bundle or the
    configuration again."""

    threshold: float | None = Field(ge=0, le=1)


class ReloadBundleRequest(Request):
    """Read the camera's bundle file again (of every camera where none is named) and judge with it."""

    camera: Name | None = None


class ChangeProductRequest(Request):
    """Change over to another product, by its name or by its number."""

    product: Name | None = None
    number: int | None = Field(default=None, ge=0, le=2**32 - 1)
    by: str | None = Field(default=None, max_length=100)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.product is None) == (self.number is None):
            raise ValueError("give either product or number")
        return self


class InstallBundleRequest(Request):
    """Take the bundle file with this sha256, which was handed in at this machine, into the library."""

    bundle: str = Field(pattern=r"^[0-9a-f]{64}$")
    encrypt: bool = False


class SlotRequest(Request):
    """A request that concerns what judges in place of the `bundle` of one table: `model`, `camera.<name>`,
    `product.<name>`, `process.<group>`."""

    slot: str = Field(default="model", pattern=f"^({SLOT.pattern})$")


class ActivateBundleRequest(SlotRequest):
    """Judge with a bundle of the library from the next frame on, and after each start; one with another task than the
    former one has only if `other_task` is set."""

    bundle: str = Field(min_length=1, max_length=128)
    other_task: bool = False


class RollbackBundleRequest(SlotRequest):
    """Judge with what was active before."""


class AlarmRequest(Request):
    """A request that concerns one process alarm."""

    group: Name
    alarm: Name


class AcknowledgeRequest(AlarmRequest):
    """Somebody has seen the alarm."""

    by: str | None = Field(default=None, max_length=100)


class ShelveRequest(AlarmRequest):
    """Keep the alarm quiet for `duration_s`; 0 ends that."""

    duration_s: float = Field(ge=0, le=1e9)
    by: str | None = Field(default=None, max_length=100)


class ServiceRequest(AlarmRequest):
    """Reset a latched alarm, take an alarm out of service or put it back, suppress it or end that."""

    by: str | None = Field(default=None, max_length=100)


REQUESTS: Mapping[Verb, type[Request]] = {
    Verb.REPLAY: ReplayRequest,
    Verb.PAUSE: PauseRequest,
    Verb.RESUME: ResumeRequest,
    Verb.SNAPSHOT: SnapshotRequest,
    Verb.SET_THRESHOLD: SetThresholdRequest,
    Verb.RELOAD_BUNDLE: ReloadBundleRequest,
    Verb.CHANGE_PRODUCT: ChangeProductRequest,
    Verb.INSTALL_BUNDLE: InstallBundleRequest,
    Verb.ACTIVATE_BUNDLE: ActivateBundleRequest,
    Verb.ROLLBACK_BUNDLE: RollbackBundleRequest,
    Verb.ACKNOWLEDGE: AcknowledgeRequest,
    Verb.SHELVE: ShelveRequest,
    Verb.RESET: ServiceRequest,
    Verb.REMOVE_FROM_SERVICE: ServiceRequest,
    Verb.RETURN_TO_SERVICE: ServiceRequest,
    Verb.SUPPRESS: ServiceRequest,
    Verb.UNSUPPRESS: ServiceRequest,
}


class _Envelope(Message):
    """As much of a request as can be told whatever else is wrong with it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    transaction: Transaction


def transaction_of(payload: bytes) -> str | None:
    """The transaction of a request that may be wrong otherwise; None when it has none that can be repeated."""
    if len(payload) > MAX_BYTES:
        return None
    try:
        return _Envelope.model_validate_json(payload).transaction
    except ValidationError:
        return None


def check_size(payload: bytes) -> None:
    """Look at a request's size before anything is read.

    Raises:
        ProtocolError: it is too long.
    """
    if len(payload) > MAX_BYTES:
        raise ProtocolError(f"the request has {len(payload)} bytes; allowed are {MAX_BYTES}")


def check_time(request: Request, now: datetime) -> None:
    """Look whether a request still holds.

    Raises:
        ProtocolError: it came too late.
    """
    if request.valid_until is not None and now > request.valid_until:
        raise ProtocolError(f"the request was valid until {request.valid_until.isoformat()} and came later")

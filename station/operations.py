"""What commands do to a station: one method for each verb, called by the thread that looks at commands."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from station.commander import Handler, Later, Refusal, handles
from station.control import SNAPSHOTS, CameraControl, Pause, SnapshotOrder, ThresholdChange
from station.errors import AlarmRefused, StorageError
from station.messages import (
    AlarmResult,
    BundleResult,
    ChangeoverResult,
    ModelRef,
    PauseResult,
    ReplayResult,
    ResumeResult,
    Selection,
    SnapshotResult,
    ThresholdResult,
    Verb,
)
from station.ports import Archive, Clock
from station.process_line import ProcessLines
from station.process_messages import AlarmEvent
from station.recorder import Recorder
from station.requests import (
    AcknowledgeRequest,
    AlarmRequest,
    CameraRequest,
    ChangeProductRequest,
    PauseRequest,
    ReloadBundleRequest,
    ReplayRequest,
    ResumeRequest,
    ServiceRequest,
    SetThresholdRequest,
    ShelveRequest,
    SnapshotRequest,
)
from station.settings import CommandSettings

_SERVICES: Mapping[Verb, AlarmEvent] = {
    Verb.RESET: AlarmEvent.RESET,
    Verb.REMOVE_FROM_SERVICE: AlarmEvent.REMOVE_FROM_SERVICE,
    Verb.RETURN_TO_SERVICE: AlarmEvent.RETURN_TO_SERVICE,
    Verb.SUPPRESS: AlarmEvent.SUPPRESS,
    Verb.UNSUPPRESS: AlarmEvent.UNSUPPRESS,
}
REPLAYS = 64
"""Stretches of verdicts that may wait to be sent again."""


class Operations:
    """Carries out the commands that concern the station as it was assembled.

    Args:
        settings: bounds.
        clock: time.
        archive: what the journal keeps.
        recorder: sends verdicts again.
        cameras: by name.
        keeps_evidence: whether pictures are kept at all.
        reload: loads the bundles of these cameras anew for this command, all or none; raises ModelError.
        change_product: changes over to another product for this command; raises Refusal.
        process: early warning; None: no process group is watched.
        others: who carries out the verbs that are not in here.
    """

    def __init__(
        self,
        settings: CommandSettings,
        clock: Clock,
        *,
        archive: Archive,
        recorder: Recorder,
        cameras: Mapping[str, CameraControl],
        keeps_evidence: bool,
        reload: Callable[[Sequence[str], UUID], Mapping[str, ModelRef]],
        change_product: Callable[[ChangeProductRequest, UUID], ChangeoverResult | Later],
        process: ProcessLines | None = None,
        others: Mapping[Verb, Handler] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._archive = archive
        self._recorder = recorder
        self._cameras = cameras
        self._keeps_evidence = keeps_evidence
        self._reload = reload
        self._change_product = change_product
        self._process = process
        self._others = others or {}

    def handlers(self) -> Mapping[Verb, Handler]:
        """Who carries out which verb."""
        return {
            Verb.REPLAY: handles(ReplayRequest, self._replay),
            Verb.PAUSE: handles(PauseRequest, self._pause),
            Verb.RESUME: handles(ResumeRequest, self._resume),
            Verb.SNAPSHOT: handles(SnapshotRequest, self._snapshot),
            Verb.SET_THRESHOLD: handles(SetThresholdRequest, self._set_threshold),
            Verb.RELOAD_BUNDLE: handles(ReloadBundleRequest, self._reload_bundle),
            Verb.CHANGE_PRODUCT: handles(ChangeProductRequest, self._change_product),
            Verb.ACKNOWLEDGE: handles(
                AcknowledgeRequest, lambda request, _: self._alarm(request, AlarmEvent.ACKNOWLEDGE, request.by)
            ),
            Verb.SHELVE: handles(ShelveRequest, self._shelve),
            **{verb: self._service(event) for verb, event in _SERVICES.items()},
            **self._others,
        }

    def _service(self, event: AlarmEvent) -> Handler:
        return handles(ServiceRequest, lambda request, _: self._alarm(request, event, request.by))

    def _shelve(self, request: ShelveRequest, _: UUID) -> AlarmResult:
        if request.duration_s == 0:
            return self._alarm(request, AlarmEvent.UNSHELVE, request.by)
        return self._alarm(request, AlarmEvent.SHELVE, request.by, request.duration_s)

    def _alarm(
        self, request: AlarmRequest, event: AlarmEvent, by: str | None, shelve_s: float | None = None
    ) -> AlarmResult:
        if self._process is None:
            raise Refusal("no process group is watched")
        try:
            alarm = self._process.command(request.group, request.alarm, event, by=by, shelve_s=shelve_s)
        except AlarmRefused as exc:
            raise Refusal(str(exc)) from exc
        return AlarmResult(transition=alarm.id, state=alarm.state.value, shelved_until=alarm.shelved_until)

    def _replay(self, request: ReplayRequest, _: UUID) -> ReplayResult:
        try:
            found = self._archive.find(
                Selection(
                    camera=request.camera,
                    epoch=request.epoch,
                    first_sequence=request.first_sequence,
                    last_sequence=request.last_sequence,
                    since_s=request.since.timestamp() if request.since else None,
                    until_s=request.until.timestamp() if request.until else None,
                )
            )
        except StorageError as exc:
            raise Refusal(str(exc)) from exc
        rows = sum(one.rows for one in found)
        if not rows:
            raise Refusal("the journal keeps no such verdict")
        if rows > self._settings.replay_max_rows:
            raise Refusal(f"that is {rows} verdicts; commands.replay_max_rows allows {self._settings.replay_max_rows}")
        if len(found) + self._recorder.replays_waiting > REPLAYS:
            raise Refusal(f"that is {len(found)} stretches of verdicts; {REPLAYS} may wait, try again later")
        self._recorder.replay(found)
        return ReplayResult(rows=rows, stretches=tuple(found))

    def _pause(self, request: PauseRequest, _: UUID) -> PauseResult:
        camera = self._camera(request)
        if request.duration_s > self._settings.pause_max_s:
            raise Refusal(
                f"duration_s = {request.duration_s:g}: commands.pause_max_s allows {self._settings.pause_max_s:g}"
            )
        until = self._clock.now() + timedelta(seconds=request.duration_s)
        camera.pause(Pause(self._clock.monotonic_s() + request.duration_s, until, request.reason))
        return PauseResult(until=until)

    def _resume(self, request: ResumeRequest, _: UUID) -> ResumeResult:
        camera = self._camera(request)
        if camera.paused(self._clock.monotonic_s()) is None:
            raise Refusal(f"camera {request.camera} is not paused")
        camera.resume()
        return ResumeResult(resumed=self._clock.now())

    def _snapshot(self, request: SnapshotRequest, _: UUID) -> Later:
        camera = self._camera(request)
        if not self._keeps_evidence:
            raise Refusal("no pictures are kept: evidence.enabled is false")
        if camera.paused(self._clock.monotonic_s()) is not None:
            raise Refusal(f"camera {request.camera} is paused")
        order = SnapshotOrder()
        if not camera.order(order):
            raise Refusal(f"{SNAPSHOTS} snapshots wait for the next picture already")
        until_s = self._clock.monotonic_s() + request.within_s

        def poll() -> SnapshotResult | None:
            if order.failure is not None:
                raise Refusal(order.failure)
            if order.result is None and self._clock.monotonic_s() >= until_s:
                camera.withdraw(order)
            return order.result

        return Later(poll, until_s, f"no picture came within {request.within_s:g} s")

    def _set_threshold(self, request: SetThresholdRequest, command: UUID) -> ThresholdResult:
        change = None if request.threshold is None else ThresholdChange(request.threshold, command)
        self._camera(request).set_threshold(change)
        return ThresholdResult(threshold=request.threshold)

    def _reload_bundle(self, request: ReloadBundleRequest, command: UUID) -> BundleResult:
        names = list(self._cameras)
        if request.camera is not None:
            self._named(request.camera)
            names = [request.camera]
        return BundleResult(models=self._reload(names, command))

    def _camera(self, request: CameraRequest) -> CameraControl:
        return self._named(request.camera)

    def _named(self, name: str) -> CameraControl:
        found = self._cameras.get(name)
        if found is None:
            raise Refusal(f"there is no camera {name}; there are {', '.join(self._cameras)}")
        return found

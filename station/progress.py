"""Whether the station really progresses: what the service manager's watchdog is fed with.

A station can look alive while it does nothing: its supervisor runs, and a camera's thread is stuck in a driver or the
recorder waits for a disk that never answers. So what counts is the work itself. The journey is cut into *stages*, each
with a counter that moves with every piece of work, and a mark whether work is waiting::

    stage                 work is waiting                                        counter
    camera X: loop        always: the thread looks for frames many times a       turns of its loop
                          second, also on an idle line
    camera X: frames      while it is running and its silence would be a fault   frames taken
    camera X: verdicts    while a frame was taken that is not settled            frames settled (judged or skipped)
    recorder: loop        always                                                 turns of its loop
    recorder: journal     while messages wait in its mailbox                     messages kept
    process X: loop       always                                                 turns of its loop

A stage with work waiting whose counter stands still for longer than its patience is *stalled*. An idle triggered line,
a finished folder and a camera that is being replaced have nothing waiting in the stage that stands still, and so they
are no fault.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from station.messages import CameraStateName

PATIENCE_S = 15.0
"""A stage may stand still this long with work waiting: longer than a picture takes on a slow machine, or a commit on a
flash card that tidies itself up."""


@dataclass(frozen=True, slots=True)
class CameraProgress:
    """One camera's counters, all since the start.

    Attributes:
        name: the camera.
        turns: how often its thread came back to its loop.
        taken: frames that the thread took from the camera.
        settled: frames whose verdict was handed to the recorder, or that were skipped.
        state: where the camera stands.
        silence_s: longest silence of a running camera before its own supervision acts; None: silence is no fault.
    """

    name: str
    turns: int
    taken: int
    settled: int
    state: CameraStateName
    silence_s: float | None


@dataclass(frozen=True, slots=True)
class RecorderProgress:
    """The recorder's counters, all since the start.

    Attributes:
        turns: how often its thread came back to its loop.
        waiting: messages in its mailbox now.
        committed: messages made durable, or kept in memory while the disk refuses.
    """

    turns: int
    waiting: int
    committed: int


@dataclass(frozen=True, slots=True)
class ProcessProgress:
    """One process group's counter since the start: how often its thread came back to its loop."""

    name: str
    turns: int


@dataclass(frozen=True, slots=True)
class _Stage:
    name: str
    counter: int
    work_waits: bool
    patience_s: float


@dataclass(slots=True)
class _Watch:
    counter: int
    moved_s: float


class Progress:
    """Decides from successive looks at the counters which stages are stalled.

    Args:
        patience_s: how long a stage may stand still while work waits.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._watches: dict[str, _Watch] = {}

    def look(
        self,
        now_s: float,
        cameras: Iterable[CameraProgress],
        recorder: RecorderProgress,
        groups: Iterable[ProcessProgress] = (),
    ) -> Sequence[str]:
        """Return the stages that are stalled now; empty while the station progresses.

        Args:
            now_s: monotonic time, never smaller than at the look before.
            cameras: every camera.
            recorder: the recorder.
            groups: every process group.
        """
        stages = [stage for camera in cameras for stage in self._stages_of(camera)]
        stages.append(_Stage("recorder: loop", recorder.turns, True, self._patience_s))
        stages.append(_Stage("recorder: journal", recorder.committed, recorder.waiting > 0, self._patience_s))
        stages += [_Stage(f"process {group.name}: loop", group.turns, True, self._patience_s) for group in groups]
        return [stage.name for stage in stages if self._is_stalled(stage, now_s)]

    def _stages_of(self, camera: CameraProgress) -> Iterable[_Stage]:
        yield _Stage(f"camera {camera.name}: loop", camera.turns, True, self._patience_s)
        yield _Stage(f"camera {camera.name}: verdicts", camera.settled, camera.taken > camera.settled, self._patience_s)
        yield _Stage(
            f"camera {camera.name}: frames",
            camera.taken,
            camera.state is CameraStateName.RUNNING and camera.silence_s is not None,
            # Its own supervision acts first: this is for the case that it does not.
            self._patience_s + (camera.silence_s or 0.0),
        )

    def _is_stalled(self, stage: _Stage, now_s: float) -> bool:
        watch = self._watches.get(stage.name)
        if watch is None or watch.counter != stage.counter or not stage.work_waits:
            self._watches[stage.name] = _Watch(stage.counter, now_s)
            return False
        return now_s - watch.moved_s > stage.patience_s

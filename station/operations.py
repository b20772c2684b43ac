"""What commands do to a station: one method for each verb, called by the thread that looks at commands."""

from collections.abc import Mapping
from uuid import UUID

from station.commander import Handler, Refusal, handles
from station.errors import StorageError
from station.messages import ReplayResult, Selection, Verb
from station.ports import Archive
from station.recorder import Recorder
from station.requests import ReplayRequest
from station.settings import CommandSettings

REPLAYS = 64
"""Stretches of verdicts that may wait to be sent again, in one request."""


class Operations:
    """Carries out the commands that concern the station as it was assembled.

    Args:
        settings: bounds.
        archive: what the journal keeps.
        recorder: sends verdicts again.
    """

    def __init__(self, settings: CommandSettings, archive: Archive, recorder: Recorder) -> None:
        self._settings = settings
        self._archive = archive
        self._recorder = recorder

    def handlers(self) -> Mapping[Verb, Handler]:
        """Who carries out which verb."""
        return {Verb.REPLAY: handles(ReplayRequest, self._replay)}

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

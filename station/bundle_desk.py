"""Which bundle judges where: of the library, or as the configuration says; and how that changes. Synchronous.

Theory of operation. A camera's bundle is looked for in the tables that may name one, the most specific first
(`product.<name>`, `camera.<name>`, `model`); in each, what is active in the library stands in for the key `bundle`
(`station.bundle_index`). A bundle goes the same way wherever it comes from: its bytes are let in
(`station.bundle_file`, with the signatures), tried out in another process, and loaded. What has judged is kept in the
library, so that a verdict can be judged again long after its file was replaced.

An activated bundle that cannot be loaded, does not give its golden set, or fails on frames is taken back: what was
active before judges again, now and after a restart, and `status` says so until something is activated in its place.
One that cannot be read for want of a key is not: the bundle is not at fault, and no other one may judge unasked.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from station import wire
from station.bundle_file import Contents, Head, head_of, open_members, read_file
from station.bundle_index import Entry, Index, Slot, TakenBack
from station.bundle_settings import BundleSettings
from station.commander import Refusal
from station.errors import BundleError, BundleLocked, ModelError, StorageError
from station.ids import uuid7
from station.messages import InstallResult, ModelRef, Origin, Outgoing, Response, SwitchResult, Verb
from station.ports import BundleInbox, BundleLibrary, Clock
from station.trust import Trust

logger = logging.getLogger(__name__)

LIBRARY = "bundle library"
"""What a fault of the library is called in `status`; a slot's is `bundle <slot>`."""
USED_EVERY_S = 86_400.0
"""That a bundle is used is noted about this often."""

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Place:
    """A table of the configuration that may name a bundle.

    Attributes:
        slot: the table's name.
        path: what it names; None: nothing.
    """

    slot: str
    path: Path | None


Places = Sequence[Place]
"""Where a bundle is looked for, the most specific first."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The bundle that judges.

    Attributes:
        slot: where it was found.
        path: the file that the configuration names; None: it is one of the library.
        sha256: of a bundle of the library.
    """

    slot: str
    path: Path | None
    sha256: str | None = None

    @property
    def origin(self) -> str:
        """For error texts."""
        return str(self.path) if self.path is not None else f"{self.sha256} in slot {self.slot}"


class BundleDesk:
    """Finds, checks, keeps and switches bundles; any thread, one change at a time.

    Args:
        station: the station's name.
        tables: slot → the file that the configuration names there, for every table that may name one.
        library: keeps bundles.
        inbox: what was handed in.
        settings: of the library.
        trust: whose bundles are used.
        try_out: loads the bytes of a bundle file, which come from there, in another process; raises BundleError.
        clock: time.
        told: takes what is wrong with a part, None when nothing is any more.
        record: takes a record of what the station does by itself; None: it only looks, and takes nothing back.
    """

    def __init__(
        self,
        *,
        station: str,
        tables: Mapping[str, Path | None],
        library: BundleLibrary,
        inbox: BundleInbox,
        settings: BundleSettings,
        trust: Trust,
        try_out: Callable[[bytes, str], None],
        clock: Clock,
        told: Callable[[str, str | None], object],
        record: Callable[[Outgoing], object] | None,
    ) -> None:
        self._station = station
        self._tables = tables
        self._library = library
        self._inbox = inbox
        self._settings = settings
        self._trust = trust
        self._try_out = try_out
        self._clock = clock
        self._told = told
        self._record = record
        self._passed: set[str] = set()

    # What judges

    def chosen(self, places: Places) -> Chosen:
        """The bundle that is looked for in these places.

        Raises:
            ModelError: none of them names one.
        """
        index = self._index()
        for place in places:
            if (active := index.active(place.slot)) is not None:
                return Chosen(place.slot, None, active)
            if place.path is not None:
                return Chosen(place.slot, place.path)
        raise BundleError(f"no bundle is named in {', '.join(place.slot for place in places)}")

    def concerns(self, slot: str, places: Places) -> bool:
        """Whether a switch in a slot changes what is found in these places."""
        index = self._index()
        for place in places:
            if place.slot == slot:
                return True
            if index.active(place.slot) is not None or place.path is not None:
                return False
        return False

    def load(self, places: Places, load: Callable[[bytes, str, Trust], Loaded]) -> Loaded:
        """Read the bundle that judges, and load it; keep it in the library when it could be loaded.

        Args:
            places: where it is looked for.
            load: checks bytes from there against the trusted keys, and loads them; raises ModelError.

        Raises:
            ModelError: it cannot be used, and there was nothing to go back to.
        """
        while True:
            chosen = self.chosen(places)
            try:
                data = self._read(chosen)
                loaded = load(data, chosen.origin, self._trust)
            except BundleLocked:
                raise
            except ModelError as exc:
                if chosen.sha256 is None or not self.take_back(chosen.slot, chosen.sha256, str(exc)):
                    raise
                continue
            self._passed.add(hashlib.sha256(data).hexdigest())
            self._keep(data, chosen.origin)
            self._show(chosen.slot)
            return loaded

    def try_out(self, places: Places) -> None:
        """Load the bundle that judges in another process, unless these very bytes have passed there.

        Raises:
            ModelError: it cannot be used.
        """
        chosen = self.chosen(places)
        data = self._read(chosen)
        open_members(data, chosen.origin, self._trust)
        self._pass(data, chosen.origin)

    def fails_on_frames(self, places: Places, sha256: str, frames: int) -> str | None:
        """The model of a bundle failed on so many frames in a row: take the bundle back if that is too many.

        Returns:
            The slot that was switched; None: none was.
        """
        if frames < self._settings.faults_in_a_row:
            return None
        chosen = self.chosen(places)
        reason = f"its model failed on {frames} frames in a row"
        if chosen.sha256 != sha256 or not self.take_back(chosen.slot, sha256, reason):
            return None
        return chosen.slot

    def take_back(self, slot: str, sha256: str, reason: str) -> bool:
        """Make active again what was before a bundle that does not do; False where that is not so any more."""
        if self._record is None or self._index().active(slot) != sha256:
            return False
        now = self._clock.now()
        try:
            before = self._library.index()
            after = self._library.change(
                lambda index: index.rolled_back(slot, now, reason) if index.active(slot) == sha256 else index
            )
        except (StorageError, BundleError) as exc:
            self._told(f"bundle {slot}", f"{reason}; it cannot be taken back: {exc}")
            return False
        result = self._switched(slot, before, after, {}, at_next_start=False)
        self._record(
            wire.outgoing_response(
                Response(
                    id=uuid7(int(now.timestamp() * 1e3)),
                    station=self._station,
                    verb=Verb.ROLLBACK_BUNDLE.value,
                    transaction=None,
                    at=now,
                    origin=Origin.STATION,
                    accepted=True,
                    request={"slot": slot, "reason": reason},
                    result=result,
                )
            )
        )
        self._show(slot)
        return True

    # What commands do

    def install(self, sha256: str, *, encrypt: bool) -> InstallResult:
        """Take what was handed in into the library, when it has passed every check.

        Raises:
            ModelError: it is refused; the library is as it was.
            StorageError: the library cannot be written; it is as it was.
        """
        try:
            data = self._inbox.handed_in(sha256)
            origin = f"{sha256[:12]}…"
            contents = open_members(data, origin, self._trust)
            entry = self._entry(contents, head_of(contents, origin), came="installed")
            self._pass(data, origin)
            sealed = encrypt or self._settings.encrypt
            entry = self._library.add(data, entry.model_copy(update={"sealed": sealed}))
        finally:
            self._inbox.discard(sha256)
        return InstallResult(installed=_ref(entry), task=entry.task, signed_by=contents.signed_by, sealed=entry.sealed)

    def prepare(self, slot: str, reference: str, *, other_task: bool) -> Entry:
        """Look whether a bundle of the library may become active in a slot, and try it out.

        Raises:
            BundleError: there is no such bundle, or it cannot be used there.
            BundleLocked: it is encrypted, and the key is missing or another one.
            Refusal: there is no such slot.
        """
        self._check_slot(slot)
        entry = self._library.index().find(reference)
        data = self._library.read(entry.sha256)
        head = head_of(open_members(data, entry.shown, self._trust), entry.shown)
        process = slot.startswith("process.")
        if head.is_process != process:
            kind = "readings" if head.is_process else "pictures"
            raise BundleError(f"bundle {entry.shown}: is for {kind} (task {head.task}), not for the slot {slot}")
        if process and self._tables[slot] is None:
            raise Refusal(f"slot {slot}: the configuration names no bundle there, so nothing watches the risk")
        former = self._task_in(slot)
        if former is not None and former != head.task and not other_task:
            raise BundleError(
                f"bundle {entry.shown}: has the task {head.task}, slot {slot} judges with the task {former}; "
                "--other-task (other_task) allows it"
            )
        self._pass(data, entry.shown)
        return entry

    def switch(self, slot: str, sha256: str | None) -> tuple[Index, Index]:
        """Make a bundle active in a slot, or with None what was before; durable when it returns.

        Returns:
            The index before and after.

        Raises:
            BundleError: it is active already, or there is nothing to go back to.
            StorageError: it cannot be written; all is as it was.
            Refusal: there is no such slot.
        """
        self._check_slot(slot)
        now = self._clock.now()
        before = self._library.index()
        after = self._library.change(
            lambda index: index.rolled_back(slot, now) if sha256 is None else index.activated(slot, sha256, now)
        )
        self._show(slot)
        return before, after

    def undo(self, slot: str, before: Index) -> None:
        """Put a slot back as it was before a switch that did not do.

        Raises:
            StorageError: it cannot be written.
        """
        was = before.slots.get(slot) or Slot(since=self._clock.now())
        self._library.change(lambda index: index.model_copy(update={"slots": {**index.slots, slot: was}}))
        self._show(slot)

    def switched(self, slot: str, both: tuple[Index, Index], models: Mapping[str, ModelRef]) -> SwitchResult:
        """What to answer to a switch."""
        return self._switched(slot, *both, models, at_next_start=not models)

    def _switched(
        self, slot: str, before: Index, after: Index, models: Mapping[str, ModelRef], *, at_next_start: bool
    ) -> SwitchResult:
        def ref(index: Index) -> ModelRef | None:
            active = index.active(slot)
            return _ref(index.entries[active]) if active is not None and active in index.entries else None

        return SwitchResult(
            slot=slot, active=ref(after), former=ref(before), models=models, at_next_start=at_next_start
        )

    def _check_slot(self, slot: str) -> None:
        if slot not in self._tables:
            raise Refusal(f"slot {slot}: the configuration has no such table; there are {', '.join(self._tables)}")

    def _task_in(self, slot: str) -> str | None:
        """The task of what judges in a slot now; None where that cannot be told."""
        path, active = self._tables[slot], self._index().active(slot)
        if active is None and path is None:
            return None
        chosen = Chosen(slot, None, active) if active is not None else Chosen(slot, path)
        try:
            return head_of(open_members(self._read(chosen), chosen.origin), chosen.origin).task
        except ModelError:
            return None

    def _read(self, chosen: Chosen) -> bytes:
        if chosen.sha256 is not None:
            return self._library.read(chosen.sha256)
        assert chosen.path is not None
        return read_file(chosen.path)

    def _pass(self, data: bytes, origin: str) -> None:
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in self._passed:
            self._try_out(data, origin)
            self._passed.add(sha256)

    def _index(self) -> Index:
        """The library's index; where it cannot be read, the configuration alone counts, and `status` says so."""
        try:
            index = self._library.index()
        except StorageError as exc:
            self._told(LIBRARY, str(exc))
            return Index()
        return index

    def _keep(self, data: bytes, origin: str) -> None:
        """Keep what judges, so that its verdicts can be judged again."""
        if self._record is None:
            return
        sha256, now = hashlib.sha256(data).hexdigest(), self._clock.now()
        try:
            known = self._library.index().entries.get(sha256)
            if known is None:
                contents = open_members(data, origin, self._trust)
                entry = self._entry(contents, head_of(contents, origin), came="used")
                self._library.add(data, entry.model_copy(update={"sealed": self._settings.encrypt}))
            elif (now - known.used_at).total_seconds() > USED_EVERY_S:
                self._library.change(lambda index: _used(index, sha256, now))
        except (StorageError, ModelError) as exc:
            self._told(LIBRARY, f"{exc}; a bundle that judges is not kept")
        else:
            self._told(LIBRARY, None)

    def _entry(self, contents: Contents, head: Head, *, came: str) -> Entry:
        now = self._clock.now()
        return Entry.model_validate(
            {
                "sha256": contents.sha256,
                "name": head.name,
                "version": head.version,
                "task": head.task,
                "size_bytes": 0,
                "signed_by": contents.signed_by,
                "came": came,
                "at": now,
                "used_at": now,
            }
        )

    def _show(self, slot: str) -> None:
        """Say in `status` that a bundle was taken back, as long as nothing was activated in its place."""
        index = self._index()
        found = index.slots.get(slot)
        gone: TakenBack | None = found.taken_back if found is not None else None
        if gone is None:
            self._told(f"bundle {slot}", None)
            return
        what = index.entries[gone.sha256].shown if gone.sha256 in index.entries else gone.sha256[:12]
        self._told(f"bundle {slot}", f"{what} was taken back, it judges with {index.shown(slot)} again: {gone.reason}")


def _ref(entry: Entry) -> ModelRef:
    return ModelRef(name=entry.name, version=entry.version, sha256=entry.sha256)


def _used(index: Index, sha256: str, now: object) -> Index:
    entry = index.entries.get(sha256)
    return index if entry is None else index.with_entry(entry.model_copy(update={"used_at": now}))

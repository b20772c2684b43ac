"""What a library of bundles holds, which is active where, and what could be gone back to. Pure: no clock, no disk.

A *slot* is named after the table of the configuration whose key `bundle` it stands in for: `model`, `camera.<name>`,
`product.<name>`, `process.<group>`. A slot in which nothing was ever activated leaves the configuration as it is::

    event        what the slot becomes
    activate B   B, with what was before remembered (at most `REMEMBERED`, the last one is the last known good)
    roll back    the last one remembered; an error where there is none
    B faults     as roll back, with the reason, and B is marked: it is activated again only by name

What was before a slot's first activation is the configuration itself; it is remembered as None.
"""

import re
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Literal

from pydantic import Field

from station.errors import BundleError
from station.messages import Message

REMEMBERED = 8
SLOT = re.compile(r"model|(camera|product|process)\.[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_SHORTEST = 6
"""Of a sha256, so many digits name a bundle at least."""
_SHOWN = 12


class Entry(Message):
    """A bundle in the library.

    Attributes:
        sha256: of the plain file, hexadecimal.
        task: as its manifest says.
        size_bytes: what it takes on the disk.
        sealed: it is encrypted.
        signed_by: id of the trusted key that signed it when it came.
        came: it was `installed` by command, or a station `used` it from a file.
        at: when it came; used_at: when it was last loaded.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: str
    version: str
    task: str
    size_bytes: int = Field(ge=0)
    sealed: bool = False
    signed_by: str | None = None
    came: Literal["installed", "used"]
    at: datetime
    used_at: datetime

    @property
    def shown(self) -> str:
        """In one line, for people."""
        return f"{self.name} {self.version} ({self.sha256[:_SHOWN]})"


class TakenBack(Message):
    """An activated bundle that did not do."""

    sha256: str
    reason: str
    at: datetime


class Slot(Message):
    """What judges in place of a configured bundle.

    Attributes:
        active: sha256; None: what the configuration names.
        before: what could be gone back to, the last known good one at the end.
        since: when it was switched.
        taken_back: what was active, and was taken back because it faulted; None once something is activated again.
    """

    active: str | None = None
    before: tuple[str | None, ...] = ()
    since: datetime
    taken_back: TakenBack | None = None


class Index(Message):
    """The library's contents; sha256 → entry, name → slot."""

    schema_version: Literal[1] = 1
    entries: Mapping[str, Entry] = Field(default_factory=dict)
    slots: Mapping[str, Slot] = Field(default_factory=dict)

    def active(self, slot: str) -> str | None:
        """The sha256 of what is active in a slot; None: what the configuration names."""
        found = self.slots.get(slot)
        return found.active if found is not None else None

    def find(self, reference: str) -> Entry:
        """The bundle that is meant by a name, a name and version (`boards:2`), or the beginning of a sha256.

        Raises:
            BundleError: there is none, or more than one.
        """
        name, _, version = reference.partition(":")
        found = [one for one in self.entries.values() if one.name == name and (not version or one.version == version)]
        if not found and len(reference) >= _SHORTEST:
            found = [one for one in self.entries.values() if one.sha256.startswith(reference.lower())]
        if len(found) == 1:
            return found[0]
        known = ", ".join(one.shown for one in (found or self.entries.values())) or "nothing"
        if found:
            raise BundleError(f"bundle {reference}: that could be {known}; give the sha256")
        raise BundleError(f"bundle {reference}: the library does not hold it; it holds {known}")

    def with_entry(self, entry: Entry) -> "Index":
        """With another bundle in it, or another form of one."""
        return self.model_copy(update={"entries": {**self.entries, entry.sha256: entry}})

    def activated(self, slot: str, sha256: str, at: datetime) -> "Index":
        """With this bundle active in a slot.

        Raises:
            BundleError: it is active there already.
        """
        old = self.slots.get(slot) or Slot(since=at)
        if old.active == sha256:
            raise BundleError(f"slot {slot}: {self.entries[sha256].shown} is active already")
        return self._with_slot(slot, Slot(active=sha256, before=(*old.before, old.active)[-REMEMBERED:], since=at))

    def rolled_back(self, slot: str, at: datetime, reason: str | None = None) -> "Index":
        """With what was active before active again; `reason`: why the station itself takes the bundle back.

        Raises:
            BundleError: there is nothing to go back to.
        """
        old = self.slots.get(slot)
        if old is None or not old.before:
            raise BundleError(f"slot {slot}: there is nothing to go back to: it judges with {self.shown(slot)}")
        *before, active = old.before
        gone = TakenBack(sha256=old.active, reason=reason, at=at) if reason is not None and old.active else None
        return self._with_slot(slot, Slot(active=active, before=tuple(before), since=at, taken_back=gone))

    def shown(self, slot: str) -> str:
        """What is active in a slot, for people."""
        active = self.active(slot)
        if active is None:
            return "what the configuration names"
        return self.entries[active].shown if active in self.entries else active[:_SHOWN]

    def needed(self) -> frozenset[str]:
        """What is active or could be gone back to."""
        slots = self.slots.values()
        return frozenset(sha for slot in slots for sha in (slot.active, *slot.before) if sha is not None)

    def pruned(self, max_bytes: int, keep: Collection[str]) -> "tuple[Index, tuple[str, ...]]":
        """Without those longest unused, as many as are needed; also returns what has to go."""
        left = dict(self.entries)
        kept = self.needed() | set(keep)
        gone = []
        for entry in sorted(self.entries.values(), key=lambda one: one.used_at):
            if sum(one.size_bytes for one in left.values()) <= max_bytes:
                break
            if entry.sha256 not in kept:
                del left[entry.sha256]
                gone.append(entry.sha256)
        return self.model_copy(update={"entries": left}), tuple(gone)

    def _with_slot(self, name: str, slot: Slot) -> "Index":
        return self.model_copy(update={"slots": {**self.slots, name: slot}})

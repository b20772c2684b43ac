"""What the commands on the library of bundles do, to a running station and to one that stands still."""

from collections.abc import Callable, Mapping
from uuid import UUID

from station.bundle_desk import BundleDesk
from station.commander import Handler, Refusal, handles
from station.errors import ModelError
from station.messages import InstallResult, ModelRef, SwitchResult, Verb
from station.requests import ActivateBundleRequest, InstallBundleRequest, RollbackBundleRequest


class BundleOperations:
    """Carries the commands out.

    Args:
        desk: finds, checks and switches bundles.
        follow: has every camera that a switch in this slot concerns judge by it, for this command, all or none; returns
            what they judge with, nothing while the station stands still. Raises ModelError, Refusal.
    """

    def __init__(
        self,
        desk: BundleDesk,
        follow: Callable[[str, UUID], Mapping[str, ModelRef]],
    ) -> None:
        self._desk = desk
        self._follow = follow

    def handlers(self) -> Mapping[Verb, Handler]:
        """Who carries out which verb."""
        return {
            Verb.INSTALL_BUNDLE: handles(InstallBundleRequest, self._install),
            Verb.ACTIVATE_BUNDLE: handles(ActivateBundleRequest, self._activate),
            Verb.ROLLBACK_BUNDLE: handles(RollbackBundleRequest, self._roll_back),
        }

    def _install(self, request: InstallBundleRequest, _: UUID) -> InstallResult:
        return self._desk.install(request.bundle, encrypt=request.encrypt)

    def _activate(self, request: ActivateBundleRequest, command: UUID) -> SwitchResult:
        entry = self._desk.prepare(request.slot, request.bundle, other_task=request.other_task)
        return self._switch(request.slot, entry.sha256, command)

    def _roll_back(self, request: RollbackBundleRequest, command: UUID) -> SwitchResult:
        return self._switch(request.slot, None, command)

    def _switch(self, slot: str, sha256: str | None, command: UUID) -> SwitchResult:
        """Durable first, then between two frames of each camera concerned; back again when one of them cannot."""
        both = self._desk.switch(slot, sha256)
        try:
            models = self._follow(slot, command)
        except (ModelError, Refusal) as exc:
            self._desk.undo(slot, both[0])
            raise Refusal(f"nothing was switched: {exc}") from exc
        if sha256 is not None and any(model.sha256 != sha256 for model in models.values()):
            raise Refusal("it was taken back at once; `status` says why")
        return self._desk.switched(slot, both, models)

"""Which model and which product the cameras judge with: loaded at the start, loaded anew, and changed over.

Theory of operation. There is one product at a time on the line, for all cameras. The bundles of the others are loaded
ahead, each first in a process of its own, so that a changeover loads nothing::

    state      event                                       what happens                              next state
    RUNNING    order, the product cannot be had            refused, a fault in `status`              RUNNING
    RUNNING    order                                       each camera: what it captures from now    CHANGING
                                                           on is `unknown` (changeover)
    CHANGING   the cameras have taken their controls       noted for the next start, then each       RUNNING, new one
                                                           camera judges with the new product
    CHANGING   a camera has not                            all are set back; those that had nothing  BACK
                                                           to set are judged again
    BACK       a camera has its former controls            what it captures from now on is judged    BACK
                                                           again
    BACK       the last one has, or it takes too long      answered: refused                         RUNNING, former one
    CHANGING,  order                                       waits for the end of this changeover      as it was
    BACK

A frame is judged by what held when it was captured, however long it waited (`station.succession`). The thread that
looks at commands changes over; one other thread loads ahead.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from station.bundle_desk import BundleDesk
from station.camera_line import BundleKey, CameraLine, CameraProduct
from station.commander import Later, Refusal
from station.errors import ModelError, StorageError
from station.faults import FaultBoard
from station.messages import Adjustment, Changeover, ChangeoverResult, ModelRef
from station.pipeline import LoadedModel, Setup
from station.ports import Clock, ProductStore
from station.requests import ChangeProductRequest

logger = logging.getLogger(__name__)

PRODUCT = "product"
"""What a failed changeover is called in `status`; a product that cannot be had is `product <name>`."""
LOOK_AGAIN_S = 2.0
"""How often a bundle that could not be loaded ahead is looked at; it is tried again when its file has changed."""
ORDER_WITHIN_S = 600.0
"""An order that could not begin for this long, because of others before it, is given up."""
CHANGE_WITHIN_S = 60.0
"""A changeover that takes longer is given up: a bundle that is still loaded, a camera that must be opened anew."""


@dataclass(slots=True)
class _Change:
    """A changeover under way.

    Attributes:
        product: what is to run.
        former: what ran before.
        command, by: who wants it.
        began_s: when it began, or when it began to go back.
        adjusting: the cameras that take other controls.
        failed: why it goes back; None: it does not.
        back: of those, the ones that do not have their former controls yet.
    """

    product: str
    former: str
    command: UUID
    by: str | None
    began_s: float
    adjusting: Mapping[str, Adjustment]
    failed: Refusal | None = None
    back: dict[str, Adjustment] = field(default_factory=dict)


class ProductLine:
    """What the cameras judge with.

    Args:
        lines: the cameras, by name.
        numbers: product → its number; empty: there are no products.
        start: product that runs first where none is noted; None: the first of `numbers`.
        store: notes which product runs.
        faults: told of what cannot be loaded or changed over to.
        clock: time.
        changed: called when another model or product judges.
        bundles: finds and switches bundles.
    """

    def __init__(
        self,
        *,
        lines: Mapping[str, CameraLine],
        numbers: Mapping[str, int | None],
        start: str | None,
        store: ProductStore,
        faults: FaultBoard,
        clock: Clock,
        changed: Callable[[], None],
        bundles: BundleDesk,
    ) -> None:
        self._lines = lines
        self._numbers = numbers
        self._store = store
        self._faults = faults
        self._clock = clock
        self._changed = changed
        self._bundles = bundles
        self._switching = threading.Lock()
        self._current = (start or next(iter(numbers))) if numbers else None
        self._lock = threading.Lock()
        self._models: dict[tuple[str, BundleKey], LoadedModel] = {}
        self._why_not: dict[tuple[str, BundleKey], str] = {}
        self._change: _Change | None = None

    @property
    def product(self) -> str | None:
        """The product that runs; None: there are none."""
        return self._current

    def begin(self) -> None:
        """Go on with the product that ran last, and load what it is judged with."""
        if self._numbers:
            try:
                noted = self._store.load()
            except StorageError as exc:
                self._faults.set(PRODUCT, f"{exc}; {self._current} runs, is that right?")
            else:
                if noted is not None and noted not in self._numbers:
                    self._faults.set(PRODUCT, f"{noted}, which ran last, has no table any more; {self._current} runs")
                elif noted is not None:
                    self._current = noted
            logger.info("product %s runs", self._current)
        for line in self._lines.values():
            part = line.part.products[self._current]
            line.use(Setup(None, part.recipe, controls=part.controls))
            if part.controls:
                line.part.source.adjust(part.controls, must=True)
            self._load(line)

    def load_missing(self) -> None:
        """Try again to load what the present product lacks; a command that switches bundles loads them itself."""
        if not self._switching.acquire(blocking=False):
            return
        try:
            for line in self._lines.values():
                if line.setup.loaded is None:
                    self._load(line)
        finally:
            self._switching.release()

    def take_failing_back(self) -> None:
        """Have the bundle taken back that was activated and whose model then failed on too many frames."""
        for line in self._lines.values():
            sha256, frames = line.failing
            if not frames or not self._switching.acquire(blocking=False):
                continue
            try:
                slot = self._bundles.fails_on_frames(line.part.products[self._current].bundle.places, sha256, frames)
                if slot is not None:
                    self._put_all(self._concerned(slot))
            except ModelError as exc:
                self._faults.set(f"model {line.name}", str(exc))
            finally:
                self._switching.release()

    def switched(self, slot: str, command: UUID) -> Mapping[str, ModelRef]:
        """Judge by what is active in a slot of the library now, for this command, under every product that it concerns.

        Raises:
            ModelError: a bundle cannot be used, or does not fit a product; nothing has changed.
            Refusal: the line is changing over.
        """
        if self._change is not None:
            raise Refusal(f"the line is changing over to {self._change.product}; try again later")
        with self._switching:
            return self._put_all(self._concerned(slot), command)

    def _concerned(self, slot: str) -> list[tuple[CameraLine, BundleKey]]:
        """The models that a switch in a slot concerns, each once."""
        return [
            (line, key)
            for line in self._lines.values()
            for key in dict.fromkeys(part.bundle for part in line.part.products.values())
            if self._bundles.concerns(slot, key.places)
        ]

    def _put_all(
        self, concerned: Sequence[tuple[CameraLine, BundleKey]], command: UUID | None = None
    ) -> Mapping[str, ModelRef]:
        """Load these anew; the old ones judge until all of the new ones can."""
        loaded = []
        for line, key in concerned:
            parts = [part for part in line.part.products.values() if part.bundle == key]
            if command is not None:
                # What judged before, and is taken back to, must judge at once.
                parts[0].try_out()
            model = replace(parts[0].load(), command=command)
            for part in parts:
                part.recipe.check(model.manifest.labels, f"{model.ref.name} {model.ref.version}")
            line.prepare(model)
            loaded.append((line, key, model))
        for line, key, model in loaded:
            self._put(line, key, model)
        self._changed()
        return {line.name: model.ref for line, _, model in loaded}

    def _load(self, line: CameraLine) -> None:
        part = line.part.products[self._current]
        try:
            loaded = part.load()
            part.recipe.check(loaded.manifest.labels, f"{loaded.ref.name} {loaded.ref.version}")
        except ModelError as exc:
            with self._lock:
                self._why_not[line.name, part.bundle] = str(exc)
            self._faults.set(f"model {line.name}", str(exc))
            return
        self._put(line, part.bundle, loaded)
        logger.info(
            "camera %s judges with %s %s", line.name, loaded.ref.name, loaded.ref.version, extra={"camera": line.name}
        )

    def _put(self, line: CameraLine, bundle: BundleKey, loaded: LoadedModel) -> None:
        """Take a model for a bundle, and judge with it at once where that is the present product's."""
        with self._lock:
            self._models[line.name, bundle] = loaded
            self._why_not.pop((line.name, bundle), None)
            judges = line.part.products[self._current].bundle == bundle
            if judges:
                line.use(replace(line.setup, loaded=loaded))
        if judges:
            self._faults.set(f"model {line.name}", None)

    def reload(self, cameras: Sequence[str], command: UUID) -> Mapping[str, ModelRef]:
        """Load these cameras' bundles anew for this command; the old ones judge until all of the new ones can.

        Raises:
            ModelError: one cannot be used; nothing has changed.
            Refusal: the line is changing over.
        """
        if self._change is not None:
            raise Refusal(f"the line is changing over to {self._change.product}; try again later")
        lines = [self._lines[name] for name in cameras]
        loaded = []
        for line in lines:
            part = line.part.products[self._current]
            part.try_out()
            model = replace(part.load(), command=command)
            part.recipe.check(model.manifest.labels, f"{model.ref.name} {model.ref.version}")
            line.prepare(model)
            loaded.append((line, part.bundle, model))
        for line, bundle, model in loaded:
            self._put(line, bundle, model)
        self._changed()
        return {line.name: model.ref for line, _, model in loaded}

    # The thread that loads ahead

    def load_ahead(self, stop: threading.Event) -> None:
        """Load what the other products are judged with, and look again and again whether all can be had."""
        tried: dict[tuple[str, BundleKey], tuple[object, ...]] = {}
        while not stop.is_set():
            for product in self._numbers:
                for line in self._lines.values():
                    if not stop.is_set():
                        self._load_one_ahead(line, product, tried)
                faults = [why for line in self._lines.values() if (why := self._why_not_had(line, product))]
                self._faults.set(f"{PRODUCT} {product}", "; ".join(dict.fromkeys(faults)) or None)
            stop.wait(LOOK_AGAIN_S)

    def _load_one_ahead(
        self, line: CameraLine, product: str, tried: dict[tuple[str, BundleKey], tuple[object, ...]]
    ) -> None:
        part = line.part.products[product]
        known = (line.name, part.bundle)
        with self._lock:
            present = line.part.products[self._current].bundle
            if known in self._models or part.bundle == present:
                return
        stamp = _stamp(part.bundle)
        if tried.get(known) == stamp:
            return
        tried[known] = stamp
        try:
            part.try_out()
            loaded = part.load()
        except ModelError as exc:
            with self._lock:
                self._why_not[known] = str(exc)
            return
        line.prepare(loaded)
        self._put(line, part.bundle, loaded)
        logger.info("camera %s can judge with %s %s", line.name, loaded.ref.name, loaded.ref.version)

    def _why_not_had(self, line: CameraLine, product: str) -> str | None:
        """Why a camera cannot judge this product, as far as is known; None: it can, or its model is being loaded."""
        part = line.part.products[product]
        with self._lock:
            loaded = self._models.get((line.name, part.bundle))
            if loaded is None:
                return self._why_not.get((line.name, part.bundle))
        return _misfit(part, loaded)

    # The thread that looks at commands

    def change(self, request: ChangeProductRequest, command: UUID) -> ChangeoverResult | Later:
        """Change over; an order that comes during a changeover waits for its end.

        Raises:
            Refusal: it cannot be done; the former product goes on.
        """
        product = self._asked_for(request)
        began_s = self._clock.monotonic_s()
        change: _Change | None = None

        def advance() -> ChangeoverResult | None:
            nonlocal change
            if change is None:
                if self._change is not None:
                    return None
                if product == self._current:
                    self._faults.set(PRODUCT, None)
                    return ChangeoverResult(product=product, former=product, took_ms=0.0)
                change = self._begin(product, command, request.by)
            if change.failed is not None:
                self._look_back(change, change.failed)
                return None
            try:
                return self._look(change)
            except Refusal as exc:
                self._go_back(change)
                change.failed = exc
                self._look_back(change, exc)
                return None
            except Exception:
                # Whatever it is, the line must not stay between two products.
                if self._change is change:
                    self._go_back(change)
                    self._end(change)
                raise

        done = advance()
        if done is not None:
            return done
        # `_look` gives up long before: it has to put back what was changed.
        return Later(advance, began_s + ORDER_WITHIN_S, f"other changeovers took longer than {ORDER_WITHIN_S:g} s")

    def _begin(self, product: str, command: UUID, by: str | None) -> _Change:
        former = self._current
        assert former is not None
        for line in self._lines.values():
            if why := self._why_not_had(line, product):
                raise self._refused(product, former, why)
        for line in self._lines.values():
            line.begin_changeover()
        self._change = _Change(product, former, command, by, self._clock.monotonic_s(), self._adjust(product))
        return self._change

    def _asked_for(self, request: ChangeProductRequest) -> str:
        if not self._numbers:
            raise Refusal("there is no product: the configuration has no table [product.<name>]")
        if request.product is not None:
            if request.product not in self._numbers:
                raise Refusal(f"there is no product {request.product}; there are {', '.join(self._numbers)}")
            return request.product
        for product, number in self._numbers.items():
            if number == request.number:
                return product
        numbered = ", ".join(f"{number} = {product}" for product, number in self._numbers.items() if number is not None)
        raise Refusal(f"no product has the number {request.number}; there are {numbered or 'no numbers'}")

    def _adjust(self, product: str) -> dict[str, Adjustment]:
        """Have the cameras take the product's controls where they differ from those of the present one."""
        return {
            name: line.part.source.adjust(wanted)
            for name, line in self._lines.items()
            if (wanted := line.part.products[product].controls) != line.part.products[self._current].controls
        }

    def _look(self, change: _Change) -> ChangeoverResult | None:
        """See how far the changeover is; None: not everything is ready yet.

        Raises:
            Refusal: it failed, and the line must go back.
        """
        loading = False
        for line in self._lines.values():
            if why := self._why_not_had(line, change.product):
                raise self._refused(change.product, change.former, why)
            with self._lock:
                loading |= (line.name, line.part.products[change.product].bundle) not in self._models
        refused = [f"camera {name}: {one.refused}" for name, one in change.adjusting.items() if one.refused]
        if refused:
            raise self._refused(change.product, change.former, "; ".join(refused))
        waiting = [
            f"camera {name} has not taken its controls" for name, one in change.adjusting.items() if not one.done
        ]
        if loading:
            waiting.append("its bundle is not loaded")
        if not waiting:
            return self._complete(change)
        if self._clock.monotonic_s() - change.began_s > CHANGE_WITHIN_S:
            why = f"within {CHANGE_WITHIN_S:g} s {' and '.join(waiting)}"
            raise self._refused(change.product, change.former, why)
        return None

    def _complete(self, change: _Change) -> ChangeoverResult:
        fault = None
        try:
            # Before it is judged with: whoever has seen a verdict under the new product sees it after a restart, too.
            self._store.save(change.product)
        except StorageError as exc:
            fault = f"{change.product} runs, but a restart would begin with the one noted before: {exc}"
        told = Changeover(former=change.former, command=change.command, by=change.by)
        with self._lock:
            for line in self._lines.values():
                part = line.part.products[change.product]
                line.complete_changeover(
                    Setup(self._models[line.name, part.bundle], part.recipe, told, controls=part.controls)
                )
            self._current = change.product
        self._change = None
        took_ms = round((self._clock.monotonic_s() - change.began_s) * 1e3, 3)
        logger.warning("product %s runs in place of %s, after %.1f ms", change.product, change.former, took_ms)
        for line in self._lines.values():
            self._faults.set(f"model {line.name}", None)
        self._faults.set(PRODUCT, fault)
        self._changed()
        return ChangeoverResult(product=change.product, former=change.former, took_ms=took_ms)

    def _refused(self, product: str, former: str, why: str) -> Refusal:
        told = f"the changeover to {product} failed and {former} goes on: {why}"
        self._faults.set(PRODUCT, told)
        return Refusal(told)

    def _go_back(self, change: _Change) -> None:
        """Have the cameras take their former controls again; those that had none to take are judged at once."""
        change.began_s = self._clock.monotonic_s()
        for name, line in self._lines.items():
            if name in change.adjusting:
                # One that cannot go back is closed and opened anew until it can: it delivers nothing until then.
                controls = line.part.products[self._current].controls
                change.back[name] = line.part.source.adjust(controls, must=True)
            else:
                line.abandon_changeover()

    def _look_back(self, change: _Change, failed: Refusal) -> None:
        """See how far the cameras are on their way back; a picture under other controls is not judged meanwhile.

        Raises:
            Refusal: the former product judges again.
        """
        for name in [name for name, one in change.back.items() if one.done]:
            del change.back[name]
            self._lines[name].abandon_changeover()
        if not change.back or self._clock.monotonic_s() - change.began_s > CHANGE_WITHIN_S:
            self._end(change)
            raise failed

    def _end(self, change: _Change) -> None:
        """End a changeover that failed; a camera that is not back by now delivers nothing until it is."""
        self._change = None
        for name in change.back:
            self._lines[name].abandon_changeover()


def _misfit(part: CameraProduct, loaded: LoadedModel) -> str | None:
    try:
        part.recipe.check(loaded.manifest.labels, f"{loaded.ref.name} {loaded.ref.version}")
    except ModelError as exc:
        return str(exc)
    return None


def _stamp(bundle: BundleKey) -> tuple[object, ...]:
    """Changes when one of the files does."""
    stamps: list[object] = []
    for path in (*(place.path for place in bundle.places), bundle.reference):
        try:
            seen = path.stat() if path is not None else None
        except OSError as exc:
            stamps.append(exc.errno)
        else:
            stamps.append((seen.st_mtime_ns, seen.st_size, seen.st_ino) if seen else None)
    return tuple(stamps)

"""What `station check`, `station doctor` and `station support-bundle` look at: one Finding for each thing."""

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from station.adapters.camera_process import CameraProcess, plan_for
from station.adapters.embedded_broker import check_port
from station.adapters.mqtt_subscriber import Subscriber
from station.adapters.system_clock import SystemClock
from station.bundle_desk import BundleDesk, Places
from station.camera_line import BundleKey, CameraProduct
from station.commands.assembly import (
    camera_products,
    load_calibration,
    load_process_bundle,
    make_desk,
    open_journal,
    process_places,
    wanted_points,
)
from station.commands.camera_factory import make_camera
from station.commands.exit_codes import ExitCode
from station.commands.order_factory import MODBUS, MQTT, make_orders
from station.commands.part_id_factory import make_part_id_source
from station.commands.sensor_factory import make_reject, make_sensors
from station.commands.station_broker import StationBroker
from station.errors import (
    BundleLocked,
    CameraError,
    ConfigurationError,
    JournalInUse,
    LogError,
    ModelError,
    OutputError,
    ProtocolError,
    SensorError,
)
from station.manifest import Manifest
from station.messages import CameraEvent, CameraStateName, Capture, Frame, Ordered, Reason, SourceStateName
from station.order_line import order_in
from station.part_id_messages import SeenId
from station.part_id_settings import JoinedPartId, ModbusRtuPartId, MqttPartId, PartIdSettings
from station.process import channels_of, step_of
from station.process_messages import Readings, SourceEvent
from station.process_settings import ProcessSettings
from station.recipe import Recipe
from station.reject_settings import RejectSettings, RtuReject
from station.sensor_settings import ModbusRtuSensors, MqttSensors, SensorSettings
from station.settings import CameraSettings, DeviceCamera, Settings

CAMERA_WITHIN_S = 10.0
"""How long a camera has for its first picture, beyond its own read deadline."""
SENSORS_WITHIN_S = 10.0
"""How long a source has for its first row."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about one thing.

    Attributes:
        what: the thing.
        text: one line; where something is wrong it says what to do.
        code: the exit code of this failure; OK when nothing is wrong.
        advice: it works, but someone should act.
    """

    what: str
    text: str = ""
    code: ExitCode = ExitCode.OK
    advice: bool = False

    @property
    def line(self) -> str:
        """For people, and for `grep ^WRONG`."""
        mark = "WRONG" if self.code is not ExitCode.OK else "note " if self.advice else "ok   "
        return f"{mark} {self.what}{': ' if self.text else ''}{self.text}"


def report(findings: Iterable[Finding]) -> ExitCode:
    """Print each finding as it comes; return the code of the first failure."""
    first = ExitCode.OK
    for finding in findings:
        print(finding.line, flush=True)
        if first is ExitCode.OK:
            first = finding.code
    return first


def data_folder(settings: Settings) -> tuple[Finding, bool]:
    """Open the journal; the second value says whether a running station keeps it.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    what = f"data folder {settings.station.data_dir}"
    try:
        with as_owner(settings.station.data_dir), open_journal(settings, SystemClock()):
            return Finding(what), False
    except ConfigurationError as exc:
        if isinstance(exc.__cause__, JournalInUse):
            return Finding(what, "in use by the running station"), True
        raise


@contextmanager
def as_owner(folder: Path) -> Iterator[None]:
    """What root creates in the service's folder would lock the service out: act as the folder's owner."""
    if os.geteuid() != 0 or not folder.is_dir():
        yield
        return
    owner, group = folder.stat(), os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def bundles(settings: Settings, only: str | None = None) -> Iterator[Finding]:
    """Load each bundle that would judge, with the reference picture where a camera has one, and replay its golden set.

    With `only`, those of one product.

    Raises:
        ConfigurationError: a trusted key, or the key of the library, cannot be read.
    """
    faults: list[Finding] = []

    def told(what: str, reason: str | None) -> None:
        if reason is not None:
            faults.append(Finding(what, reason, advice=True))

    desk = make_desk(settings, os.environ, SystemClock(), told, None)
    loaded: dict[BundleKey, Manifest] = {}
    for camera in settings.camera:
        for product, part in camera_products(settings, camera, desk).items():
            if only not in (None, product):
                continue
            what = f"bundle {desk.chosen(part.bundle.places).origin}"
            if product is not None:
                what = f"product {product}, camera {camera}, {what}"
            elif part.bundle in loaded:
                continue
            unseen = settings.bundles.key_credential is not None and "CREDENTIALS_DIRECTORY" not in os.environ
            yield _bundle(what, functools.partial(_check_bundle, part, loaded), unseen=unseen)
    for group, process in settings.process.items():
        if process.bundle is not None and only is None:
            yield _process_bundle(group, process, desk, process_places(settings, group))
    yield from dict.fromkeys(faults)


def _bundle(what: str, check: Callable[[], str], *, unseen: bool) -> Finding:
    """What a bundle is worth; `unseen`: only the service is given the key of the library."""
    try:
        return Finding(what, check())
    except BundleLocked as exc:
        return Finding(what, str(exc), ExitCode.OK if unseen else ExitCode.BUNDLE, advice=True)
    except ModelError as exc:
        return Finding(what, str(exc), ExitCode.BUNDLE)


def _process_bundle(group: str, settings: ProcessSettings, desk: BundleDesk, places: Places) -> Finding:
    """Load a process group's bundle, replay its golden sequence, and see that the configuration fits it."""
    what = f"process {group}, bundle {desk.chosen(places).origin}"
    try:
        model = desk.load(places, load_process_bundle)
        channels = channels_of(group, settings, step_of(settings, model), model)
    except ModelError as exc:
        return Finding(what, str(exc), ExitCode.BUNDLE)
    except ConfigurationError as exc:
        return Finding(what, str(exc), ExitCode.CONFIGURATION)
    return Finding(what, f"{model.ref.name} {model.ref.version}, {len(channels)} channels, golden sequence reproduced")


def calibrations(settings: Settings) -> Iterator[Finding]:
    """See whether each camera's calibration can be read and fits its table."""
    for name, camera in settings.camera.items():
        if camera.calibration is not None:
            yield from _calibration(name, camera, camera.calibration, None, _recipes(settings, name))


def _recipes(settings: Settings, camera: str) -> list[Recipe]:
    return [Recipe.of(product, table.of(camera)) for product, table in settings.product.items()]


def _calibration(
    name: str, settings: CameraSettings, folder: Path, seen: Capture | None, recipes: Iterable[Recipe]
) -> Iterator[Finding]:
    """Whether a camera's calibration fits its table and its first picture, if there is one, and serves the products."""
    what = f"calibration {name}"
    calibration = load_calibration(name, settings, folder)
    if seen is not None:
        calibration.see(seen)
    if calibration.problem is not None:
        yield Finding(what, calibration.problem, ExitCode.CALIBRATION)
    else:
        yield Finding(what, calibration.summary)
    if calibration.scale is None:
        for recipe in recipes:
            if lacks := recipe.without_scale(name):
                yield Finding(f"product {recipe.product}, camera {name}", lacks, ExitCode.CALIBRATION)


def cameras(settings: Settings, *, running: bool) -> Iterator[Finding]:
    """Take a picture from each camera, and see whether its calibration fits it.

    Args:
        settings: the whole configuration.
        running: a station holds the devices at this computer.
    """
    for name, camera in settings.camera.items():
        seen: list[Capture] = []
        recipes = _recipes(settings, name)
        yield from _camera(name, camera, seen, recipes, running=running)
        if camera.calibration is not None:
            yield from _calibration(name, camera, camera.calibration, seen[0] if seen else None, recipes)


def _camera(
    name: str, camera: CameraSettings, seen: list[Capture], recipes: Sequence[Recipe], *, running: bool
) -> Iterator[Finding]:
    if running and isinstance(camera, DeviceCamera):
        yield Finding(f"camera {name}", "held by the running station, whose topic `state` tells how it does")
    else:
        check = functools.partial(_check_camera, name, camera, recipes, seen)
        yield _look(f"camera {name}", ExitCode.CAMERA, check)


def broker(settings: Settings, *, running: bool) -> Finding:
    """Log in at the broker; `running`: an embedded one has its port already."""
    if running and settings.broker.embedded:
        return Finding("broker", "embedded in the running station")
    if settings.broker.password_credential is not None and "CREDENTIALS_DIRECTORY" not in os.environ:
        text = "only the service has the credential for the login; its log and the topic `status` tell whether it works"
        return Finding("broker", text, advice=True)
    return _look("broker", ExitCode.BROKER, functools.partial(_check_broker, settings))


def sensors(settings: Settings, *, running: bool) -> Iterator[Finding]:
    """Take one reading from each source; `running`: a station holds the serial ports and an embedded broker."""
    for name, source in settings.sensors.items():
        what = f"sensors {name}"
        of_station = isinstance(source, MqttSensors) and source.broker is None and settings.broker.embedded
        if running and (of_station or isinstance(source, ModbusRtuSensors)):
            yield Finding(what, "held by the running station, whose topic `status` tells how they do")
        elif of_station:
            yield Finding(what, "come through the embedded broker, which runs only within the station", advice=True)
        else:
            yield _look(what, ExitCode.SENSORS, functools.partial(_check_source, name, source, settings))


def part_ids(settings: Settings, *, running: bool) -> Iterator[Finding]:
    """Reach each source that part ids come from; `running`: a station holds the serial ports and an embedded broker."""
    for name, camera in settings.camera.items():
        what, wanted = f"part ids of camera {name}", camera.part_id
        if not isinstance(wanted, JoinedPartId):
            continue
        of_station = isinstance(wanted, MqttPartId) and wanted.broker is None and settings.broker.embedded
        if running and (of_station or isinstance(wanted, ModbusRtuPartId)):
            yield Finding(what, "held by the running station, whose topic `status` tells how they do")
        elif of_station:
            yield Finding(what, "come through the embedded broker, which runs only within the station", advice=True)
        else:
            yield _look(what, ExitCode.SENSORS, functools.partial(_check_part_ids, name, wanted, settings))


def _check_part_ids(name: str, wanted: PartIdSettings, settings: Settings) -> str:
    """Wait until the source of a camera's part ids is reached.

    Raises:
        SensorError: it was not within `SENSORS_WITHIN_S`.
    """
    source = make_part_id_source(name, wanted, _broker_to_look_at(settings))
    assert source is not None
    clock = SystemClock()
    with source:
        until_s = clock.monotonic_s() + SENSORS_WITHIN_S
        while clock.monotonic_s() < until_s:
            match source.read(0.2):
                case SeenId() as seen:
                    return f"{seen.text}" if seen.text is not None else f"something that is no id: {seen.reason}"
                case SourceEvent(state=SourceStateName.DOWN) as event:
                    raise SensorError(event.reason or "delivers nothing")
                case SourceEvent(state=SourceStateName.RUNNING):
                    return "reached, waits for ids"
                case _:
                    continue
    raise SensorError(f"no answer within {SENSORS_WITHIN_S:g} s")


def orders(settings: Settings, *, running: bool) -> Iterator[Finding]:
    """Reach the topic and the register that may call for a product; `running`: a station holds what only one may."""
    wanted = settings.changeover
    if (topic := wanted.mqtt) is not None:
        of_station = topic.broker is None and settings.broker.embedded
        yield _orders(MQTT, settings, held=running and of_station, unseen=of_station)
    if (register := wanted.modbus) is not None:
        yield _orders(MODBUS, settings, held=running and isinstance(register, ModbusRtuSensors), unseen=False)


def _orders(name: str, settings: Settings, *, held: bool, unseen: bool) -> Finding:
    what = f"orders {name}"
    if held:
        return Finding(what, "held by the running station, whose topic `status` tells how they do")
    if unseen:
        return Finding(what, "come through the embedded broker, which runs only within the station", advice=True)
    return _look(what, ExitCode.SENSORS, functools.partial(_check_orders, name, settings))


def _check_orders(name: str, settings: Settings) -> str:
    """Wait until a source of orders is reached; from a register, for the number that it holds.

    Raises:
        SensorError: it was not within `SENSORS_WITHIN_S`, or what the register holds is no product's number.
    """
    source, by = make_orders(settings.changeover, _broker_to_look_at(settings))[name]
    clock = SystemClock()
    with source:
        until_s = clock.monotonic_s() + SENSORS_WITHIN_S
        while clock.monotonic_s() < until_s:
            match source.read(0.2):
                case Readings() as row:
                    return _product_called(by, order_in(row), settings)
                case Ordered() as order:
                    return _product_called(by, order, settings)
                case SourceEvent(state=SourceStateName.DOWN) as event:
                    raise SensorError(f"{by}: {event.reason or 'delivers nothing'}")
                case SourceEvent(state=SourceStateName.RUNNING) if name == MQTT:
                    return f"{by}: reached, waits for orders"
                case _:
                    continue
    raise SensorError(f"{by}: no answer within {SENSORS_WITHIN_S:g} s")


def _product_called(by: str, order: Ordered, settings: Settings) -> str:
    """The product that an order calls for.

    Raises:
        SensorError: there is no such product.
    """
    if order.what is None:
        raise SensorError(f"{by}: {order.fault or 'cannot be read'}")
    numbers = {str(product.number): name for name, product in settings.product.items() if product.number is not None}
    product = order.what if order.what in settings.product else numbers.get(order.what)
    if product is None:
        numbered = ", ".join(f"{number} = {name}" for number, name in numbers.items()) or "no numbers"
        raise SensorError(f"{by}: calls for {order.what!r}, which is no product; there are {numbered}")
    return f"{by}: calls for {product}"


def _broker_to_look_at(settings: Settings) -> StationBroker:
    return StationBroker(
        settings.broker,
        settings.broker.host,
        settings.broker.effective_port,
        f"inspection-{settings.station.name}-check",
    )


def rejects(settings: Settings, *, running: bool) -> Iterator[Finding]:
    """Read what each reject output would write, and write nothing; `running`: a station holds the serial ports."""
    for name, reject in settings.reject.items():
        what = f"reject {name}"
        if running and isinstance(reject, RtuReject):
            yield Finding(what, "held by the running station, whose topic `health` tells how it does")
            continue
        yield _look(what, ExitCode.REJECT, functools.partial(_check_reject, name, reject))
        if reject.signal == "reject" and reject.heartbeat is None:
            text = 'when the station is gone nothing is thrown out: give it a heartbeat, or signal = "pass"'
            yield Finding(what, text, advice=True)


def _check_reject(name: str, settings: RejectSettings) -> str:
    with make_reject(name, settings) as device:
        return device.look()


def _check_source(name: str, source: SensorSettings, settings: Settings) -> str:
    """Wait for one row.

    Raises:
        SensorError: none came within `SENSORS_WITHIN_S`, the source says that it is down, or points are bad.
    """
    clock = SystemClock()
    connected = False
    with make_sensors(name, source, wanted_points(settings, name), _broker_to_look_at(settings)) as sensors:
        until_s = clock.monotonic_s() + SENSORS_WITHIN_S
        while clock.monotonic_s() < until_s:
            match sensors.read(0.2):
                case Readings() as row:
                    if row.reasons:
                        raise SensorError("; ".join(f"{point}: {why}" for point, why in row.reasons.items()))
                    shown = [
                        f"{point} = {value:g}"
                        for point, value in zip(sensors.points, row.values, strict=True)
                        if math.isfinite(value)
                    ]
                    return ", ".join(shown) or "a row without a value"
                case SourceEvent(state=SourceStateName.DOWN) as event:
                    raise SensorError(event.reason or "delivers nothing")
                case SourceEvent(state=SourceStateName.FINISHED):
                    raise SensorError("the log has no rows")
                case SourceEvent(state=SourceStateName.RUNNING):
                    connected = True
                case _:
                    continue
    state = "connected, but nothing was published" if connected else "no answer"
    raise SensorError(f"{state} within {SENSORS_WITHIN_S:g} s")


def _look(what: str, failure: ExitCode, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, check())
    except (ModelError, CameraError, ProtocolError, SensorError, LogError, OutputError) as exc:
        return Finding(what, str(exc), failure)


def _check_bundle(part: CameraProduct, loaded: dict[BundleKey, Manifest]) -> str:
    """Load a bundle, unless it was loaded before, and see that the product fits it.

    Raises:
        ModelError: it cannot be used, or the product names a class that it does not have.
    """
    if part.bundle not in loaded:
        loaded[part.bundle] = part.load().manifest
    manifest = loaded[part.bundle]
    part.recipe.check(manifest.labels, f"{manifest.name} {manifest.version}")
    return f"{manifest.name} {manifest.version}, golden set reproduced"


def _check_camera(name: str, settings: CameraSettings, recipes: Iterable[Recipe], seen: list[Capture]) -> str:
    """Take one picture through the camera's own process, and put it into `seen`.

    Raises:
        CameraError: there was none within the camera's deadline, it cannot be read, or it does not hold the regions of
            a product.
    """
    if isinstance(settings, DeviceCamera):
        check_device(settings.device)
    clock = SystemClock()
    until_s = clock.monotonic_s() + settings.read_deadline_s + CAMERA_WITHIN_S
    with CameraProcess(name, functools.partial(make_camera, settings), plan_for(settings), clock) as source:
        while clock.monotonic_s() < until_s:
            match source.read(0.2):
                case Frame() as frame:
                    if frame.capture.pixels is not None:
                        seen.append(replace(frame.capture, pixels=frame.capture.pixels.copy()))
                    return _describe(frame, recipes)
                case CameraEvent(state=CameraStateName.STALLED) as event:
                    raise CameraError(event.reason or "delivers nothing")
                case CameraEvent(state=CameraStateName.FINISHED):
                    raise CameraError("has no picture")
                case CameraEvent(state=CameraStateName.RUNNING) if settings.expects == "triggered":
                    return "open, waits for its trigger"
                case CameraEvent(state=CameraStateName.RUNNING) if not plan_for(settings).watch_reads:
                    return "open, waits for pictures"
                case _:
                    continue
    raise CameraError(f"no picture within {settings.read_deadline_s + CAMERA_WITHIN_S:g} s")


def check_device(device: str | int) -> None:
    """See that a device is there and may be used.

    Raises:
        CameraError: it is not, or may not; the text says what to do.
    """
    path = Path(f"/dev/video{device}") if isinstance(device, int) else Path(device)
    if not path.exists():
        present = sorted(str(one) for one in Path("/dev/v4l/by-id").glob("*")) or sorted(
            str(one) for one in Path("/dev").glob("video*")
        )
        raise CameraError(f"there is no {path}; this computer has {', '.join(present) or 'no camera device'}")
    if not os.access(path, os.R_OK | os.W_OK):
        raise CameraError(f"{path} may not be used by this user; add it to the group video: usermod -aG video USER")


def _describe(frame: Frame, recipes: Iterable[Recipe]) -> str:
    capture = frame.capture
    try:
        if capture.pixels is None:
            reason = capture.fault or Reason.UNREADABLE
            raise CameraError(f"first picture {capture.source or ''}: {reason.value}")
        height, width = capture.pixels.shape[:2]
        for recipe in recipes:
            if outside := recipe.outside(width, height):
                raise CameraError(outside)
        colour = "grey" if capture.pixels.ndim == 2 else "colour"  # noqa: PLR2004
        return f"{width}×{height} {colour}"
    finally:
        frame.release()


def _check_broker(settings: Settings) -> str:
    wanted = settings.broker
    if wanted.embedded:
        if wanted.effective_port:
            check_port(wanted.effective_port)
        return f"embedded, port {wanted.effective_port or 'any'} is free"
    with Subscriber(
        wanted.host,
        wanted.effective_port,
        f"inspection/{settings.station.name}/status",
        username=wanted.username,
        password=wanted.read_password(os.environ),
        tls=wanted.tls,
    ):
        return f"{wanted.host}:{wanted.effective_port} takes the login"
